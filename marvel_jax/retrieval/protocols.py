"""The M-BEIR protocol: every test set against its own pool (local) and the union pool (global).

It takes vectors, not models: queries encoded with their instruction, and one store that holds
the candidates of every pool. The score of a set is hit@k (k = 5, or 10 for Fashion200K and
FashionIQ), the score of a benchmark the plain mean over sets. In the global pool an answer of
another modality than was asked for is a miss. (UniIR, Wei et al., 2024.)

An answer may be another data set's candidate (OVEN and InfoSeek share many): right in the global
pool, and none of the local one, whose recall, MRR, mAP and NDCG count the answers that it holds.

Beside it stand hit and recall at 1, 5, 10 and 50, MRR and mAP over the 50 results that are kept,
and NDCG@10. A pool of fewer candidates gives shorter lists; what is not there is not found.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import metrics, retrieval_sets
from marvel_jax.retrieval.exact import TopK, top_k
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.retrieval_sets import DEPTH as DEPTH
from marvel_jax.retrieval.retrieval_sets import QueryVectors, SetRows, search_asked
from marvel_jax.retrieval.retrieval_sets import Rankings as Rankings
from marvel_jax.retrieval.retrieval_sets import RetrievalSet as RetrievalSet
from marvel_jax.retrieval.scann_index import (
    ScannIndex,
    Speed,
    describe,
    measure,
    recall_against_exact,
)
from marvel_jax.retrieval.store import VectorStore

CUTS = (1, 5, 10, 50)
NDCG_CUT = 10
_ANN_K = 10
_TIMED_QUERIES = 512


@dataclasses.dataclass(frozen=True)
class PoolScores:
    """The scores of one test set in one pool; cuts are the keys of hit, recall and chance.

    mrr and average_precision (its mean is mAP) look at all `DEPTH` results, ndcg at ten.
    wrong_modality: the share of the first k answers that are not of the modality asked for.
    """

    size: int
    hit: dict[int, Interval]
    chance: dict[int, float]
    recall: dict[int, Interval]
    mrr: Interval
    ndcg: Interval
    average_precision: Interval
    wrong_modality: float | None = None


@dataclasses.dataclass(frozen=True)
class SetScores:
    """One test set: `k` is the cut of its main score, in both pools.

    missing: answers and candidates of its pool without a vector, which nothing can find.
    """

    name: str
    task: str
    k: int
    num_queries: int
    local_pool: PoolScores
    global_pool: PoolScores
    held_out: bool = False
    missing: int = 0


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """The plain mean of the main score over some sets, in both pools."""

    name: str
    sets: tuple[str, ...]
    local_pool: Interval
    global_pool: Interval


@dataclasses.dataclass(frozen=True)
class ApproximateScores:
    """ScaNN in the global pool beside exact search: recall@10 and milliseconds a query.

    hit: each set's main score by ScaNN's results.
    """

    description: str
    build_seconds: float
    recall: float
    recall_by_set: dict[str, float]
    speed: Speed
    exact_speed: Speed
    hit: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Everything that one model scored.

    by_task: the sets of each kind of task. by_protocol: "seen" and "held out", where some sets are
    held out. rankings, rows: what was retrieved, and where pools and answers are in the store.
    """

    sets: tuple[SetScores, ...]
    mean_local: Interval
    mean_global: Interval
    instruction_choice: str
    approximate: ApproximateScores | None
    rankings: dict[str, Rankings]
    by_task: tuple[GroupScores, ...] = ()
    by_protocol: tuple[GroupScores, ...] = ()
    rows: dict[str, SetRows] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The scores as plain JSON-able values, without the rankings."""
        return {
            "mean_local": self.mean_local._asdict(),
            "mean_global": self.mean_global._asdict(),
            "instruction_choice": self.instruction_choice,
            "sets": [plain(dataclasses.asdict(scores)) for scores in self.sets],
            "by_task": [plain(dataclasses.asdict(group)) for group in self.by_task],
            "by_protocol": [plain(dataclasses.asdict(group)) for group in self.by_protocol],
            "approximate": plain(dataclasses.asdict(self.approximate))
            if self.approximate
            else None,
        }


def evaluate(
    sets: Sequence[RetrievalSet],
    query_vectors: Mapping[str, QueryVectors],
    store: VectorStore,
    *,
    instruction_choice: str,
    index: ScannIndex | None = None,
    modality_of: Callable[[str], str] | None = None,
    missing: Collection[str] = (),
    rankings: Mapping[str, Rankings] | None = None,
    approximate: ApproximateScores | None = None,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Evaluation:
    """Scores every set in its local pool and in the union of all candidates of the store.

    Args:
      sets: the test sets; every id of their pools and answers must be in the store.
      query_vectors: set name -> float32 [Q, D] or a store, in the order of the set's `query_ids`;
        a row of zeros is a query without a vector, which finds nothing.
      store: vectors of all candidates of all pools.
      instruction_choice: how each query's instruction was chosen, in words; part of the result.
      index: a ScaNN index of the store, measured against exact search.
      modality_of: candidate id -> modality; gives the share of wrong-modality answers.
      missing: ids that may lack a vector: such a candidate is never found, such an answer counts.
      rankings: what was retrieved before for some of the sets, which are not searched again.
      approximate: what was measured of `index` before; it is not measured again.
      seed: of the bootstrap.
      progress: told what is searched next.

    Raises:
      MarvelError: there is no set or two of one name, or one lacks vectors, has too many of them,
        or has a query without a right answer in its pool.
    """
    names = [one.name for one in sets]
    if not names or len(set(names)) < len(names):
        raise MarvelError(f"Expected test sets of different names, found {names or 'none'}.")
    rows = {one.name: retrieval_sets.rows_of(one, store, missing=missing) for one in sets}
    left = [one for one in sets if one.name not in (rankings or {})]
    depth = max(DEPTH, *(one.k for one in sets))
    rankings = {
        **(rankings or {}),
        **retrieval_sets.search(left, query_vectors, store, rows, depth=depth, progress=progress),
    }
    scores: list[SetScores] = []
    draws: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    for number, one in enumerate(sets):
        found, set_seed = rankings[one.name], seed_of(seed, number)
        pool, answers = rows[one.name].pool, rows[one.name].by_pool
        judged = [
            metrics.judge(ranking.indices, relevant)
            for ranking, relevant in zip(found, answers, strict=True)
        ]
        pools = [
            score_pool(right, size=size, k=one.k, seed=set_seed, findable=_findable(some, store))
            for right, size, some in zip(judged, (len(pool), len(store)), answers, strict=True)
        ]
        wrong = wrong_modality(one, found.global_pool.indices, store, modality_of)
        unseen = set(missing).intersection(one.pool) if missing else set()
        scores.append(
            SetScores(
                name=one.name,
                task=one.task,
                k=one.k,
                num_queries=len(one.query_ids),
                local_pool=pools[0],
                global_pool=dataclasses.replace(pools[1], wrong_modality=wrong),
                held_out=one.held_out,
                missing=len(unseen),
            )
        )
        local, union = (
            metrics.bootstrap_means(one_pool.hit(one.k), seed=set_seed) for one_pool in judged
        )
        draws[one.name] = local, union
    every = _group("all", scores, draws)
    kinds = list(dict.fromkeys(one.task for one in scores))
    tasks = [_group(kind, [one for one in scores if one.task == kind], draws) for kind in kinds]
    parts = [
        (name, [one for one in scores if one.held_out == held])
        for name, held in (("seen", False), ("held out", True))
    ]
    return Evaluation(
        sets=tuple(scores),
        mean_local=every.local_pool,
        mean_global=every.global_pool,
        instruction_choice=instruction_choice,
        approximate=approximate
        or (_approximate(sets, query_vectors, rankings, rows, index) if index else None),
        rankings=dict(rankings),
        by_task=tuple(tasks),
        by_protocol=tuple(_group(name, part, draws) for name, part in parts if part)
        if parts[1][1]
        else (),
        rows=rows,
    )


def score_pool(
    judged: metrics.Judged, *, size: int, k: int, seed: int, findable: np.ndarray
) -> PoolScores:
    """Every metric of rankings in a pool of `size`; `findable`: int [Q], answers with a vector."""
    cuts = sorted({*CUTS, k})

    def interval(values: np.ndarray) -> Interval:
        return metrics.bootstrap_interval(values, seed=seed)

    return PoolScores(
        size=size,
        hit={cut: interval(judged.hit(cut)) for cut in cuts},
        chance={cut: float(metrics.chance_hit_at_k(size, findable, cut).mean()) for cut in cuts},
        recall={cut: interval(judged.recall(cut)) for cut in cuts},
        mrr=interval(judged.reciprocal_rank(cuts[-1])),
        ndcg=interval(judged.ndcg(NDCG_CUT)),
        average_precision=interval(judged.average_precision(cuts[-1])),
    )


def _findable(relevant: Sequence[np.ndarray], store: VectorStore) -> np.ndarray:
    return np.array([np.count_nonzero(answers < len(store)) for answers in relevant])


def seed_of(seed: int, number: int) -> int:
    """The bootstrap's seed for the set with this number."""
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def wrong_modality(
    test_set: RetrievalSet,
    indices: np.ndarray,
    store: VectorStore,
    modality_of: Callable[[str], str] | None,
) -> float | None:
    """The share of the first k answers in the global pool that are not of the modality asked."""
    if modality_of is None:
        return None
    first = indices[:, : test_set.k]
    rows, places = np.unique(first[first >= 0], return_inverse=True)
    asked = test_set.candidate_modality
    wrong = np.array([modality_of(store.ids[int(row)]) != asked for row in rows])
    return float(wrong[places].mean()) if len(rows) else 0.0


def plain(value: Any) -> Any:
    """Intervals and speeds become objects, cuts become string keys."""
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return plain(value._asdict())
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def _group(
    name: str,
    scores: Sequence[SetScores],
    draws: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> GroupScores:
    # Sets are resampled independently, and their means averaged draw by draw.
    local = [one.local_pool.hit[one.k].mean for one in scores]
    union = [one.global_pool.hit[one.k].mean for one in scores]
    resampled = [np.mean([draws[one.name][pool] for one in scores], axis=0) for pool in (0, 1)]
    return GroupScores(
        name=name,
        sets=tuple(one.name for one in scores),
        local_pool=metrics.interval_of(float(np.mean(local)), resampled[0]),
        global_pool=metrics.interval_of(float(np.mean(union)), resampled[1]),
    )


def _approximate(
    sets: Sequence[RetrievalSet],
    query_vectors: Mapping[str, QueryVectors],
    rankings: Mapping[str, Rankings],
    rows: Mapping[str, SetRows],
    index: ScannIndex,
) -> ApproximateScores:
    width = min(_ANN_K, len(index.store))
    recalls: dict[str, np.ndarray] = {}
    hits: dict[str, float] = {}
    timed: list[np.ndarray] = []
    every = max(1, sum(len(one.query_ids) for one in sets) // _TIMED_QUERIES)
    for one in sets:
        vectors = query_vectors[one.name]
        queries = vectors.vectors() if isinstance(vectors, VectorStore) else vectors
        whole = rankings[one.name].global_pool
        deep = min(max(one.k, width), len(index.store))
        found = search_asked(functools.partial(index.search, k=deep), queries, deep)
        first, exact = (
            TopK(some.scores[:, :width], some.indices[:, :width]) for some in (found, whole)
        )
        recalls[one.name] = recall_against_exact(first, exact)
        hits[one.name] = float(
            metrics.judge(found.indices, rows[one.name].relevant).hit(one.k).mean()
        )
        timed.append(np.array(queries[queries.any(axis=1)][::every]))
    sample = np.concatenate(timed)[:_TIMED_QUERIES]
    return ApproximateScores(
        description=describe(index.config),
        build_seconds=index.build_seconds,
        recall=_mean(np.concatenate(list(recalls.values()))),
        recall_by_set={name: _mean(recall) for name, recall in recalls.items()},
        speed=measure(lambda part: index.search(part, width), sample),
        exact_speed=measure(lambda part: top_k(part, index.store, width), sample),
        hit=hits,
    )


def _mean(recall: np.ndarray) -> float:
    return float(recall.mean()) if len(recall) else 0.0  # no query of the set could be read
