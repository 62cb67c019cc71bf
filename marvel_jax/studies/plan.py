"""The points of a study on machines that need not be here: bytes, operations, time, hours."""

import dataclasses
import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.plan import compile  # noqa: A004
from marvel_jax.plan.compile import Lengths
from marvel_jax.plan.planned import Planned
from marvel_jax.recipes.recipe import DATA, Recipe
from marvel_jax.recipes.stages import Base, Train
from marvel_jax.studies.axes import Point, label
from marvel_jax.studies.study import Study, Task
from marvel_jax.training.config import ModelConfig, TrainConfig

Tell = Callable[[str], None]

_WIDTH = 180  # of a printed table, whatever the terminal
_COLUMNS = ("GiB", "of", "PFLOP", "step s", "MFU", "of training", "hours", "device-h")


class Row(NamedTuple):
    """A point on a topology. What cannot be planned, or does not fit, has a `reason`.

    flops are of the whole training, useful ones without padding and repeats.
    """

    point: Point
    topology: str
    steps: int | None = None
    planned: Planned | None = None
    reason: str | None = None

    @property
    def hours(self) -> float | None:
        """Of the whole training, as it is estimated."""
        if self.planned is None or self.planned.step_seconds is None or self.steps is None:
            return None
        return self.planned.step_seconds * self.steps / 3600

    def to_dict(self) -> dict[str, Any]:
        """One line of a table, JSON-able."""
        found, hours = self.planned, self.hours
        row: dict[str, Any] = {"topology": self.topology, "point": self.point, "steps": self.steps}
        if found is not None:
            row |= {
                "devices": found.devices,
                "fits": found.fits,
                "needed_bytes": found.needed_bytes,
                "memory_bytes": found.memory_bytes,
                "flops_per_step": found.useful_flops,
                "flops": None if self.steps is None else found.useful_flops * self.steps,
                "step_seconds": found.step_seconds,
                "mfu": found.mfu,
                "hours": hours,
                "device_hours": None if hours is None else hours * found.devices,
            }
        return row | {"reason": self.reason}


def plan_study(
    study: Study,
    topologies: Sequence[str],
    *,
    stage: str | None = None,
    lengths: Lengths = "mbeir",
    trainings: Sequence[str] = (),
    tell: Tell = lambda line: None,
) -> Iterator[Row]:
    """Compiles the training step of every point, with the first seed, for every topology.

    Points that differ only in what follows the training are one compilation. Each is told when it
    is known.

    Args:
      study: whose axes.
      topologies: as `marvel plan --topology` takes them.
      stage: the training; None: the last of the recipe.
      lengths: of the items: M-BEIR's mix, or those of the config's own data.
      trainings: changes of every training, as `marvel run --training`: a layout of the topology.
      tell: gets a line for each row.

    Raises:
      MarvelError: the recipe trains nothing, or has no such training.
    """
    study = dataclasses.replace(study, base=study.base.with_trainings(trainings))
    name = _training(study.base, stage)
    known: dict[str, Row] = {}
    for topology in topologies:
        for point in study.points():
            row = _row(study, point, topology, name, lengths, known)
            tell(_line(row))
            yield row


def _row(
    study: Study,
    point: Point,
    topology: str,
    name: str,
    lengths: Lengths,
    known: dict[str, Row],
) -> Row:
    row = Row(point, topology)
    try:
        recipe = study.recipe(Task(0, point, study.seeds[0]))
        config = standalone(recipe, name, lengths=lengths)
        key = repr((topology, dataclasses.replace(config, steps=1)))
        if key not in known:
            found = compile.plan(config, topology, lengths=lengths)
            known[key] = Row(point, topology, config.steps, found, _misfit(found))
    except MarvelError as error:
        return row._replace(reason=str(error))
    return known[key]._replace(point=point, steps=config.steps)


def standalone(recipe: Recipe, name: str, *, lengths: Lengths = "mbeir") -> TrainConfig:
    """A training's config as it is planned without the stages before it.

    Its model is the one that the chain starts from, whose shape the later ones have.

    Raises:
      MarvelError: no such training, or data that a stage makes and whose lengths are asked for.
    """
    stage = recipe.stage(name)
    if not isinstance(stage, Train):
        raise MarvelError(f"--stage {name} is of the kind {type(stage).__name__}: name a training.")
    config = stage.config
    if lengths == "corpus":
        for source in config.data.sources:
            if recipe.reference(str(source.path)) is not None:
                raise MarvelError(
                    f"{name}: {source.path} is made by a run: plan with --lengths mbeir, or set "
                    "the path of data that is here."
                )
    origin = _origin(recipe, config.model.source)
    if isinstance(origin, Qwen2VLConfig):
        model = dataclasses.replace(config.model, source=None, scratch=origin)
    else:
        model = dataclasses.replace(config.model, source=origin)
    return dataclasses.replace(config, model=model) if model != config.model else config


def _origin(recipe: Recipe, source: str | None) -> str | Qwen2VLConfig | None:
    """What a chain of trainings starts from: a folder or Hub id, or a shape."""
    found = None if source is None else recipe.reference(source)
    if source is None or found is None:
        return source
    if found.stage == DATA:
        return recipe.data[found.output]
    maker = recipe.stage(found.stage)
    if isinstance(maker, Base):
        return maker.architecture
    if isinstance(maker, Train):
        before: ModelConfig = maker.config.model
        return before.scratch or _origin(recipe, before.source)
    raise MarvelError(f"{source} is the model of {type(maker).__name__}: it cannot be planned.")


def table(rows: Sequence[Row]) -> list[str]:
    """The rows for a person: what fits in a table, and under it the others with their reasons."""
    if not rows:
        return ["no point was planned"]
    made = Table(box=None, pad_edge=False, header_style="")
    made.add_column("topology", no_wrap=True)
    for name in (*rows[0].point, *_COLUMNS):
        made.add_column(name, justify="right", no_wrap=True)
    good = [row for row in rows if row.planned is not None]
    for row in good:
        made.add_row(row.topology, *map(str, row.point.values()), *_cells(row))
    stream = io.StringIO()
    Console(file=stream, width=_WIDTH, highlight=False, markup=False).print(made)
    lines = [line.rstrip() for line in stream.getvalue().splitlines()] if good else []
    told = {row.planned.assumptions for row in good if row.planned and row.planned.assumptions}
    lines += sorted(told)
    bad = [row for row in rows if row.reason]
    if bad:
        lines.append(f"{len(bad)} of {len(rows)} points cannot be run so:")
        lines += [f"  {row.topology}, {label(row.point)}: {row.reason}" for row in bad]
    return lines


def _cells(row: Row) -> list[str]:
    found, hours = row.planned, row.hours
    assert found is not None and row.steps is not None  # `table` asks for no others
    flops = found.useful_flops * row.steps / 1e15
    devices = None if hours is None else hours * found.devices
    return [
        f"{found.needed_bytes / 2**30:,.1f}" + ("" if found.fits is not False else " NO"),
        "-" if found.memory_bytes is None else f"{found.memory_bytes / 2**30:,.1f}",
        f"{flops:,.3g}",
        "-" if found.step_seconds is None else f"{found.step_seconds:.3g}",
        "-" if found.mfu is None else f"{found.mfu:.0%}",
        f"{row.steps:,} steps",
        "-" if hours is None else f"{hours:,.3g}",
        "-" if devices is None else f"{devices:,.3g}",
    ]


def _line(row: Row) -> str:
    if row.planned is None or row.reason is not None:
        told = row.reason
    elif row.hours is None:
        told = f"{row.planned.needed_bytes / 2**30:.1f} GiB"
    else:
        told = f"{row.planned.needed_bytes / 2**30:.1f} GiB, {row.hours:.2g} hours"
    return f"{row.topology}, {label(row.point)}: {told}"


def _misfit(found: Planned) -> str | None:
    if found.fits is not False or found.memory_bytes is None:
        return None
    needed, memory = found.needed_bytes / 2**30, found.memory_bytes / 2**30
    return f"needs {needed:.1f} GiB of the {memory:.1f} GiB that a run may take of a device"


def _training(recipe: Recipe, stage: str | None) -> str:
    trained = [one.name for one in recipe.stages if isinstance(one, Train)]
    if stage is not None:
        return recipe.stage(stage).name
    if not trained:
        raise MarvelError("the study's recipe trains nothing: there is no step to plan.")
    return trained[-1]
