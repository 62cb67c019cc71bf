"""Retrieval metrics, one value a query, with bootstrap intervals and the score of chance.

A ranking is int [Q, K]: rows of the corpus, best first, -1 for none. `relevant` gives, for each
query, the rows that are right answers. Every metric returns float64 [Q]; its mean is the score.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError

_DRAW_ELEMENTS = 1 << 22


class Interval(NamedTuple):
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float


def relevance(indices: np.ndarray, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """Bool [Q, K]: whether each retrieved row is a right answer.

    Raises:
      MarvelError: another number of queries, or a query without a right answer.
    """
    if len(indices) != len(relevant):
        raise MarvelError(f"{len(indices)} rankings, but answers for {len(relevant)} queries.")
    counts = np.array([len(rows) for rows in relevant])
    if not counts.all():
        query = int(np.argmin(counts))
        raise MarvelError(f"Query {query} has no relevant candidate: it cannot be scored.")
    answers = np.concatenate(relevant)
    # One number for each (query, row), so that one look-up serves all queries. The row after the
    # last is nobody's, and that is where -1 of the next query falls.
    width = int(max(answers.max(), indices.max())) + 2
    keys = np.repeat(np.arange(len(relevant)), counts) * width + answers
    return np.isin(np.arange(len(relevant))[:, None] * width + indices, keys)


def hit_at_k(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """1 where any right answer is among the first k (what M-BEIR calls Recall@k), else 0."""
    return np.any(relevance(_first(indices, k), relevant), axis=1).astype(np.float64)


def recall_at_k(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """The share of a query's right answers that is among the first k."""
    found: np.ndarray = relevance(_first(indices, k), relevant).sum(axis=1)
    return found / _distinct(relevant)


def reciprocal_rank(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """1 / rank of the first right answer among the first k, 0 where there is none (MRR@k)."""
    right = relevance(_first(indices, k), relevant)
    return np.where(right.any(axis=1), 1.0 / (right.argmax(axis=1) + 1), 0.0)


def ndcg_at_k(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Normalised discounted cumulative gain of the first k, with gains of 0 and 1."""
    discounts = 1.0 / np.log2(np.arange(k) + 2)
    gained = relevance(_first(indices, k), relevant) @ discounts
    best = np.cumsum(discounts)
    return gained / best[np.minimum(_distinct(relevant), k) - 1]


def bootstrap_means(values: np.ndarray, *, seed: int, draws: int = 2000) -> np.ndarray:
    """Float64 [draws]: means of resamples of the queries with replacement.

    How often each distinct value is drawn is multinomial, so the draws are made by value and not
    by query: the same distribution, and cheap for hits, which take two values.
    """
    distinct, counts = np.unique(values, return_counts=True)
    rng = np.random.default_rng(seed)
    share = counts / counts.sum()
    step = max(1, _DRAW_ELEMENTS // len(distinct))
    sizes = [min(step, draws - start) for start in range(0, draws, step)]
    sums = [rng.multinomial(len(values), share, size=size) @ distinct for size in sizes]
    return np.concatenate(sums) / len(values)


def bootstrap_interval(
    values: np.ndarray, *, seed: int, draws: int = 2000, level: float = 0.95
) -> Interval:
    """The mean of per-query values with its percentile bootstrap interval over queries."""
    return interval_of(
        float(np.mean(values)), bootstrap_means(values, seed=seed, draws=draws), level
    )


def interval_of(mean: float, means: np.ndarray, level: float = 0.95) -> Interval:
    """The percentile interval of resampled means around the mean of the sample itself."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def chance_hit_at_k(pool: int, relevant_counts: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """Float64 [Q]: the chance that k random candidates of the pool hold a right one.

    1 - C(N - R, k) / C(N, k) for R right answers in a pool of N.
    """
    counts = np.asarray(relevant_counts, dtype=np.float64)
    if k > pool or counts.max() > pool:
        raise MarvelError(f"k={k} and {counts.max():.0f} relevant do not fit in a pool of {pool}.")
    draws = np.arange(k)
    missed = np.maximum(pool - counts[:, None] - draws, 0) / (pool - draws)
    return 1.0 - missed.prod(axis=1)


def _distinct(relevant: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([len(set(rows.tolist())) for rows in relevant])


def _first(indices: np.ndarray, k: int) -> np.ndarray:
    if not 1 <= k <= indices.shape[1]:
        raise MarvelError(f"k={k}, but {indices.shape[1]} results were retrieved for each query.")
    return indices[:, :k]
