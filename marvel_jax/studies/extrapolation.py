"""Whether the small runs would have told of the largest: fitted without it, held against it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from marvel_jax.studies.choice import choose
from marvel_jax.studies.fit import ANYTHING, DRAWS, PARAMETERS, NotFitted, Shape, fit_curve
from marvel_jax.studies.points import Estimate, Points

SHAPES: tuple[Shape, ...] = tuple(PARAMETERS)


@dataclass(frozen=True)
class Extrapolation:
    """A prediction at the largest x from all smaller ones, and how far off it is.

    measured: the mean at x. predicted: the curve there. shape, rule: of the curve, chosen without
    the largest. relative: (predicted - measured) / |measured|, None where measured is 0. spreads:
    the same difference in standard deviations between seeds, None where no level has two.
    last, last_relative, last_spreads: the same of the plainest guess, the value at the x before.
    """

    x: float
    measured: float
    predicted: Estimate
    shape: Shape
    rule: str
    relative: float | None
    spreads: float | None
    last: float
    last_relative: float | None
    last_spreads: float | None

    @property
    def beats_last(self) -> bool:
        """Whether the curve came nearer than "the same as the last"."""
        return abs(self.predicted.value - self.measured) < abs(self.last - self.measured)


def extrapolate(
    points: Points,
    *,
    shapes: Sequence[Shape] = SHAPES,
    seed: int = 0,
    draws: int = DRAWS,
    asymptote: tuple[float, float] = ANYTHING,
) -> Extrapolation | NotFitted:
    """Fits all levels but the largest, chooses a shape by them alone, and predicts the largest.

    Args:
      points: what was measured.
      shapes: to choose from.
      seed: of the bootstrap.
      draws: of the bootstrap.
      asymptote: as in `fit_curve`.

    Returns:
      The prediction; or why there is none.
    """
    largest = len(points.levels) - 1
    if largest < 1:
        return NotFitted(shapes[0], "there is one x, and nothing to predict it from")
    rest = points.without(largest)
    fits = [fit_curve(rest, shape, seed=seed, draws=draws, asymptote=asymptote) for shape in shapes]
    choice = choose(fits)
    if choice is None:
        reason = f"{len(rest.levels)} different x without the largest, too few for a curve"
        return NotFitted(shapes[0], reason)
    x = float(points.levels[-1])
    measured, last = float(points.means[-1]), float(points.means[-2])
    low, high = choice.fit.band(x)
    predicted = Estimate(float(choice.fit.predict(x)), float(low), float(high))
    spread = points.spread

    def relative(value: float) -> float | None:
        return (value - measured) / abs(measured) if measured else None

    def spreads(value: float) -> float | None:
        return (value - measured) / spread if spread else None

    return Extrapolation(
        x=x,
        measured=measured,
        predicted=predicted,
        shape=choice.fit.shape,
        rule=choice.rule,
        relative=relative(predicted.value),
        spreads=spreads(predicted.value),
        last=last,
        last_relative=relative(last),
        last_spreads=spreads(last),
    )


def held_out(points: Points) -> np.ndarray:
    """Which trials `extrapolate` predicts, bool [N]."""
    return points.level_of == len(points.levels) - 1
