"""The M-BEIR protocol: every test set against its own pool (local) and the union pool (global).

It takes vectors, not models: queries encoded with their instruction, and one store that holds
the candidates of every pool. The score of a set is hit@k (k = 5, or 10 for Fashion200K and
FashionIQ), the score of a benchmark the plain mean over sets. In the global pool an answer of
another modality than was asked for is a miss. (UniIR, Wei et al., 2024.)
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from marvel_jax.data.mbeir import TestSet
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import metrics
from marvel_jax.retrieval.exact import TopK, top_k
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.scann_index import (
    ScannIndex,
    Speed,
    describe,
    measure,
    recall_against_exact,
)
from marvel_jax.retrieval.store import VectorStore

CUTS = (1, 5, 10)
_ANN_K = 10
_TIMED_QUERIES = 512


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """One test set: queries with the ids of their right answers, and the pool they are sought in.

    task: e.g. "t->i". k: the cut of the set's main score. candidate_modality: "text", "image" or
    "image,text", what the instruction asks for.
    """

    name: str
    task: str
    k: int
    candidate_modality: str
    query_ids: Sequence[str]
    relevant: Sequence[Sequence[str]]
    pool: Sequence[str]

    @classmethod
    def of(cls, test_set: TestSet) -> "RetrievalSet":
        """A test set of an M-BEIR folder, with its local pool."""
        query_ids = [query.id for query in test_set.queries]
        return cls(
            name=test_set.name,
            task=test_set.task.name,
            k=test_set.k,
            candidate_modality=test_set.task.candidate_modality,
            query_ids=query_ids,
            relevant=[sorted(test_set.qrels.get(query, ())) for query in query_ids],
            pool=[candidate.id for candidate in test_set.pool],
        )


@dataclasses.dataclass(frozen=True)
class PoolScores:
    """The scores of one test set in one pool; cuts are the keys of hit, recall and chance."""

    size: int
    hit: dict[int, Interval]
    chance: dict[int, float]
    recall: dict[int, Interval]
    mrr: Interval
    ndcg: Interval
    wrong_modality: float | None = None


@dataclasses.dataclass(frozen=True)
class SetScores:
    """One test set: `k` is the cut of its main score, in both pools."""

    name: str
    task: str
    k: int
    num_queries: int
    local_pool: PoolScores
    global_pool: PoolScores


@dataclasses.dataclass(frozen=True)
class ApproximateScores:
    """ScaNN in the global pool beside exact search: recall@10 and milliseconds a query."""

    description: str
    build_seconds: float
    recall: float
    recall_by_set: dict[str, float]
    speed: Speed
    exact_speed: Speed


@dataclasses.dataclass(frozen=True)
class Rankings:
    """What was retrieved for a set's queries, for examples: TopK over rows of the store."""

    local_pool: TopK
    global_pool: TopK


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything that one model scored."""

    sets: tuple[SetScores, ...]
    mean_local: Interval
    mean_global: Interval
    instruction_choice: str
    approximate: ApproximateScores | None
    rankings: dict[str, Rankings]

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain JSON-able values, without the rankings."""
        return {
            "mean_local": self.mean_local._asdict(),
            "mean_global": self.mean_global._asdict(),
            "instruction_choice": self.instruction_choice,
            "sets": [_plain(dataclasses.asdict(scores)) for scores in self.sets],
            "approximate": _plain(dataclasses.asdict(self.approximate))
            if self.approximate
            else None,
        }


def evaluate(
    sets: Sequence[RetrievalSet],
    query_vectors: Mapping[str, np.ndarray],
    store: VectorStore,
    *,
    instruction_choice: str,
    index: ScannIndex | None = None,
    modality_of: Callable[[str], str] | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Scores every set in its local pool and in the union of all candidates of the store.

    Args:
      sets: the test sets; every id of their pools and answers must be in the store.
      query_vectors: set name -> float32 [Q, D], in the order of the set's `query_ids`.
      store: vectors of all candidates of all pools.
      instruction_choice: how each query's instruction was chosen, in words; part of the result.
      index: a ScaNN index of the store, measured against exact search.
      modality_of: candidate id -> modality; gives the share of wrong-modality answers.
      seed: of the bootstrap.
      progress: told each set's name before it is searched.

    Raises:
      MarvelError: a set lacks vectors, has none or too many of them, has a query without a right
        answer in its pool, or a pool smaller than the largest cut.
    """
    if not sets:
        raise MarvelError("There is no test set to evaluate.")
    scores: list[SetScores] = []
    rankings: dict[str, Rankings] = {}
    local_draws: list[np.ndarray] = []
    global_draws: list[np.ndarray] = []
    for number, test_set in enumerate(sets):
        if progress:
            progress(test_set.name)
        vectors = _vectors_of(test_set, query_vectors)
        pool, relevant = _rows_of(test_set, store)
        depth = max(*CUTS, test_set.k)
        if len(pool) < depth:
            raise MarvelError(
                f"{test_set.name}: the metrics look at the first {depth} results, but k={depth} "
                f"is larger than the pool of {len(pool)} candidates. Give it a larger pool."
            )
        local = top_k(vectors, store, depth, subset=pool)
        union = top_k(vectors, store, depth)
        rankings[test_set.name] = Rankings(local, union)
        wrong = _wrong_modality(test_set, union.indices, store, modality_of)
        set_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        score = partial(_score, relevant=relevant, k=test_set.k, seed=set_seed)
        scores.append(
            SetScores(
                name=test_set.name,
                task=test_set.task,
                k=test_set.k,
                num_queries=len(vectors),
                local_pool=score(local.indices, size=len(pool)),
                global_pool=score(union.indices, size=len(store), wrong_modality=wrong),
            )
        )
        for ranking, draws in ((local, local_draws), (union, global_draws)):
            hits = metrics.hit_at_k(ranking.indices, relevant, test_set.k)
            draws.append(metrics.bootstrap_means(hits, seed=set_seed))
    return Evaluation(
        sets=tuple(scores),
        mean_local=_mean([s.local_pool.hit[s.k] for s in scores], local_draws),
        mean_global=_mean([s.global_pool.hit[s.k] for s in scores], global_draws),
        instruction_choice=instruction_choice,
        approximate=_approximate(sets, query_vectors, rankings, index) if index else None,
        rankings=rankings,
    )


def _score(
    indices: np.ndarray,
    *,
    relevant: Sequence[np.ndarray],
    size: int,
    k: int,
    seed: int,
    wrong_modality: float | None = None,
) -> PoolScores:
    cuts = sorted({*CUTS, k})
    counts = [len(rows) for rows in relevant]

    def interval(values: np.ndarray) -> Interval:
        return metrics.bootstrap_interval(values, seed=seed)

    return PoolScores(
        size=size,
        hit={cut: interval(metrics.hit_at_k(indices, relevant, cut)) for cut in cuts},
        chance={cut: float(metrics.chance_hit_at_k(size, counts, cut).mean()) for cut in cuts},
        recall={cut: interval(metrics.recall_at_k(indices, relevant, cut)) for cut in cuts},
        mrr=interval(metrics.reciprocal_rank(indices, relevant, cuts[-1])),
        ndcg=interval(metrics.ndcg_at_k(indices, relevant, cuts[-1])),
        wrong_modality=wrong_modality,
    )


def _mean(main: Sequence[Interval], draws: Sequence[np.ndarray]) -> Interval:
    # Sets are resampled independently, and their means averaged draw by draw.
    return metrics.interval_of(float(np.mean([m.mean for m in main])), np.mean(draws, axis=0))


def _vectors_of(test_set: RetrievalSet, query_vectors: Mapping[str, np.ndarray]) -> np.ndarray:
    vectors = query_vectors.get(test_set.name)
    if vectors is None or len(vectors) != len(test_set.query_ids):
        found = "none" if vectors is None else str(len(vectors))
        raise MarvelError(
            f"{test_set.name}: expected {len(test_set.query_ids)} query vectors, found {found}."
        )
    if len(test_set.relevant) != len(test_set.query_ids) or not len(test_set.query_ids):
        raise MarvelError(
            f"{test_set.name}: {len(test_set.query_ids)} queries, answers for "
            f"{len(test_set.relevant)} of them: expected at least one query, and one list each."
        )
    return vectors


def _rows_of(test_set: RetrievalSet, store: VectorStore) -> tuple[np.ndarray, list[np.ndarray]]:
    """The pool's rows in the store, and for each query those of its right answers."""
    pool = np.unique(store.rows_of(list(test_set.pool)))
    answers = [list(dict.fromkeys(ids)) for ids in test_set.relevant]
    for query_id, ids in zip(test_set.query_ids, answers, strict=True):
        if not ids:
            raise MarvelError(
                f"{test_set.name}: query {query_id!r} has no relevant candidate. Remove it, or "
                "add its answer to the qrels."
            )
    rows = store.rows_of([answer for ids in answers for answer in ids])
    outside = np.flatnonzero(~np.isin(rows, pool))
    if outside.size:
        raise MarvelError(
            f"{test_set.name}: {store.ids[int(rows[outside[0]])]!r} is a right answer of a query "
            f"but not in the pool of {len(pool)} candidates ({outside.size} such answers)."
        )
    return pool, np.split(rows, np.cumsum([len(ids) for ids in answers])[:-1])


def _wrong_modality(
    test_set: RetrievalSet,
    indices: np.ndarray,
    store: VectorStore,
    modality_of: Callable[[str], str] | None,
) -> float | None:
    """The share of the first k answers in the global pool that are not of the modality asked."""
    if modality_of is None:
        return None
    rows, places = np.unique(indices[:, : test_set.k], return_inverse=True)
    asked = test_set.candidate_modality
    wrong = np.array([modality_of(store.ids[int(row)]) != asked for row in rows])
    return float(wrong[places].mean())


def _approximate(
    sets: Sequence[RetrievalSet],
    query_vectors: Mapping[str, np.ndarray],
    rankings: Mapping[str, Rankings],
    index: ScannIndex,
) -> ApproximateScores:
    recalls = {}
    for test_set in sets:
        whole = rankings[test_set.name].global_pool
        exact = TopK(whole.scores[:, :_ANN_K], whole.indices[:, :_ANN_K])
        found = index.search(query_vectors[test_set.name], _ANN_K)
        recalls[test_set.name] = recall_against_exact(found, exact)
    queries = np.concatenate([query_vectors[test_set.name] for test_set in sets])
    timed = queries[:: max(1, len(queries) // _TIMED_QUERIES)][:_TIMED_QUERIES]
    return ApproximateScores(
        description=describe(index.config),
        build_seconds=index.build_seconds,
        recall=float(np.concatenate(list(recalls.values())).mean()),
        recall_by_set={name: float(recall.mean()) for name, recall in recalls.items()},
        speed=measure(lambda part: index.search(part, _ANN_K), timed),
        exact_speed=measure(lambda part: top_k(part, index.store, _ANN_K), timed),
    )


def _plain(value: Any) -> Any:
    """Intervals and speeds become objects, cuts become string keys."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
