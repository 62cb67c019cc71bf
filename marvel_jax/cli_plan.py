"""`marvel plan`: what a step takes on machines that need not be here."""

import dataclasses
import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from marvel_jax.cli_bench import Json
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import EXIT_INTERRUPTED, Outcome


def plan(
    config: Annotated[Positional[Path], arg(help="A Python file that defines `config`.")],
    *,
    topology: Annotated[
        tuple[str, ...],
        arg(help="gpu:h100:64, tpu:v5e:8x8, cpu:8, ...; several are set beside one another."),
    ],
    stage: Annotated[
        Literal["train", "encode"], arg(help="The train step, or one call of the encoding.")
    ] = "train",
    layout: Annotated[
        str | None, arg(help="A layout of the file; without one, that of the topology's name.")
    ] = None,
    overrides: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", help="Fields to change, as: --set chunk_rows=4 mesh.fsdp=8"),
    ] = (),
    lengths: Annotated[
        Literal["mbeir", "corpus"],
        arg(help="Lengths of the items: M-BEIR's mix, or those of the config's own data."),
    ] = "mbeir",
    pairs_per_device: Annotated[
        int | None, arg(help="Sets data.global_batch to so many times the devices.")
    ] = None,
    batch_tokens: Annotated[int, arg(help="Tokens of one call of the encoding.")] = 4096,
    search: Annotated[
        bool, arg(help="Try other meshes, chunks and rematerialisation, and rank what fits.")
    ] = False,
    batches: Annotated[tuple[int, ...], arg(help="Global batches that --search tries.")] = (),
    minutes: Annotated[float, arg(help="How long --search may take.")] = 10.0,
    json: Json = False,
) -> Outcome:
    """Compiles the real step for a TPU, GPU or CPU topology without the hardware.

    Bytes of a device against its memory, what to change where it does not fit, operations,
    messages, and an estimate of the step's time. Nothing is fetched and no weight is drawn.
    """
    from rich.console import Console

    from marvel_jax.parallel.topology import Topology
    from marvel_jax.plan import compile, report  # noqa: A004
    from marvel_jax.plan.search import search as try_others
    from marvel_jax.recipes.config_file import open_config
    from marvel_jax.recipes.overrides import override

    console = Console(stderr=True)
    opened = open_config(config)
    changes = tuple(itertools.chain.from_iterable(overrides))
    runs = []
    for name in topology:
        parsed = Topology.parse(name)
        chosen = layout or (name if name in opened.layouts else None)
        run = override(opened.config if chosen is None else opened.laid_out(chosen), changes)
        if pairs_per_device is not None:
            batch = pairs_per_device * parsed.devices
            run = dataclasses.replace(run, data=dataclasses.replace(run.data, global_batch=batch))
        runs.append((name, chosen, run))
    if search:
        if len(runs) > 1 or stage != "train":
            raise MarvelError("--search takes one --topology, and the train step.")
        name, chosen, run = runs[0]
        found = try_others(
            run, name, lengths=lengths, batches=batches, seconds=60 * minutes, tell=console.print
        )
        told = [
            *_layout_line(name, chosen),
            *report.comparison(found.plans),
            f"{found.tried} of {found.candidates} settings compiled, the best first",
        ]
        facts: dict[str, Any] = {"plans": [one.to_dict() for one in found.plans]}
        return Outcome(facts, told, EXIT_INTERRUPTED if found.interrupted else 0)
    plans, told = [], []
    for name, chosen, run in runs:
        with console.status(f"compiling for {name}"):
            plans.append(
                compile.plan(run, name, stage=stage, lengths=lengths, batch_tokens=batch_tokens)
            )
        told += _layout_line(name, chosen)
    if len(plans) == 1:
        return Outcome(
            {"layout": runs[0][1], **plans[0].to_dict()}, [*told, *report.lines(plans[0])]
        )
    return Outcome({"plans": [one.to_dict() for one in plans]}, [*told, *report.comparison(plans)])


def _layout_line(topology: str, layout: str | None) -> list[str]:
    if layout is None:
        return []
    return [f"{topology}: layout {layout!r} of the config file"]
