"""Exact search: every query against every vector, on the device, block by block.

The device finds in float32 which vectors can be among the best; the host scores those again in
float64. So the answer depends neither on the block size nor on the order in which an accelerator
adds, and equal scores are ordered by id: the same ranking on every machine.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.store import VectorStore

_MARGIN = 16  # candidates kept beyond k, so that rounding in float32 cannot push out a right one
_QUERY_BLOCK = 1024
_RESCORE_ELEMENTS = 1 << 23  # 64 MiB of float64 at a time


class TopK(NamedTuple):
    """The best k rows a query, best first; index -1 and score -inf where there are fewer.

    scores: float32 [Q, k], cosine similarity: the float64 dot product rounded to float32.
    indices: int32 [Q, k], rows of the corpus. Equal scores are ordered by id.
    """

    scores: np.ndarray
    indices: np.ndarray


def top_k(
    queries: np.ndarray,
    corpus: VectorStore | np.ndarray,
    k: int,
    *,
    block: int = 8192,
    subset: np.ndarray | None = None,
    ids: Sequence[str] | None = None,
) -> TopK:
    """The k rows of the corpus nearest to each query by cosine similarity, exactly.

    Args:
      queries: float32 [Q, D], unit norm.
      corpus: a store, or float32 [N, D] of unit norm.
      k: how many.
      block: corpus rows on the device at a time; memory does not grow with the corpus.
      subset: int [n], the rows to search (a local pool); None searches all. Indices in the
        result are rows of the whole corpus.
      ids: ids of an array's rows, for ties; without them the row number decides. A store has
        its own.

    Raises:
      MarvelError: k exceeds the pool, the dimensions differ, or a query is not finite.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    rank = _id_rank(corpus, ids)
    rows = None if subset is None else np.unique(np.asarray(subset, dtype=np.int64))
    size = len(corpus) if rows is None else len(rows)
    _check(queries, corpus, k=k, size=size, rows=rows)
    if len(queries) == 0:
        return TopK(np.empty((0, k), np.float32), np.empty((0, k), np.int32))
    kept = k + _MARGIN
    scores, places = _device_top(queries, corpus, rows, kept=kept, block=block)
    indices = places if rows is None else np.where(places < 0, -1, rows[places])
    found = rescore(queries, corpus, indices, k=k, rank=rank)
    # A query is settled when everything that was not kept is below its k-th score by more than
    # float32 can be wrong. Long runs of equal vectors are not: they are searched on the host.
    slack = 2 * _float32_error(queries.shape[1])
    unsettled = np.flatnonzero((size > kept) & (scores[:, -1] > found.scores[:, -1] - slack))
    for query in unsettled:
        threshold = found.scores[query, -1] - slack
        near = _rows_above(queries[query], corpus, rows, threshold=threshold, block=block)
        one = rescore(queries[query : query + 1], corpus, near[None], k=k, rank=rank)
        found.scores[query], found.indices[query] = one.scores[0], one.indices[0]
    return found


def rescore(
    queries: np.ndarray,
    corpus: VectorStore | np.ndarray,
    indices: np.ndarray,
    *,
    k: int,
    rank: np.ndarray | None = None,
) -> TopK:
    """The k best of given candidates, by float64 dot products rounded to float32.

    Args:
      queries: float32 [Q, D].
      corpus: where the candidates' vectors are.
      indices: int [Q, n] candidate rows; -1 is none.
      k: how many to keep; fewer candidates leave -1 and -inf at the end.
      rank: int [N], the order of ids for ties; None orders by row.
    """
    num_queries, width = indices.shape
    scores = np.full((num_queries, max(width, k)), -np.inf, np.float32)
    rows = np.full((num_queries, max(width, k)), -1, np.int32)
    chunk = max(1, _RESCORE_ELEMENTS // max(1, width * queries.shape[1]))
    for start in range(0, num_queries, chunk):
        part = indices[start : start + chunk]
        vectors = _vectors(corpus, np.maximum(part, 0).ravel()).astype(np.float64)
        vectors *= np.repeat(queries[start : start + chunk].astype(np.float64), width, axis=0)
        # numpy's own sum over each row: unlike a matrix product its order of additions does not
        # depend on a row's neighbours, so equal vectors score equal.
        part_scores = vectors.sum(axis=1).astype(np.float32).reshape(part.shape)
        scores[start : start + chunk, :width] = np.where(part < 0, -np.inf, part_scores)
        rows[start : start + chunk, :width] = part
    ties = rows if rank is None else np.where(rows < 0, np.iinfo(np.int32).max, rank[rows])
    order = np.lexsort((ties, -scores), axis=-1)[:, :k]
    return TopK(np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1))


@partial(jax.jit, donate_argnums=(0, 1))
def _merge(
    best: jax.Array,
    best_places: jax.Array,
    queries: jax.Array,
    block: jax.Array,
    start: jax.Array,
    count: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The running best [Q, kept] and its places, after the first `count` rows of a block."""
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    scores = jnp.where(jnp.arange(block.shape[0]) < count, scores, -jnp.inf)
    block_best, block_places = jax.lax.top_k(scores, best.shape[1])
    both = jnp.concatenate([best, block_best], axis=1)
    places = jnp.concatenate([best_places, block_places.astype(jnp.int32) + start], axis=1)
    best, order = jax.lax.top_k(both, best.shape[1])
    return best, jnp.take_along_axis(places, order, axis=1)


def _device_top(
    queries: np.ndarray,
    corpus: VectorStore | np.ndarray,
    rows: np.ndarray | None,
    *,
    kept: int,
    block: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 scores and places (rows of the subset) of the best `kept`; -1 where fewer."""
    size = len(corpus) if rows is None else len(rows)
    # Powers of two: pools of many sizes share a few compilations.
    block = max(min(block, _power_of_two(size)), _power_of_two(kept))
    query_block = min(_QUERY_BLOCK, _power_of_two(len(queries)))
    starts = range(0, len(queries), query_block)
    parts = [
        jnp.asarray(_pad(queries[start : start + query_block], query_block)) for start in starts
    ]
    best = [jnp.full((query_block, kept), -jnp.inf, jnp.float32) for _ in starts]
    places = [jnp.full((query_block, kept), -1, jnp.int32) for _ in starts]
    # Corpus outside, queries inside: the memory map is read once whatever the number of queries.
    for start, vectors in _blocks(corpus, rows, block):
        on_device = jnp.asarray(_pad(vectors, block))
        for part, query_part in enumerate(parts):
            best[part], places[part] = _merge(
                best[part], places[part], query_part, on_device, start, len(vectors)
            )
    scores = np.concatenate([np.asarray(part) for part in best])[: len(queries)]
    found = np.concatenate([np.asarray(part) for part in places])[: len(queries)]
    return scores, np.where(np.isneginf(scores), -1, found)


def _rows_above(
    query: np.ndarray,
    corpus: VectorStore | np.ndarray,
    rows: np.ndarray | None,
    *,
    threshold: float,
    block: int,
) -> np.ndarray:
    """Every row whose float32 score reaches the threshold."""
    near = [
        start + np.flatnonzero(vectors @ query >= threshold)
        for start, vectors in _blocks(corpus, rows, block)
    ]
    places = np.concatenate(near)
    return places if rows is None else rows[places]


def _blocks(
    corpus: VectorStore | np.ndarray, rows: np.ndarray | None, block: int
) -> Iterator[tuple[int, np.ndarray]]:
    if rows is None and isinstance(corpus, VectorStore):
        yield from corpus.blocks(block)
        return
    size = len(corpus) if rows is None else len(rows)
    for start in range(0, size, block):
        stop = min(start + block, size)
        yield start, _vectors(corpus, np.arange(start, stop) if rows is None else rows[start:stop])


def _vectors(corpus: VectorStore | np.ndarray, rows: np.ndarray) -> np.ndarray:
    return corpus.vectors(rows) if isinstance(corpus, VectorStore) else corpus[rows]


def _id_rank(corpus: VectorStore | np.ndarray, ids: Sequence[str] | None) -> np.ndarray | None:
    if isinstance(corpus, VectorStore):
        return corpus.id_rank
    if ids is None:
        return None
    order = sorted(range(len(ids)), key=ids.__getitem__)
    rank = np.empty(len(ids), np.int32)
    rank[order] = np.arange(len(ids), dtype=np.int32)
    return rank


def _check(
    queries: np.ndarray,
    corpus: VectorStore | np.ndarray,
    *,
    k: int,
    size: int,
    rows: np.ndarray | None,
) -> None:
    dimension = corpus.dimension if isinstance(corpus, VectorStore) else corpus.shape[1]
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise MarvelError(
            f"The queries have shape {queries.shape}, but the corpus has dimension {dimension}: "
            "encode both with the same model."
        )
    if k < 1:
        raise MarvelError(f"k={k}: ask for at least 1 result.")
    if k > size:
        raise MarvelError(
            f"k={k} is larger than the pool of {size} candidates: ask for at most {size}."
        )
    if rows is not None and (rows[0] < 0 or rows[-1] >= len(corpus)):
        raise MarvelError(
            f"subset holds rows {rows[0]} to {rows[-1]}, but the corpus has rows 0 to "
            f"{len(corpus) - 1}."
        )
    wrong = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if wrong.size:
        raise MarvelError(
            f"Query {wrong[0]} is not finite ({wrong.size} of {len(queries)} are not)."
        )


def _float32_error(dimension: int) -> float:
    """How far a float32 dot product of unit vectors may be off: sqrt(D) roundings, four-fold."""
    return 4 * 2.0**-24 * max(4.0, dimension**0.5)


def _pad(vectors: np.ndarray, rows: int) -> np.ndarray:
    if len(vectors) == rows:
        return vectors
    return np.concatenate([vectors, np.zeros((rows - len(vectors), vectors.shape[1]), np.float32)])


def _power_of_two(number: int) -> int:
    return 1 << max(3, (number - 1).bit_length())
