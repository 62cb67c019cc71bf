"""Whether two runs differ by more than chance, on the same queries.

The difference of a query is our value less the other run's. Its mean gets a percentile bootstrap
interval over queries, and a p-value by randomisation: where the runs do not differ, swapping the
two values of a query changes nothing, so every difference is as likely to have the other sign
(Fisher 1935; for retrieval Smucker et al., CIKM 2007). Several sets are judged together, so their
p-values are raised by Holm's method (1979), which bounds the chance of even one false claim.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.metrics import Interval, bootstrap_means, interval_of

DRAWS = 100_000
_BOOTSTRAP_DRAWS = 2000
_TOLERANCE = 1e-12  # two sums of the same values in another order


class PairedTest(NamedTuple):
    """A mean difference with its 95% interval, and the two-sided p-value that it is nothing.

    wins, losses: queries on which ours is better, worse. adjusted: the p-value after Holm's
    method over the family it was tested in; the p-value itself where it was tested alone.
    """

    difference: Interval
    p: float
    adjusted: float
    wins: int
    losses: int


def paired_test(
    ours: np.ndarray, theirs: np.ndarray, *, seed: int, draws: int = DRAWS
) -> PairedTest:
    """Compares two runs on one set.

    Args:
      ours: float [Q], one value a query.
      theirs: float [Q], the other run's on the same queries in the same order.
      seed: of the resamples and of the swaps.
      draws: random swaps. Where all differences have one size (as hits have) none are drawn: the
        p-value is then that of the sign test, exactly.

    Raises:
      MarvelError: another number of values, or none.
    """
    difference = _differences(ours, theirs)
    mean = float(difference.mean())
    means = bootstrap_means(difference, seed=seed, draws=_BOOTSTRAP_DRAWS)
    sizes = np.unique(np.abs(difference[difference != 0]))
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    if len(sizes) == 0:
        p = 1.0
    elif len(sizes) == 1:
        p = float(stats.binomtest(wins, wins + losses).pvalue)
    else:
        p = _p_value(mean, _swapped_means(difference, seed=seed, draws=draws))
    return PairedTest(interval_of(mean, means), p, p, wins, losses)


def paired_mean_test(
    ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray], *, seed: int, draws: int = DRAWS
) -> PairedTest:
    """Compares two runs by their mean over sets, in which every set weighs the same.

    Queries are resampled, and swapped, within each set. Arguments as in `paired_test`, a set an
    entry.
    """
    differences = [_differences(*pair) for pair in zip(ours, theirs, strict=True)]
    seeds = np.random.SeedSequence(seed).generate_state(2 * len(differences))
    mean = float(np.mean([one.mean() for one in differences]))
    resampled = np.zeros(_BOOTSTRAP_DRAWS)
    swapped = np.zeros(draws)
    for number, one in enumerate(differences):
        resampled += bootstrap_means(one, seed=int(seeds[2 * number]), draws=_BOOTSTRAP_DRAWS)
        swapped += _swapped_means(one, seed=int(seeds[2 * number + 1]), draws=draws)
    count = len(differences)
    p = _p_value(mean, swapped / count)
    wins = sum(int((one > 0).sum()) for one in differences)
    losses = sum(int((one < 0).sum()) for one in differences)
    return PairedTest(interval_of(mean, resampled / count), p, p, wins, losses)


def holm(tests: Sequence[PairedTest]) -> list[PairedTest]:
    """The same tests with `adjusted` set for the family that they are."""
    order = sorted(range(len(tests)), key=lambda place: tests[place].p)
    adjusted = [1.0] * len(tests)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(tests) - rank) * tests[place].p))
        adjusted[place] = highest
    return [test._replace(adjusted=value) for test, value in zip(tests, adjusted, strict=True)]


def _differences(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    if len(ours) != len(theirs) or not len(ours):
        raise MarvelError(
            f"A paired test needs the same queries twice: found {len(ours)} and {len(theirs)} "
            "values."
        )
    return np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)


def _swapped_means(difference: np.ndarray, *, seed: int, draws: int) -> np.ndarray:
    """Float64 [draws]: means of the differences under random signs.

    Of n differences of one size, the number that keep their sign is binomial, so the draws are
    made by size and not by query: hits have one size, whatever the number of queries.
    """
    sizes, counts = np.unique(np.abs(difference[difference != 0]), return_counts=True)
    rng = np.random.default_rng(seed)
    total = np.zeros(draws)
    for size, count in zip(sizes, counts, strict=True):
        total += size * (2.0 * rng.binomial(count, 0.5, size=draws) - count)
    return total / len(difference)


def _p_value(mean: float, swapped: np.ndarray) -> float:
    """The share of swaps at least as far from nothing, the observed one counted among them."""
    extreme = int((np.abs(swapped) >= abs(mean) - _TOLERANCE).sum())
    return (extreme + 1) / (len(swapped) + 1)
