"""What a smaller store and a faster search cost in score: dimension x type x search."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.retrieval import metrics
from marvel_jax.retrieval.analysis import JudgedSet
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.searcher import Searcher
from marvel_jax.retrieval.store import VectorStore

RECALL_AT = 10
_TIMED = 512
_BOOTSTRAP_DRAWS = 2000


class TradeoffPoint(NamedTuple):
    """One way to keep and search the candidates.

    search: "exact" or the index's setting. bytes_per_vector: of the store. score: the mean over
    sets of hit@k in the pool of everything. recall: of the ten nearest by exact search of the
    evaluation's store. milliseconds: a query, in a batch.
    """

    dtype: str
    dimension: int
    search: str
    bytes_per_vector: int
    gigabytes: float
    score: Interval
    recall: float
    milliseconds: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return self._asdict() | {"score": self.score._asdict()}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> "TradeoffPoint":
        """What `to_dict` gave."""
        return cls(**{**plain, "score": Interval(**plain["score"])})


@dataclass(frozen=True)
class Tradeoff:
    """The table, and what it was measured on."""

    points: tuple[TradeoffPoint, ...]
    queries: int
    candidates: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "queries": self.queries,
            "candidates": self.candidates,
            "points": [one.to_dict() for one in self.points],
        }


class Sample(NamedTuple):
    """Some queries of every set: vectors float32 [n, D], and which of the set's they are [n]."""

    queries: np.ndarray
    places: np.ndarray


def draw_sample(
    one: JudgedSet, queries: VectorStore, *, count: int, rng: np.random.Generator
) -> Sample:
    """At most `count` queries of a set, of those that have a vector in the store `queries`."""
    known = set(queries.ids)
    there = [place for place, id in enumerate(one.query_ids) if id in known]
    places = np.sort(rng.permutation(np.array(there, np.int64))[:count])
    rows = queries.rows_of([one.query_ids[place] for place in places])
    return Sample(queries.vectors(rows), places)


def measure_point(
    searcher: Searcher,
    sets: Sequence[JudgedSet],
    samples: Mapping[str, Sample],
    *,
    seed: int = 0,
) -> TradeoffPoint:
    """Searches a store for a sample of every set's queries; `seed` is that of the bootstrap."""
    store = searcher.store
    vectors = store.fit(np.concatenate([samples[one.name].queries for one in sets]))
    depth = min(max(RECALL_AT, *(one.k for one in sets)), len(store))
    found = searcher.search(vectors, depth).indices
    bounds = np.cumsum([0, *(len(samples[one.name].places) for one in sets)])
    hits, recalls, means = [], [], np.zeros(_BOOTSTRAP_DRAWS)
    for number, one in enumerate(sets):
        places = samples[one.name].places
        rows = found[bounds[number] : bounds[number + 1]]
        hit = metrics.hit_at_k(rows, [one.relevant[place] for place in places], one.k)
        hits.append(hit.mean())
        recalls.append(found_of(rows, one.union.indices[places]).mean())
        means += metrics.bootstrap_means(hit, seed=seed + number, draws=_BOOTSTRAP_DRAWS)
    timed = vectors[:: max(1, len(vectors) // _TIMED)][:_TIMED]
    seconds = []
    for _ in range(3):  # the first may compile; the least is the machine's
        started = time.perf_counter()
        searcher.search(timed, min(RECALL_AT, depth))
        seconds.append(time.perf_counter() - started)
    return TradeoffPoint(
        dtype=store.dtype,
        dimension=store.dimension,
        search=searcher.description,
        bytes_per_vector=store.bytes_per_vector,
        gigabytes=store.bytes_per_vector * len(store) / 1e9,
        score=metrics.interval_of(float(np.mean(hits)), means / len(sets)),
        recall=float(np.mean(recalls)),
        milliseconds=1e3 * min(seconds) / len(timed),
    )


def found_of(found: np.ndarray, wanted: np.ndarray, *, k: int = RECALL_AT) -> np.ndarray:
    """Float64 [Q]: the share of the first k wanted rows that is among the first k found."""
    wanted = wanted[:, :k]
    there = (found[:, None, :k] == wanted[:, :, None]).any(axis=2) & (wanted >= 0)
    return there.sum(axis=1) / np.maximum((wanted >= 0).sum(axis=1), 1)
