"""What a study varies: axes, and the design that picks points of them."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.studies.trial import Value

Point = dict[str, Value]

_REDRAWS = 100  # for a draw that was made before, until the axes count as exhausted


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included, for a random design; `log`: evenly in their
    logarithm; `whole`: integers.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            positive = ", both positive with log=True" if self.log else ""
            raise MarvelError(
                f"Range(low={self.low}, high={self.high}): give low < high{positive}."
            )

    def at(self, share: float) -> float | int:
        """The number at a share from 0 to 1 of the way."""
        ends = (self.low, self.high)
        if self.log:
            low, high = map(math.log, ends)
            found = math.exp(low + share * (high - low))
        else:
            found = self.low + share * (self.high - self.low)
        found = min(max(found, self.low), self.high)  # the logarithm's rounding
        return round(found) if self.whole else found


@dataclass(frozen=True)
class Axis:
    """One thing that is varied.

    Attributes:
      name: for tables and plots: "batch".
      change: which fields of the recipe take the value, as `marvel run --set` names them:
        "train.config.data.global_batch", or several such. Where fields take other values than the
        axis has, a function: value -> settings, ("train.config.steps=300", ...). (): none, for the
        study's `joint` reads the value.
      values: the values, or a `Range` to draw from.
    """

    name: str
    change: str | tuple[str, ...] | Callable[[Value], Sequence[str]]
    values: Sequence[Value] | Range

    def __post_init__(self) -> None:
        if isinstance(self.values, Range):
            return
        values = tuple(self.values)
        if not values or len(set(map(repr, values))) < len(values):
            raise MarvelError(
                f"axis {self.name!r}: values={list(values)}: give one or more, each once."
            )
        object.__setattr__(self, "values", values)

    def settings(self, value: Value) -> tuple[str, ...]:
        """The changes of the recipe that make its value so."""
        if callable(self.change):
            return tuple(self.change(value))
        fields = (self.change,) if isinstance(self.change, str) else self.change
        return tuple(f"{field}={value}" for field in fields)


@dataclass(frozen=True)
class Grid:
    """Every value of every axis with every value of the others, the last axis the fastest."""

    def points(self, axes: Sequence[Axis]) -> list[Point]:
        """The points, in order.

        Raises:
          MarvelError: an axis has a range.
        """
        lists = []
        for axis in axes:
            if isinstance(axis.values, Range):
                raise MarvelError(
                    f"axis {axis.name!r} is a Range, of which a grid has no values: list them, or "
                    "give design=Random(budget=...)."
                )
            lists.append(axis.values)
        names = [axis.name for axis in axes]
        return [dict(zip(names, values, strict=True)) for values in itertools.product(*lists)]


@dataclass(frozen=True)
class Random:
    """`budget` different points, each axis drawn by itself; a larger budget keeps the first."""

    budget: int
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise MarvelError(f"Random(budget={self.budget}): give 1 or more.")

    def points(self, axes: Sequence[Axis]) -> list[Point]:
        """The points, in the order drawn.

        Raises:
          MarvelError: the axes have fewer points than the budget.
        """
        rng = np.random.default_rng(self.seed)
        found: dict[str, Point] = {}
        redrawn = 0
        while len(found) < self.budget:
            # As many numbers for a point whatever the axes are, so that a list can become a range.
            shares = rng.random(len(axes))
            point = {
                axis.name: _draw(axis, share) for axis, share in zip(axes, shares, strict=True)
            }
            redrawn = redrawn + 1 if repr(point) in found else 0
            if redrawn > _REDRAWS * self.budget:
                raise MarvelError(
                    f"Random(budget={self.budget}): the axes have about {len(found)} different "
                    "points: give a smaller budget, more values, or design=Grid()."
                )
            found.setdefault(repr(point), point)
        return list(found.values())


def _draw(axis: Axis, share: float) -> Value:
    if isinstance(axis.values, Range):
        return axis.values.at(share)
    return axis.values[int(share * len(axis.values))]


def label(point: Mapping[str, Value]) -> str:
    """A point for a line of text: "batch=64, negatives=1"."""
    return ", ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in point.items()
    )
