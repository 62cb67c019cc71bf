"""Candidates of several shards become one ranking: merged, then scored with the vectors."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from marvel_jax.retrieval.exact import TopK, rescore
from marvel_jax.retrieval.prefetch import cores
from marvel_jax.retrieval.scann_ops import Candidates
from marvel_jax.retrieval.store import VectorStore

# Vectors' numbers that a thread works on at a time: 2 MiB of float64, which stays in its cache.
_NUMBERS = 1 << 18
# Where every candidate is read from the store, a larger part shares the cost of the reading.
_NUMBERS_READ = 1 << 22
_LOW = np.int32(0x7FFFFFFF)
_MARGIN = 16  # kept beyond k, so that rounding in float32 cannot push out a right one


def merge(parts: Iterable[Candidates], count: int) -> Candidates:
    """The `count` best of the candidates of each query over all parts, best first.

    Equal scores are ordered by row, so that the order of the parts does not matter. Parts are
    taken one after the other: memory does not grow with their number.
    """
    best: np.ndarray | None = None
    for part in parts:
        keys = _keys(part)
        both = keys if best is None else np.concatenate([best, keys], axis=1)
        best = np.sort(both, axis=1)[:, -count:]
    assert best is not None, "an index has a shard at least"
    return _of_keys(best[:, ::-1])


def _keys(found: Candidates) -> np.ndarray:
    """int64 [Q, n]: numbers that rise with the score and, where it is equal, fall with the row.

    Sorting one number is several times faster than sorting by two.
    """
    bits = (found.scores + np.float32(0)).view(np.int32)  # + 0: there is one zero only
    upper = np.where(bits < 0, bits ^ _LOW, bits).astype(np.int64)
    return (upper << 32) | (_LOW - found.rows.astype(np.int64))


def _of_keys(keys: np.ndarray) -> Candidates:
    rows = (_LOW - (keys & 0xFFFFFFFF)).astype(np.int32)
    upper = (keys >> 32).astype(np.int32)
    return Candidates(rows, np.where(upper < 0, upper ^ _LOW, upper).view(np.float32))


def score(queries: np.ndarray, store: VectorStore, rows: np.ndarray, *, k: int) -> TopK:
    """The k best of the candidate rows [Q, n], -1 where none, by the vectors of the store.

    The same numbers and ties as `exact.rescore`, on all cores. Of more than k + 16 candidates
    float32 chooses those that are scored in float64.
    """
    narrow = rows.shape[1] > k + _MARGIN
    numbers = _NUMBERS_READ if narrow else _NUMBERS
    step = max(1, numbers // max(1, rows.shape[1] * store.dimension))
    rank = store.id_rank

    def one(start: int) -> TopK:
        part = slice(start, start + step)
        if not narrow:
            return rescore(queries[part], store, rows[part], k=k, rank=rank)
        return _narrowed(queries[part], store, rows[part], k=k, rank=rank)

    starts = range(0, len(queries), step)
    if len(starts) == 1:
        return one(0)
    with ThreadPoolExecutor(cores()) as pool:
        found = list(pool.map(one, starts))
    return TopK(*(np.concatenate(values) for values in zip(*found, strict=True)))


def _narrowed(
    queries: np.ndarray, store: VectorStore, rows: np.ndarray, *, k: int, rank: np.ndarray
) -> TopK:
    vectors = store.vectors(np.maximum(rows, 0).ravel())
    # Not a product of matrices: the threads of the pool are enough.
    coarse = np.einsum("qnd,qd->qn", vectors.reshape(*rows.shape, -1), queries)
    coarse[rows < 0] = -np.inf
    kept = np.lexsort((rank[rows], -coarse), axis=-1)[:, : k + _MARGIN]
    missing = np.take_along_axis(rows, kept, axis=1) < 0
    places = np.where(missing, -1, kept + rows.shape[1] * np.arange(len(rows))[:, None])
    found = rescore(queries, vectors, places, k=k, rank=rank[rows.ravel()])
    indices = np.where(found.indices < 0, -1, rows.ravel()[found.indices])
    return TopK(found.scores, indices.astype(np.int32))
