"""The points of one curve: values of an axis, several seeds each, and new draws of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from marvel_jax.errors import MarvelError


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Points:
    """Measurements of one metric along one axis, ascending in x; see `points_of`.

    x, y: float [N], one entry a trial. levels: float [L], the different values of x.
    level_of: int [N], which level a trial is at.
    """

    x: np.ndarray
    y: np.ndarray
    levels: np.ndarray
    level_of: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    @property
    def means(self) -> np.ndarray:
        """The mean of each level, float [L]."""
        return np.bincount(self.level_of, self.y) / self.counts

    @property
    def counts(self) -> np.ndarray:
        """How many trials each level has, int [L]."""
        return np.bincount(self.level_of)

    @property
    def spread(self) -> float | None:
        """The standard deviation between trials of one level, pooled over levels.

        None where no level has two trials.
        """
        return pooled_spread(self.y, self.level_of)

    def without(self, level: int) -> "Points":
        """The points of all levels but this one."""
        kept = self.level_of != level
        return points_of(self.x[kept], self.y[kept])


def pooled_spread(
    values: Sequence[float] | np.ndarray, groups: Sequence[Any] | np.ndarray
) -> float | None:
    """The standard deviation of values about the means of their groups, all groups together.

    None where every value has a group of its own.
    """
    _, group_of = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.bincount(group_of)
    freedom = len(group_of) - len(counts)
    if freedom == 0:
        return None
    means = np.bincount(group_of, values) / counts
    return float(np.sqrt(np.sum((np.asarray(values) - means[group_of]) ** 2) / freedom))


def points_of(x: np.ndarray, y: np.ndarray) -> Points:
    """The points of a curve from one x and one y a trial, in any order.

    Raises:
      MarvelError: lengths that differ, none at all, an x that is not positive (the curves are
        over ln x), a value that is not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise MarvelError(f"Expected as many x as y, one a trial: found {x.shape} and {y.shape}.")
    if not np.all(np.isfinite(x) & (x > 0)):
        bad = x[~(np.isfinite(x) & (x > 0))][0]
        raise MarvelError(f"x must be positive and finite, for curves are over ln x: found {bad}.")
    if not np.all(np.isfinite(y)):
        where = x[~np.isfinite(y)][0]
        raise MarvelError(f"The value at x = {where:g} is not finite: leave that trial out.")
    order = np.lexsort((y, x))
    levels, level_of = np.unique(x[order], return_inverse=True)
    return Points(x[order], y[order], levels, level_of)


_FEW = 5
"""Trials of one level, below which their own deviations say too little of how values scatter."""


class Redrawn(NamedTuple):
    """New draws of the values.

    values: float [B, N]. how: how they were made, for the reader. freedom: on how many degrees of
    freedom the scatter rests.
    """

    values: np.ndarray
    how: str
    freedom: int


def redraw(
    points: Points, fitted: np.ndarray, *, parameters: int, draws: int, seed: int
) -> Redrawn:
    """Draws the values anew, as other seeds might have given them.

    Where levels have several trials, each level's trials are drawn with replacement (case
    resampling within x; the levels themselves were chosen, not drawn, so they stay). Two or three
    seeds need care: deviations of m trials from their own mean are too small by the factor
    sqrt((m - 1) / m), so they are widened by it, and a level of fewer than 5 trials draws from the
    deviations of all levels. Where every level has one trial, the residuals of the fit take their
    place, widened by sqrt(N / (N - parameters)).

    Args:
      points: what was measured.
      fitted: float [N], the fitted curve at the points.
      parameters: how many the curve has.
      draws: B.
      seed: of the draws.
    """
    rng = np.random.default_rng(seed)
    counts, total = points.counts, len(points)
    if counts.max() == 1:
        freedom = max(total - parameters, 1)
        residuals = (points.y - fitted) * np.sqrt(total / freedom)
        residuals -= residuals.mean()
        values = fitted + residuals[rng.integers(total, size=(draws, total))]
        return Redrawn(values, "residuals of the fit, since every level has one seed", freedom)
    own = counts[points.level_of]
    center = points.means[points.level_of]
    widened = (points.y - center) * np.sqrt(own / np.maximum(own - 1, 1))
    several = np.flatnonzero(own > 1)
    # Points are in order of x, so a level's trials lie side by side.
    first = np.concatenate([[0], np.cumsum(counts)])[points.level_of]
    of_its_own = first + (rng.random((draws, total)) * own).astype(np.int64)
    of_all = several[rng.integers(len(several), size=(draws, total))]
    values = center + widened[np.where(own >= _FEW, of_its_own, of_all)]
    how = "seeds within each level"
    if counts.min() < _FEW:
        how += f" (a level of fewer than {_FEW} draws from the deviations of all)"
    return Redrawn(values, how, total - len(counts))


def tails(level: float, freedom: int) -> tuple[float, float]:
    """The two quantiles of the draws that bound an interval.

    Percentiles are those of a normal distribution with a known spread; with few trials the spread
    itself is a guess, so they are moved out to where Student's t has them (Hesterberg 2015,
    "expanded percentiles").
    """
    low = float(stats.norm.cdf(stats.t.ppf((1 - level) / 2, max(freedom, 1))))
    return low, 1 - low
