"""Exact search: every query against every vector, on the devices, block by block.

The devices find in float32 which vectors can be among the best; the host scores those again in
float64. So the answer depends neither on the size of the blocks nor on the mesh nor on the order in
which an accelerator adds, and equal scores are ordered by id: the same ranking on every machine.
What is searched are the vectors as the store's type decodes them, of whatever type it is.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact_device import (
    QUERY_BLOCK,
    Blocks,
    best_places,
    local_mesh,
    power_of_two,
)
from marvel_jax.retrieval.store import VectorStore

_ONE_DEVICE_ROWS = 8192  # so small a pool is not worth dividing
_MARGIN = 16  # candidates kept beyond k, so that rounding in float32 cannot push out a right one
_RESCORE_ELEMENTS = 1 << 22  # 16 MiB of float32 from the corpus at a time
_CACHED_ELEMENTS = 1 << 18  # 2 MiB of float64: what the processor's cache holds


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
    mesh: Mesh | None = None,
) -> TopK:
    """The k rows of the corpus nearest to each query by cosine similarity, exactly.

    A store is streamed from disk: memory does not grow with it, but for its ids. It does with the
    queries, by some k * 16 bytes each besides themselves.

    Args:
      queries: float32 [Q, D], unit norm. For a truncated store as the model gives them, too.
      corpus: a store, or float32 [N, D] of unit norm.
      k: how many.
      block: corpus rows on a device at a time.
      subset: int [n], the rows to search (a local pool); None searches all. Indices in the
        result are rows of the whole corpus.
      ids: ids of an array's rows, for ties; without them the row number decides. A store has
        its own.
      mesh: devices among which each block is divided, whatever the names of its axes; None takes
        this process's, or the default device for a pool of a few thousand rows.

    Raises:
      MarvelError: k exceeds the pool, the dimensions differ, or a query is not finite.
    """
    if isinstance(corpus, VectorStore):
        queries = corpus.fit(queries)
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    rows = None if subset is None else np.unique(np.asarray(subset, dtype=np.int64))
    size = len(corpus) if rows is None else len(rows)
    _check(queries, corpus, k=k, size=size, rows=rows, ids=ids)
    if len(queries) == 0:
        return TopK(np.empty((0, k), np.float32), np.empty((0, k), np.int32))
    rank = _id_rank(corpus, ids)
    if mesh is None and size > _ONE_DEVICE_ROWS:
        mesh = local_mesh()
    kept = k + _MARGIN
    # Powers of two: pools of many sizes share a few compilations.
    block = max(min(block, power_of_two(size)), power_of_two(kept))
    stream = _stored_blocks(corpus, rows, block * (1 if mesh is None else mesh.size))
    scores, places = best_places(queries, stream, kept=kept, mesh=mesh)
    indices = places if rows is None else np.where(places < 0, -1, rows[places])
    found = rescore(queries, corpus, indices, k=k, rank=rank)
    # A query is settled when everything that was not kept is below its k-th score by more than
    # float32 can be wrong. Long runs of equal vectors are not: they are searched on the host.
    slack = 2 * _float32_error(queries.shape[1])
    unsettled = np.flatnonzero((size > kept) & (scores[:, -1] > found.scores[:, -1] - slack))
    if unsettled.size:
        settled = _on_the_host(
            queries[unsettled],
            corpus,
            rows,
            k=k,
            thresholds=found.scores[unsettled, -1] - slack,
            rank=rank,
            block=block,
        )
        found.scores[unsettled], found.indices[unsettled] = settled
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
      queries: float32 [Q, D], of the corpus's dimension.
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
        vectors = _vectors(corpus, np.maximum(part, 0).ravel()).reshape(*part.shape, -1)
        part_scores = _dot_products(queries[start : start + chunk], vectors)
        scores[start : start + chunk, :width] = np.where(part < 0, -np.inf, part_scores)
        rows[start : start + chunk, :width] = part
    return _best(TopK(scores, rows), k, rank)


def _dot_products(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """[q, n]: queries [q, D] by vectors [q, n, D] in float64, rounded to float32."""
    scores = np.empty(vectors.shape[:2], np.float32)
    step = max(1, _CACHED_ELEMENTS // vectors[0].size)
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        products = vectors[part].astype(np.float64)
        products *= queries[part, None]
        # numpy's own sum over each row: unlike a matrix product its order of additions does not
        # depend on a row's neighbours, so equal vectors score equal.
        scores[part] = products.sum(axis=2)
    return scores


def _on_the_host(
    queries: np.ndarray,
    corpus: VectorStore | np.ndarray,
    rows: np.ndarray | None,
    *,
    k: int,
    thresholds: np.ndarray,
    rank: np.ndarray | None,
    block: int,
) -> TopK:
    """The k best of the rows whose float32 score reaches a query's threshold.

    Only the best so far are kept, however many rows are equally near.
    """
    best = TopK(
        np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int32)
    )
    part_rows = max(1, _CACHED_ELEMENTS // queries.shape[1])
    for start, vectors in _blocks(corpus, rows, block):
        for first in range(0, len(queries), QUERY_BLOCK):
            part = slice(first, first + QUERY_BLOCK)
            reached = (queries[part] @ vectors.T) >= thresholds[part, None]
            for query in np.flatnonzero(reached.any(axis=1)):
                near = np.flatnonzero(reached[query])
                asked = queries[None, first + query]
                scores = np.concatenate(
                    [
                        _dot_products(asked, vectors[None, near[one : one + part_rows]])[0]
                        for one in range(0, len(near), part_rows)
                    ]
                )
                places = start + near if rows is None else rows[start + near]
                both = TopK(
                    np.concatenate([best.scores[first + query], scores]),
                    np.concatenate([best.indices[first + query], places.astype(np.int32)]),
                )
                best.scores[first + query], best.indices[first + query] = _best(both, k, rank)
    return best


def _best(found: TopK, k: int, rank: np.ndarray | None) -> TopK:
    """The k best of the last axis; equal scores by `rank`, what is not there at the end."""
    scores, rows = found
    ties = rows if rank is None else np.where(rows < 0, np.iinfo(np.int32).max, rank[rows])
    order = np.lexsort((ties, -scores), axis=-1)[..., :k]
    return TopK(np.take_along_axis(scores, order, -1), np.take_along_axis(rows, order, -1))


def _stored_blocks(corpus: VectorStore | np.ndarray, rows: np.ndarray | None, block: int) -> Blocks:
    if not isinstance(corpus, VectorStore):
        return Blocks(_blocks(corpus, rows, block), "float32", corpus.shape[1], block)
    if rows is None:
        stream = corpus.stored_blocks(block)
    else:
        stream = (
            (start, corpus.stored(rows[start : start + block]))
            for start in range(0, len(rows), block)
        )
    return Blocks(stream, corpus.dtype, corpus.dimension, block)


def _blocks(
    corpus: VectorStore | np.ndarray, rows: np.ndarray | None, block: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(first place, float32 vectors) of the corpus, or of these rows of it."""
    if rows is None and isinstance(corpus, VectorStore):
        yield from corpus.blocks(block)
        return
    size = len(corpus) if rows is None else len(rows)
    for start in range(0, size, block):
        chosen = slice(start, start + block)
        if rows is not None:
            yield start, _vectors(corpus, rows[chosen])
        else:
            assert isinstance(corpus, np.ndarray)
            yield start, np.asarray(corpus[chosen], dtype=np.float32)


def _vectors(corpus: VectorStore | np.ndarray, rows: np.ndarray) -> np.ndarray:
    if isinstance(corpus, VectorStore):
        return corpus.vectors(rows)
    return np.asarray(corpus[rows], dtype=np.float32)


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
    ids: Sequence[str] | None,
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
    if ids is not None and not isinstance(corpus, VectorStore) and len(ids) != len(corpus):
        raise MarvelError(f"{len(ids)} ids for {len(corpus)} vectors: give one for each.")
    wrong = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if wrong.size:
        raise MarvelError(
            f"Query {wrong[0]} is not finite ({wrong.size} of {len(queries)} are not)."
        )


def _float32_error(dimension: int) -> float:
    """How far a float32 dot product of unit vectors may be off: sqrt(D) roundings, four-fold."""
    return 4 * 2.0**-24 * max(4.0, dimension**0.5)
