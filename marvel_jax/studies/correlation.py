"""Whether the loss tells of the score: over all trials, and among trials that are alike.

Over all trials the two may go together only because an axis moves both, or apart although they go
together at every level of it (Simpson's paradox): a larger batch has a larger InfoNCE loss, for
there is more to tell apart, and yet a better model. So both are looked at.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from marvel_jax.errors import MarvelError
from marvel_jax.studies.points import Estimate

LEVEL = 0.9
DRAWS = 1000
LEAST = 5
"""Fewer trials have a correlation of anything."""


class Correlation(NamedTuple):
    """Pearson's and Spearman's, with bootstrap intervals over trials.

    dropped: the share of draws in which one of the two did not vary, so that there was none.
    """

    pearson: Estimate
    spearman: Estimate
    trials: int
    dropped: float


class NotCorrelated(NamedTuple):
    """A correlation that there is none of, and why."""

    reason: str


class Within(NamedTuple):
    """The correlation among trials of one value of an axis.

    levels: each value with its own. pooled: all trials, each less the mean of its level.
    opposite: the pooled sign is another than that over all trials; sure: and neither interval
    holds 0.
    """

    axis: str
    levels: tuple[tuple[Hashable, Correlation | NotCorrelated], ...]
    pooled: Correlation | NotCorrelated
    opposite: bool
    sure: bool


def correlate(
    x: np.ndarray,
    y: np.ndarray,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> Correlation | NotCorrelated:
    """Correlates two figures of the same trials, float [N] each.

    Raises:
      MarvelError: another number of one than of the other, or a figure that is not finite.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.shape != y.shape or x.ndim != 1 or not np.all(np.isfinite([x, y])):
        raise MarvelError("A correlation asks for two finite figures of each trial.")
    if len(x) < LEAST:
        return NotCorrelated(f"{len(x)} trials, and a correlation asks for {LEAST}")
    if bool(_flat(x)) or bool(_flat(y)):
        return NotCorrelated("one of the two is the same in all trials")
    rows = np.random.default_rng(seed).integers(len(x), size=(draws, len(x)))
    drawn_x, drawn_y = x[rows], y[rows]
    varied = ~(_flat(drawn_x) | _flat(drawn_y))
    drawn_x, drawn_y = drawn_x[varied], drawn_y[varied]
    tails = ((1 - level) / 2, (1 + level) / 2)

    def estimate(a: np.ndarray, b: np.ndarray, many_a: np.ndarray, many_b: np.ndarray) -> Estimate:
        low, high = np.quantile(_pearson(many_a, many_b), tails)
        return Estimate(float(_pearson(a, b)), float(low), float(high))

    ranks = (stats.rankdata(one, axis=-1) for one in (x, y, drawn_x, drawn_y))
    return Correlation(
        pearson=estimate(x, y, drawn_x, drawn_y),
        spearman=estimate(*ranks),
        trials=len(x),
        dropped=float(1 - varied.mean()),
    )


def correlate_within(
    x: np.ndarray,
    y: np.ndarray,
    *,
    axis: str,
    values: Sequence[Hashable],
    seed: int = 0,
    draws: int = DRAWS,
) -> Within:
    """Correlates two figures among trials of one value of an axis.

    Args:
      x: float [N], one figure of each trial.
      y: float [N], the other.
      axis: its name.
      values: N, each trial's place on it.
      seed: of the bootstraps.
      draws: of each bootstrap.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    places: dict[Hashable, list[int]] = {}
    for row, value in enumerate(values):
        places.setdefault(value, []).append(row)
    centered_x, centered_y = x.copy(), y.copy()
    levels = []
    for value, rows in places.items():
        levels.append((value, correlate(x[rows], y[rows], seed=seed, draws=draws)))
        # What is alone in its level is 0 after this, and says nothing; nor does what does not vary.
        for figures, centered in ((x, centered_x), (y, centered_y)):
            own = figures[rows]
            centered[rows] = 0 if _flat(own) else own - own.mean()
    kept = [row for rows in places.values() if len(rows) > 1 for row in rows]
    pooled = correlate(centered_x[kept], centered_y[kept], seed=seed, draws=draws)
    over_all = correlate(x, y, seed=seed, draws=draws)
    opposite = sure = False
    if isinstance(pooled, Correlation) and isinstance(over_all, Correlation):
        opposite = pooled.pearson.value * over_all.pearson.value < 0
        sure = opposite and all(
            one.low * one.high > 0 for one in (pooled.pearson, over_all.pearson)
        )
    return Within(axis, tuple(levels), pooled, opposite, sure)


def _flat(values: np.ndarray) -> np.ndarray:
    """Whether values do not vary along the last axis, up to the digits of a float."""
    return np.ptp(values, axis=-1) <= 1e-12 * np.abs(values).max(axis=-1)


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    size = np.sqrt((x**2).sum(axis=-1) * (y**2).sum(axis=-1))
    return np.clip((x * y).sum(axis=-1) / size, -1, 1)
