"""`marvel train | import | export`: models in, runs, models out."""

import itertools
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from marvel_jax.cli_errors import voice
from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome


def train(
    config: Annotated[Positional[Path], arg(help="A Python file that defines `config`.")],
    *,
    workdir: Annotated[Path, arg(help="Folder of the run; an unfinished run in it resumes.")],
    overrides: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", help="Fields to change, as: --set steps=100 model.dtype=bfloat16"),
    ] = (),
    layout: Annotated[
        str | None, arg(help="A layout that the config file defines, as gpu:h100:64.")
    ] = None,
    profile_steps: Annotated[
        str | None, arg(help="Steps to trace for xprof, as 10:12, into the run's profile/.")
    ] = None,
    peak_tflops: Annotated[
        float | None, arg(help="A device's dense peak, for MFU where it is not known.")
    ] = None,
    coordinator: Annotated[
        str | None, arg(help="HOST:PORT of process 0, where no scheduler tells it.")
    ] = None,
    num_processes: Annotated[
        int | None, arg(help="How many processes the run has; 1 = this one, whatever is told.")
    ] = None,
    process_id: Annotated[int | None, arg(help="Which of them this is, from 0.")] = None,
    join_timeout: Annotated[
        float | None, arg(help="Seconds that the processes wait for each other at the start (300).")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Trains what a config describes, and writes the model as a Hugging Face folder.

    Ctrl-C and SIGTERM save before they stop (exit codes 130 and 143).
    """
    from marvel_jax.recipes.training_commands import run_training

    return run_training(
        config,
        workdir,
        overrides=tuple(itertools.chain.from_iterable(overrides)),
        layout=layout,
        profile_steps=profile_steps,
        peak_tflops=peak_tflops,
        coordinator=coordinator,
        num_processes=num_processes,
        process_id=process_id,
        join_timeout=join_timeout,
        voice=voice(as_json=json),
    )


def import_model(
    source: Annotated[Positional[str], arg(help="A Hugging Face folder or a Hub id.")],
    *,
    out: Annotated[Path, arg(help="Folder to write; it must not exist.")],
    adapters: Annotated[
        str | None, arg(help="Adapters of it in PEFT's layout to merge: a folder or a Hub id.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Reads a Qwen2-VL checkpoint, accounts for every weight, and writes it as a model folder."""
    from marvel_jax.recipes.training_commands import import_checkpoint

    return import_checkpoint(source, out=out, adapters=adapters)


def export(
    run: Annotated[Positional[Path], arg(help="The folder of a training run.")],
    *,
    out: Annotated[Path, arg(help="Folder to write; it must not exist.")],
    adapters: Annotated[bool, arg(help="The adapters alone, as PEFT lays them out.")] = False,
    step: Annotated[int | None, arg(help="Which checkpoint; without it, the newest.")] = None,
    base: Annotated[
        str | None, arg(help="Where the model that the run started from is now, if it moved.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Writes a run's checkpoint as a Hugging Face folder that transformers loads."""
    from marvel_jax.recipes.training_commands import export_run

    return export_run(run, out=out, adapters=adapters, step=step, base=base)
