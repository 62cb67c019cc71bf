"""A study: a base recipe, what is varied in it, and what is looked at."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.config_file import run_file
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Train
from marvel_jax.studies.axes import Axis, Grid, Point, Random, Range

Size = Literal["full", "tiny"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


@dataclass(frozen=True)
class Metric:
    """A figure of a trial that the report shows, and whether more of it is better."""

    name: str
    better: Literal["higher", "lower"] = "higher"


class Task(NamedTuple):
    """A trial that is to be made; `number` counts from 1 over all of the study."""

    number: int
    point: Point
    seed: int


@dataclass(frozen=True)
class Study:
    """Trials of one recipe, at points of some axes.

    Attributes:
      base: the recipe; of a training alone, `Recipe((Train("train", config),))`.
      axes: what is varied.
      metrics: what is reported, the most important first.
      design: which points: all of them, or some by chance.
      seeds: each point is tried with each of them.
      seeded: the fields that take the seed; None: `config.seed` of every training.
      only: points that it is false of are left out.
      joint: settings that several axes decide together, of a point, after those of each axis: the
        steps that a width trains with some compute.
      question: what is asked, in a sentence, for the report.

    Raises:
      MarvelError: axes of one name, no metric or no seed.
    """

    base: Recipe
    axes: tuple[Axis, ...]
    metrics: tuple[Metric, ...]
    design: Grid | Random = Grid()  # noqa: RUF009  (frozen, and without state)
    seeds: tuple[int, ...] = (0,)
    seeded: tuple[str, ...] | None = None
    only: Callable[[Point], bool] | None = None
    joint: Callable[[Point], Sequence[str]] | None = None
    question: str = ""

    def __post_init__(self) -> None:
        names = [axis.name for axis in self.axes]
        if not names or len(set(names)) < len(names):
            raise MarvelError(f"axes={names}: give one or more, each a name of its own.")
        for field in ("metrics", "seeds"):
            values = getattr(self, field)
            if not values or len(set(values)) < len(values):
                raise MarvelError(f"{field}={list(values)}: give one or more, each once.")

    def points(self) -> list[Point]:
        """What is tried with every seed.

        Raises:
          MarvelError: the design has no points of these axes, or `only` leaves none.
        """
        found = [one for one in self.design.points(self.axes) if not self.only or self.only(one)]
        if not found:
            raise MarvelError("only=... leaves no point of the axes.")
        return found

    def tasks(self) -> list[Task]:
        """All trials: every point with the first seed, then with the next."""
        points = self.points()
        pairs = [(point, seed) for seed in self.seeds for point in points]
        return [Task(number, *pair) for number, pair in enumerate(pairs, start=1)]

    def settings(self, task: Task) -> tuple[str, ...]:
        """The changes of the base recipe that make a trial."""
        changes = [
            setting for axis in self.axes for setting in axis.settings(task.point[axis.name])
        ]
        if self.joint is not None:
            changes += self.joint(task.point)
        seeded = self.seeded
        if seeded is None:
            trained = [stage.name for stage in self.base.stages if isinstance(stage, Train)]
            seeded = tuple(f"{name}.config.seed" for name in trained)
        return (*changes, *(f"{field}={task.seed}" for field in seeded))

    def recipe(self, task: Task) -> Recipe:
        """The recipe of a trial.

        Raises:
          MarvelError: a change names no field, or the recipe refuses it.
        """
        return self.base.with_settings(self.settings(task))

    def require_sound(self) -> None:
        """Refuses a study of which no point makes a recipe: a fault of the file, not of a point.

        Raises:
          MarvelError: with what the first point is refused for.
        """
        refused = []
        for point in self.points():
            task = Task(0, point, self.seeds[0])
            try:
                self.recipe(task)
            except MarvelError as error:
                refused.append(str(error))
            else:
                return
        raise MarvelError(f"no point of the study makes a recipe: {refused[0]}")

    def to_dict(self) -> dict[str, Any]:
        """What a reader of its trials must know, as JSON has it."""
        return {
            "question": self.question,
            "axes": [
                {
                    "name": axis.name,
                    "values": vars(axis.values)
                    if isinstance(axis.values, Range)
                    else list(axis.values),
                }
                for axis in self.axes
            ],
            "metrics": [vars(one) for one in self.metrics],
            "design": {"kind": type(self.design).__name__.lower(), **vars(self.design)},
            "seeds": list(self.seeds),
        }


def load_study(path: Path, *, size: Size = "full") -> Study:
    """The `study` that a Python file defines; of the size "tiny", its `tiny`.

    Raises:
      MarvelError: the file is missing, fails, or defines none of it; or no point of it can be.
    """
    name = "study" if size == "full" else size
    if not _NAME.fullmatch(path.stem):
        raise MarvelError(
            f"{path}: its name becomes the study's: use small letters, digits, - and _."
        )
    found = getattr(run_file(path, defines=name), name, None)
    if not isinstance(found, Study):
        raise MarvelError(f"{path} must define `{name}`, a Study; found {type(found).__name__}.")
    try:
        found.require_sound()
    except MarvelError as error:
        raise MarvelError(f"{path}: {error}") from error
    return found


def numbered(tasks: Sequence[Task], number: int) -> Task:
    """The trial of a number.

    Raises:
      MarvelError: there is none.
    """
    if not 1 <= number <= len(tasks):
        raise MarvelError(f"--trial {number}: the study has trials 1 to {len(tasks)}.")
    return tasks[number - 1]
