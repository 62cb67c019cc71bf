"""What compute buys: iso-FLOP curves, the best size at each, and the front of score over compute.

The method is Chinchilla's second (Hoffmann et al. 2022): at one compute, score over size has a
best place, found by a parabola over ln size; those places over compute make a power law.
"""

from typing import NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.studies.choice import Better, vertex
from marvel_jax.studies.fit import DRAWS, LEVEL, Fit, NotFitted, fit_curve
from marvel_jax.studies.points import Estimate, Points, points_of, tails

TOLERANCE = 0.1
"""Trials whose FLOPs differ by no more than a tenth count as of one compute."""
_LEAST = 3  # groups with an optimum: the line's two parameters, and one


class IsoFlop(NamedTuple):
    """Trials of one compute.

    flops: their geometric mean. rows: int [N], which trials. points: the metric over size.
    fit: a parabola over ln size. best: the size at its best, with its interval; None where it is
    outside the measured sizes or the parabola is bent the other way: `reason` says so. drawn:
    float [B], the best size of each draw, NaN where it has none.
    """

    flops: float
    rows: np.ndarray
    points: Points
    fit: Fit | NotFitted
    best: Estimate | None
    reason: str | None
    drawn: np.ndarray


class Frontier(NamedTuple):
    """The best size over compute, factor * C^exponent; None, and a reason, where it has no answer.

    dropped: the share of draws in which some group had no best size.
    """

    groups: tuple[IsoFlop, ...]
    exponent: Estimate | None
    factor: float | None
    dropped: float
    reason: str | None

    def size_at(self, flops: np.ndarray) -> np.ndarray:
        """The best size at a compute, of a frontier that has an answer."""
        assert self.exponent is not None and self.factor is not None
        return self.factor * flops**self.exponent.value


def group_by_compute(flops: np.ndarray, *, tolerance: float = TOLERANCE) -> list[np.ndarray]:
    """Rows of trials of one compute, ascending: each within 1 + tolerance of its group's least.

    Raises:
      MarvelError: FLOPs that are not positive and finite.
    """
    flops = np.asarray(flops, np.float64)
    if not np.all(np.isfinite(flops) & (flops > 0)):
        raise MarvelError("FLOPs must be positive and finite: a trial's metrics have others.")
    groups: list[list[int]] = []
    for row in np.argsort(flops, kind="stable"):
        if groups and flops[row] <= (1 + tolerance) * flops[groups[-1][0]]:
            groups[-1].append(int(row))
        else:
            groups.append([int(row)])
    return [np.asarray(group) for group in groups]


def compute_frontier(
    flops: np.ndarray,
    sizes: np.ndarray,
    values: np.ndarray,
    *,
    better: Better,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Frontier:
    """The best size at each compute, and how it grows with compute.

    Args:
      flops: float [N], of each trial's training.
      sizes: float [N], positive: parameters, or what else is traded against data.
      values: float [N], the metric.
      better: whether more of the metric is better.
      tolerance: what counts as one compute; see `group_by_compute`.
      seed: of the bootstrap.
      draws: of the bootstrap.
      level: of the intervals.

    Raises:
      MarvelError: FLOPs or sizes that are not positive and finite.
    """
    groups = tuple(
        _iso_flop(
            flops, sizes, values, rows, better=better, seed=seed + n, draws=draws, level=level
        )
        for n, rows in enumerate(group_by_compute(flops, tolerance=tolerance))
    )
    placed = [group for group in groups if group.best is not None]
    if len(placed) < _LEAST:
        curves = sum(isinstance(group.fit, Fit) for group in groups)
        reason = (
            f"of {len(groups)} computes {curves} have sizes enough for a curve, and {len(placed)} "
            f"a best size inside the measured ones; a line through them asks for {_LEAST}"
        )
        return Frontier(groups, None, None, 0.0, reason)
    logs = np.log([group.flops for group in placed])
    best = np.log([group.best.value for group in placed if group.best])
    drawn = np.log(np.stack([group.drawn for group in placed], axis=1))
    whole = drawn[~np.isnan(drawn).any(axis=1)]
    slope, offset = np.polyfit(logs, best, 1)
    if len(whole) < draws / 2:
        reason = "in most draws some compute has no best size: the parabolas are too uncertain"
        return Frontier(groups, None, None, 1 - len(whole) / draws, reason)
    slopes = np.polyfit(logs, whole.T, 1)[0]
    freedom = min(group.fit.freedom for group in placed if isinstance(group.fit, Fit))
    low, high = np.quantile(slopes, tails(level, freedom))
    return Frontier(
        groups=groups,
        exponent=Estimate(float(slope), float(low), float(high)),
        factor=float(np.exp(offset)),
        dropped=1 - len(whole) / draws,
        reason=None,
    )


def pareto_front(flops: np.ndarray, values: np.ndarray, *, better: Better) -> np.ndarray:
    """Rows that no trial of as little compute beats or equals, in ascending order of compute."""
    sign = 1.0 if better == "higher" else -1.0
    best = -np.inf
    rows = []
    for row in np.lexsort((-sign * np.asarray(values), flops)):
        if sign * values[row] > best:
            best = sign * values[row]
            rows.append(int(row))
    return np.asarray(rows, np.int64)


def _iso_flop(
    flops: np.ndarray,
    sizes: np.ndarray,
    values: np.ndarray,
    rows: np.ndarray,
    *,
    better: Better,
    seed: int,
    draws: int,
    level: float,
) -> IsoFlop:
    points = points_of(sizes[rows], values[rows])
    compute = float(np.exp(np.mean(np.log(flops[rows]))))
    fit = fit_curve(points, "log-quadratic", seed=seed, draws=draws, level=level)
    nothing = np.full(draws, np.nan)
    if isinstance(fit, NotFitted):
        return IsoFlop(compute, rows, points, fit, None, fit.reason, nothing)
    x, drawn = vertex(fit, better=better)
    if x is None:
        return IsoFlop(compute, rows, points, fit, None, "the curve has no best size", nothing)
    if not points.levels[0] < x < points.levels[-1]:
        return IsoFlop(
            compute, rows, points, fit, None, "the best size is not among those measured", nothing
        )
    low, high = np.nanquantile(drawn, fit.tails)
    return IsoFlop(compute, rows, points, fit, Estimate(x, float(low), float(high)), None, drawn)
