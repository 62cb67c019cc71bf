"""Test sets as they are searched: queries, answers and pool by id, their rows, their rankings."""

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np

from marvel_jax.data.mbeir import TestSet
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import TopK, top_k
from marvel_jax.retrieval.store import VectorStore

DEPTH = 50
"""Results kept for each query, as in the published protocol."""

QueryVectors = np.ndarray | VectorStore
"""float32 [Q, D] in the order of a set's queries, or a store of them. A row of zeros is a query
without a vector: it finds nothing."""

_QUERY_BYTES = 2 << 30  # of float32 in memory at a time: M-BEIR's 190,573 of 1,536 in one pass


@dataclass(frozen=True)
class RetrievalSet:
    """One test set: queries with the ids of their right answers, and the pool they are sought in.

    relevant: some may be outside the pool: in the pool of everything they are right answers too.
    task: e.g. "t->i". k: the cut of the set's main score. candidate_modality: "text", "image" or
    "image,text", what the instruction asks for. held_out: the model was not trained on its task.
    """

    name: str
    task: str
    k: int
    candidate_modality: str
    query_ids: Sequence[str]
    relevant: Sequence[Sequence[str]]
    pool: Sequence[str]
    held_out: bool = False

    @classmethod
    def of(cls, test_set: TestSet, *, held_out: bool = False) -> "RetrievalSet":
        """A test set of an M-BEIR folder, with its local pool."""
        query_ids = [query.id for query in test_set.queries]
        return cls(
            name=test_set.name,
            task=test_set.task.name,
            k=test_set.k,
            candidate_modality=test_set.task.candidate_modality,
            query_ids=query_ids,
            relevant=[sorted(test_set.qrels.get(query, ())) for query in query_ids],
            pool=_pool_ids(test_set),
            held_out=held_out,
        )


class SetRows(NamedTuple):
    """A set's pool as rows of a store, ascending, and for each query those of its right answers.

    relevant: all of them, right in the pool of everything. relevant_local: those in the set's own
    pool, which alone count there: what is not in a pool is no answer that a search of it missed.
    An answer without a vector has a row behind the store's last: it counts and is never found.
    """

    pool: np.ndarray
    relevant: list[np.ndarray]
    relevant_local: list[np.ndarray]

    @property
    def by_pool(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """The answers in the order of `Rankings`: own pool, pool of everything."""
        return self.relevant_local, self.relevant


class Rankings(NamedTuple):
    """What was retrieved for a set's queries: TopK over rows of the store, `DEPTH` wide."""

    local_pool: TopK
    global_pool: TopK


def rows_of(
    test_set: RetrievalSet, store: VectorStore, *, missing: Collection[str] = ()
) -> SetRows:
    """Where a set's pool and answers are in a store; `missing` ids may lack a vector.

    Raises:
      MarvelError: a query has no right answer in the set's pool, or an id that is not among
        `missing` has no vector.
    """
    if len(test_set.relevant) != len(test_set.query_ids) or not len(test_set.query_ids):
        raise MarvelError(
            f"{test_set.name}: {len(test_set.query_ids)} queries, answers for "
            f"{len(test_set.relevant)} of them: expected at least one query, and one list each."
        )
    absent = frozenset(missing)
    pool = [id for id in test_set.pool if id not in absent] if absent else test_set.pool
    if not len(pool):
        raise MarvelError(f"{test_set.name}: its pool holds no candidate that has a vector.")
    pool_rows = np.unique(_found(test_set, store, pool, "candidates of its pool"))
    answers = [list(dict.fromkeys(ids)) for ids in test_set.relevant]
    for query_id, ids in zip(test_set.query_ids, answers, strict=True):
        if not ids:
            raise MarvelError(
                f"{test_set.name}: query {query_id!r} has no relevant candidate. Remove it, or "
                "add its answer to the qrels."
            )
    flat = [answer for ids in answers for answer in ids]
    there = np.array([answer not in absent for answer in flat])
    rows = np.arange(len(store), len(store) + len(flat))
    present = [answer for answer in flat if answer not in absent]
    if present:
        rows[there] = _found(test_set, store, present, "right answers")
    unseen = absent.intersection(test_set.pool) if absent else absent
    local = np.array([answer in unseen for answer in flat]) | np.isin(rows, pool_rows)
    bounds = np.cumsum([0, *(len(ids) for ids in answers)])
    relevant = [rows[start:stop] for start, stop in itertools.pairwise(bounds)]
    inside = [rows[start:stop][local[start:stop]] for start, stop in itertools.pairwise(bounds)]
    lost = [number for number, own in enumerate(inside) if not len(own)]
    if lost:
        raise MarvelError(
            f"{test_set.name}: no right answer of query {test_set.query_ids[lost[0]]!r} (such as "
            f"{answers[lost[0]][0]!r}) is in the pool of {len(pool_rows)} candidates "
            f"({len(lost)} such queries). Compare the qrels with the pool: `marvel data check`."
        )
    return SetRows(pool_rows, relevant, inside)


def search(
    sets: Sequence[RetrievalSet],
    query_vectors: Mapping[str, QueryVectors],
    store: VectorStore,
    rows: Mapping[str, SetRows],
    *,
    depth: int = DEPTH,
    local: Mapping[str, TopK] | None = None,
    keep: Callable[[str, TopK], None] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Rankings]:
    """The best `depth` of every query, in its set's pool and among all candidates of the store.

    The queries of all sets are sought among all candidates together: the store is read once for
    them (once for each 2 GiB of query vectors), and once more for the local pools. Where a pool is
    smaller than `depth`, a list ends with row -1 and score -inf.

    Sets named in `local` have been searched in their own pools, with these results; `keep` is told
    of each other set's as soon as they are found.

    Raises:
      MarvelError: a set has no vectors, or not one for each query, or of another dimension.
    """
    for one in sets:
        _check_vectors(one, query_vectors)
    if not sets:
        return {}
    own = dict(local or {})
    for one in sets:
        if one.name in own:
            continue
        if progress:
            progress(f"{one.name}: {len(rows[one.name].pool):,} candidates")
        vectors = query_vectors[one.name]
        pool = rows[one.name].pool
        parts = [
            _top(part, store, depth, subset=pool)
            for part in _chunks([vectors], queries_at_once(store.dimension))
        ]
        own[one.name] = _joined(parts)
        if keep:
            keep(one.name, own[one.name])
    if progress:
        progress(f"all sets: {len(store):,} candidates")
    everything = [query_vectors[one.name] for one in sets]
    parts = [
        _top(part, store, depth, subset=None)
        for part in _chunks(everything, queries_at_once(store.dimension))
    ]
    union = _joined(parts)
    bounds = np.cumsum([0, *(len(vectors) for vectors in everything)])
    return {
        one.name: Rankings(
            own[one.name],
            TopK(union.scores[start:stop].copy(), union.indices[start:stop].copy()),
        )
        for one, start, stop in zip(sets, bounds[:-1], bounds[1:], strict=True)
    }


class IdRange(Sequence[str]):
    """Ids "dataset:number" of dataset * 10^9 + number, made when they are asked for: eight bytes
    each, where a million strings take sixty.
    """

    def __init__(self, numbers: np.ndarray) -> None:
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "IdRange": ...
    def __getitem__(self, index: int | slice) -> "str | IdRange":
        if isinstance(index, slice):
            return IdRange(self.numbers[index])
        return _id(int(self.numbers[index]))

    def __iter__(self) -> Iterator[str]:
        return map(_id, self.numbers.tolist())


def _id(number: int) -> str:
    dataset, place = divmod(number, 1_000_000_000)
    return f"{dataset}:{place}"


def _pool_ids(test_set: TestSet) -> Sequence[str]:
    ids = getattr(test_set.pool, "ids", None)  # of files; another sequence is read
    if ids is None:
        return [candidate.id for candidate in test_set.pool]
    return IdRange(ids("did"))


def _found(test_set: RetrievalSet, store: VectorStore, ids: Sequence[str], what: str) -> np.ndarray:
    try:
        return store.rows_of(ids)
    except MarvelError as error:
        raise MarvelError(f"{test_set.name}, {what}: {error}") from error


def _check_vectors(test_set: RetrievalSet, query_vectors: Mapping[str, QueryVectors]) -> None:
    vectors = query_vectors.get(test_set.name)
    if vectors is None or len(vectors) != len(test_set.query_ids):
        found = "none" if vectors is None else str(len(vectors))
        raise MarvelError(
            f"{test_set.name}: expected {len(test_set.query_ids)} query vectors, found {found}."
        )


def queries_at_once(dimension: int) -> int:
    """How many queries are searched in one pass over a store: as many as 2 GiB of memory hold."""
    return max(1, _QUERY_BYTES // (4 * dimension))


def _chunks(sources: Sequence[QueryVectors], size: int) -> Iterator[np.ndarray]:
    """The rows of all sources, one after the other, `size` at a time: float32 [<= size, D]."""
    waiting: list[np.ndarray] = []
    room = size
    for source in sources:
        start = 0
        while start < len(source):
            stop = min(start + room, len(source))
            if isinstance(source, VectorStore):
                part = source.vectors(np.arange(start, stop))
            else:
                part = np.asarray(source[start:stop], np.float32)
            waiting.append(part)
            room -= stop - start
            start = stop
            if not room:
                yield np.concatenate(waiting)
                waiting, room = [], size
    if waiting:
        yield np.concatenate(waiting)


def _top(queries: np.ndarray, store: VectorStore, depth: int, *, subset: np.ndarray | None) -> TopK:
    """As `exact.top_k`, `depth` wide whatever the pool; nothing for queries that are all zeros."""
    k = min(depth, len(store) if subset is None else len(subset))
    return search_asked(lambda asked: top_k(asked, store, k, subset=subset), queries, depth)


def search_asked(search: Callable[[np.ndarray], TopK], queries: np.ndarray, width: int) -> TopK:
    """What `search` finds for the queries [Q, D], [Q, width]; nothing for those of all zeros.

    Zeros stand for a query that could not be read. They are as near to every candidate as to any
    other, and have no direction that could be truncated.
    """
    scores = np.full((len(queries), width), -np.inf, np.float32)
    indices = np.full((len(queries), width), -1, np.int32)
    asked = np.flatnonzero(queries.any(axis=1))
    if len(asked):
        found = search(queries[asked])
        scores[asked, : found.scores.shape[1]] = found.scores
        indices[asked, : found.indices.shape[1]] = found.indices
    return TopK(scores, indices)


def _joined(parts: Sequence[TopK]) -> TopK:
    return TopK(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.indices for part in parts]),
    )
