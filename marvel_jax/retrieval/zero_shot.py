"""Tests of a set (`data.protocols`): what each query finds in the pool or its gallery, and scores.

Equal scores are ordered by id in a shared pool. In a query's own gallery a right answer that scores
as a wrong one stands behind it: a model that embeds everything alike chooses nothing.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marvel_jax.data.protocols.protocol import Answers, Metric, Test
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import exact, metrics
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.retrieval_sets import QueryVectors
from marvel_jax.retrieval.store import VectorStore

DEPTH = 50
"""Results of a query that are kept at least, as a submission has."""


class Ranked(NamedTuple):
    """What a test's queries found, best first, as rows of the store.

    right: each query's right answers; one without a vector has a row behind the store's last.
    sizes: int [Q], how many candidates each query ranked.
    """

    found: TopK
    right: list[np.ndarray]
    sizes: np.ndarray


@dataclass(frozen=True)
class TestScores:
    """One test's scores by metric and cut ("R@5"); `main` is the label by which it is compared.

    pool: candidates, or the mean size of galleries. chance: of hits only. missing: of queries and
    candidates, those without a vector, which find nothing and are never found.
    """

    __test__ = False

    name: str
    main: str
    num_queries: int
    pool: float
    own_galleries: bool
    scores: dict[str, Interval]
    chance: dict[str, float]
    missing: int = 0


@dataclass(frozen=True)
class GroupScores:
    """The plain mean of the main score over the tests of a group that are there, of `of` in all."""

    name: str
    tests: tuple[str, ...]
    of: int
    score: Interval


def rank(
    test: Test,
    queries: QueryVectors,
    store: VectorStore,
    *,
    depth: int = DEPTH,
    missing: Collection[str] = (),
) -> Ranked:
    """The best candidates of every query, at least `depth` where there are so many.

    Args:
      test: its answers in the order of the queries.
      queries: float32 [Q, D] or a store; a row of zeros finds nothing.
      store: the vectors of the collection that is sought.
      depth: how many to keep in a shared pool; a gallery is ranked as a whole.
      missing: ids that may lack a vector.

    Raises:
      MarvelError: another number of queries, an id without a vector, or galleries for some queries
        only.
    """
    answers = test.answers
    if len(queries) != len(answers):
        raise MarvelError(f"{test.name}: {len(queries)} query vectors for {len(answers)} queries.")
    vectors = store.fit(queries.vectors() if isinstance(queries, VectorStore) else queries)
    absent = frozenset(missing)
    own = [one.gallery is not None for one in answers]
    if any(own) and not all(own):
        raise MarvelError(f"{test.name}: some queries have a gallery and some have none.")
    right = _rows([one.right for one in answers], store, absent)
    if any(own):
        galleries = _rows([one.gallery or () for one in answers], store, absent)
        found = _within(vectors, store, galleries, right)
        sizes = np.array([len(rows) for rows in galleries])
    else:
        shown = _rows([one.shown for one in answers], store, absent)
        found = _among_all(vectors, store, shown, depth)
        sizes = np.array([len(store) - np.count_nonzero(rows < len(store)) for rows in shown])
    nothing = ~vectors.any(axis=1)
    found.indices[nothing], found.scores[nothing] = -1, -np.inf
    return Ranked(found, right, sizes)


def _rows(
    ids: Sequence[Sequence[str]], store: VectorStore, absent: frozenset[str]
) -> list[np.ndarray]:
    """Rows of the store; an id without a vector has one of its own behind the last."""
    flat = [id for some in ids for id in some]
    rows = np.arange(len(store), len(store) + len(flat))
    there = np.array([id not in absent for id in flat], bool)
    if there.any():
        rows[there] = store.rows_of([id for id in flat if id not in absent])
    return np.split(rows, np.cumsum([len(some) for some in ids])[:-1])


def _within(
    vectors: np.ndarray,
    store: VectorStore,
    galleries: Sequence[np.ndarray],
    right: Sequence[np.ndarray],
) -> TopK:
    """Each query's gallery in order; a wrong answer stands before a right one of the same score."""
    width = max(len(rows) for rows in galleries)
    indices = np.full((len(galleries), width), -1, np.int32)
    for query, rows in enumerate(galleries):
        kept = rows[rows < len(store)]
        indices[query, : len(kept)] = kept
    found = exact.rescore(vectors, store, indices, k=width, rank=store.id_rank)
    is_right = metrics.relevance(found.indices, right)
    order = np.lexsort((is_right, -found.scores), axis=-1)  # stable: else by id, as it was
    return TopK(
        np.take_along_axis(found.scores, order, axis=1),
        np.take_along_axis(found.indices, order, axis=1),
    )


def _among_all(
    vectors: np.ndarray, store: VectorStore, shown: Sequence[np.ndarray], depth: int
) -> TopK:
    """The best `depth` of the store but for what was shown."""
    spare = max(len(rows) for rows in shown)
    found = exact.top_k(vectors, store, min(depth + spare, len(store)))
    if not spare:
        return found
    scores = np.full((len(vectors), depth), -np.inf, np.float32)
    indices = np.full((len(vectors), depth), -1, np.int32)
    for query, rows in enumerate(shown):
        kept = np.flatnonzero(~np.isin(found.indices[query], rows))[:depth]
        scores[query, : len(kept)] = found.scores[query, kept]
        indices[query, : len(kept)] = found.indices[query, kept]
    return TopK(scores, indices)


def values(ranked: Ranked, answers: Sequence[Answers], metric: Metric, cut: int) -> np.ndarray:
    """Float64 [Q]: a metric of every query at a cut."""
    judged = metrics.judge(ranked.found.indices, ranked.right)
    if metric.kind == "hit":
        return judged.hit(cut)
    if metric.kind == "average_precision":
        first = judged.right[:, :cut]
        precision = np.cumsum(first, axis=1) / np.arange(1, first.shape[1] + 1)
        return (precision * first).sum(axis=1) / np.minimum(judged.counts, cut)
    return _ndcg(ranked, answers, cut)


def _ndcg(ranked: Ranked, answers: Sequence[Answers], cut: int) -> np.ndarray:
    discounts = 1.0 / np.log2(np.arange(cut) + 2)
    found = np.zeros(len(answers))
    for query, (one, right) in enumerate(zip(answers, ranked.right, strict=True)):
        grades = np.array(one.grades or (1,) * len(one.right), np.float64)
        gain = dict(zip(right.tolist(), grades.tolist(), strict=True))
        gains = [gain.get(row, 0.0) for row in ranked.found.indices[query, :cut].tolist()]
        best = np.sort(grades)[::-1][:cut]
        found[query] = np.array(gains) @ discounts[: len(gains)] / (best @ discounts[: len(best)])
    return found


def score(
    test: Test,
    metric: Metric,
    ranked: Ranked,
    *,
    seed: int,
    missing: int = 0,
) -> tuple[TestScores, np.ndarray]:
    """A test's scores with 95% bootstrap intervals, and draws of its main one for groups."""
    scores, chance = {}, {}
    for cut in metric.cuts:
        label = metric.label(cut)
        found = values(ranked, test.answers, metric, cut)
        scores[label] = metrics.bootstrap_interval(found, seed=seed)
        if metric.kind == "hit":
            chance[label] = float(_chance(ranked, cut).mean())
    main = values(ranked, test.answers, metric, metric.main)
    made = TestScores(
        name=test.name,
        main=metric.label(metric.main),
        num_queries=len(test.answers),
        pool=float(ranked.sizes.mean()),
        own_galleries=test.answers[0].gallery is not None,
        scores=scores,
        chance=chance,
        missing=missing,
    )
    return made, metrics.bootstrap_means(main, seed=seed)


def _chance(ranked: Ranked, cut: int) -> np.ndarray:
    counts = np.array([len(set(rows.tolist())) for rows in ranked.right])
    chance = np.zeros(len(counts))
    for size in np.unique(ranked.sizes):
        those = ranked.sizes == size
        # Pictures that could not be read may leave fewer candidates than answers.
        fitting = np.minimum(counts[those], size)
        chance[those] = metrics.chance_hit_at_k(int(size), fitting, cut)
    return chance


def group(
    groups: Mapping[str, Sequence[str]],
    scored: Sequence[tuple[TestScores, np.ndarray]],
) -> tuple[GroupScores, ...]:
    """Means over tests, which are resampled independently. A group without any is left out."""
    by_name = {one.name: (one, draws) for one, draws in scored}
    found = []
    for name, tests in groups.items():
        there = [by_name[test] for test in tests if test in by_name]
        if there:
            mean = float(np.mean([one.scores[one.main].mean for one, _ in there]))
            draws = np.mean([draws for _, draws in there], axis=0)
            names = tuple(one.name for one, _ in there)
            interval = metrics.interval_of(mean, draws)
            found.append(GroupScores(name, names, len(tests), interval))
    return tuple(found)
