"""Retrieval metrics, one value a query, with bootstrap intervals and the score of chance.

A ranking is int [Q, K]: rows of the corpus, best first, none twice, -1 for none. `relevant` gives,
for each query, the rows that are right answers; one that can never be found has a row of its own
beyond the corpus. Every metric returns float64 [Q]; its mean is the score.

A list that is shorter than k simply ends, as in trec_eval: what is not there is not found. Right
answers that were not retrieved count in full, in recall, in average precision and in the ideal
gain of NDCG.
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


class Judged(NamedTuple):
    """Rankings held against their answers once, for any number of metrics.

    right: bool [Q, K], whether each retrieved row is a right answer. counts: int [Q], how many
    right answers there are, found or not.
    """

    right: np.ndarray
    counts: np.ndarray

    def hit(self, k: int) -> np.ndarray:
        """1 where any right answer is among the first k (what M-BEIR calls Recall@k), else 0."""
        return np.any(self._first(k), axis=1).astype(np.float64)

    def recall(self, k: int) -> np.ndarray:
        """The share of a query's right answers that is among the first k."""
        found = np.count_nonzero(self._first(k), axis=1)
        return np.asarray(found / self.counts)

    def reciprocal_rank(self, k: int) -> np.ndarray:
        """1 / rank of the first right answer among the first k, 0 where there is none (MRR@k)."""
        right = self._first(k)
        return np.where(right.any(axis=1), 1.0 / (right.argmax(axis=1) + 1), 0.0)

    def ndcg(self, k: int) -> np.ndarray:
        """Normalised discounted cumulative gain of the first k, with gains of 0 and 1."""
        right = self._first(k)
        discounts = 1.0 / np.log2(np.arange(k) + 2)
        best = np.cumsum(discounts)
        return (right @ discounts[: right.shape[1]]) / best[np.minimum(self.counts, k) - 1]

    def average_precision(self, k: int) -> np.ndarray:
        """The precision at each right answer among the first k, summed over all right answers
        there are, found or not (MAP@k of trec_eval; the mean over queries is mAP).
        """
        right = self._first(k)
        precision = np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
        return (precision * right).sum(axis=1) / self.counts

    def _first(self, k: int) -> np.ndarray:
        if k < 1:
            raise MarvelError(f"k={k}: a metric looks at 1 result or more.")
        return self.right[:, :k]


def judge(indices: np.ndarray, relevant: Sequence[np.ndarray]) -> Judged:
    """Holds rankings [Q, K] against each query's right answers; an answer given twice counts once.

    Raises:
      MarvelError: another number of queries, or a query without a right answer.
    """
    right = relevance(indices, relevant)
    return Judged(right, np.array([len(set(rows.tolist())) for rows in relevant]))


def relevance(indices: np.ndarray, relevant: Sequence[np.ndarray]) -> np.ndarray:
    """Bool [Q, K]: whether each retrieved row is a right answer.

    Raises:
      MarvelError: another number of queries, or a query without a right answer.
    """
    if len(indices) != len(relevant):
        raise MarvelError(f"{len(indices)} rankings, but answers for {len(relevant)} queries.")
    if not len(relevant):
        return np.zeros(indices.shape, bool)
    counts = np.array([len(rows) for rows in relevant])
    if not counts.all():
        query = int(np.argmin(counts))
        raise MarvelError(f"Query {query} has no relevant candidate: it cannot be scored.")
    answers = np.concatenate(relevant)
    # One number for each (query, row), so that one look-up serves all queries. The row after the
    # last is nobody's, and that is where -1 of the next query falls.
    width = int(max(answers.max(), indices.max(initial=-1))) + 2
    keys = np.repeat(np.arange(len(relevant)), counts) * width + answers
    return np.isin(np.arange(len(relevant))[:, None] * width + indices, keys)


def hit_at_k(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """`Judged.hit` of rankings."""
    return judge(indices, relevant).hit(k)


def recall_at_k(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """`Judged.recall` of rankings."""
    return judge(indices, relevant).recall(k)


def reciprocal_rank(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """`Judged.reciprocal_rank` of rankings."""
    return judge(indices, relevant).reciprocal_rank(k)


def ndcg_at_k(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """`Judged.ndcg` of rankings."""
    return judge(indices, relevant).ndcg(k)


def average_precision(indices: np.ndarray, relevant: Sequence[np.ndarray], k: int) -> np.ndarray:
    """`Judged.average_precision` of rankings."""
    return judge(indices, relevant).average_precision(k)


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

    1 - C(N - R, k) / C(N, k) for R right answers in a pool of N; with k beyond the pool all of it
    is drawn.

    Raises:
      MarvelError: more right answers than candidates.
    """
    counts = np.asarray(relevant_counts, dtype=np.float64)
    if counts.max() > pool:
        raise MarvelError(f"{counts.max():.0f} relevant candidates do not fit in a pool of {pool}.")
    draws = np.arange(min(k, pool))
    missed = np.maximum(pool - counts[:, None] - draws, 0) / (pool - draws)
    return 1.0 - missed.prod(axis=1)
