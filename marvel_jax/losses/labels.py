"""Which candidate is a label of which query, and which is a negative: masks of one tile."""

from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp


class QueryLabels(NamedTuple):
    """What the loss knows of b queries beside their vectors."""

    own: jax.Array  # [b, P] int32, rows of the global batch's candidates; -1 = none
    positive_ids: jax.Array  # [b, M, 2] uint32
    positive_valid: jax.Array  # [b, M] bool
    valid: jax.Array  # [b] bool
    row: jax.Array  # [b] int32, where in the global batch


class CandidateLabels(NamedTuple):
    """What the loss knows of c candidates beside their vectors."""

    id: jax.Array  # [c, 2] uint32
    valid: jax.Array  # [c] bool
    query: jax.Array  # [c] int32, global row of the query that brought the candidate
    row: jax.Array  # [c] int32, where in the global batch


def known_positives(queries: QueryLabels, candidates: CandidateLabels) -> jax.Array:
    """[b, c] bool: candidate c carries the id of one of the known positives of query b."""
    known = jnp.zeros((queries.row.shape[0], candidates.row.shape[0]), bool)
    # One fused pass over [b, c]; a reduction over [b, M, c] takes several times as long on a CPU.
    for m in range(queries.positive_ids.shape[1]):
        equal = queries.positive_ids[:, m, None, 0] == candidates.id[None, :, 0]
        equal &= queries.positive_ids[:, m, None, 1] == candidates.id[None, :, 1]
        known |= equal & queries.positive_valid[:, m, None]
    return known


def own_candidates(queries: QueryLabels, candidates: CandidateLabels) -> list[jax.Array]:
    """For each of the P labels [b, c] bool: candidate c is that label of query b, and valid."""
    return [
        (own[:, None] == candidates.row[None, :]) & candidates.valid[None, :]
        for own in queries.own.T
    ]


def negatives(
    queries: QueryLabels, candidates: CandidateLabels, *, in_batch: bool = True
) -> jax.Array:
    """[b, c] bool: candidate c stands in the denominator of query b as a negative.

    It is valid, is none of the query's own labels and carries no known positive's id. Without
    `in_batch` it must have been brought by the query itself.
    """
    excluded = known_positives(queries, candidates)
    for own in own_candidates(queries, candidates):
        excluded |= own
    allowed = candidates.valid[None, :] & ~excluded
    if not in_batch:
        allowed &= candidates.query[None, :] == queries.row[:, None]
    return allowed


Tree = TypeVar("Tree")


def into_tiles(tree: Tree, *, tile: int) -> Tree:
    """Cuts leading axes [n, ...] into [tiles, size, ...] with sizes as even as they can be.

    The last tile is filled up with zeros: False in a mask of validity, but a valid row of own
    labels, so callers mask by `valid` (`own` compares with rows that a masked query never uses).
    """
    length = jax.tree.leaves(tree)[0].shape[0]
    count = max(1, -(-length // tile))
    size = -(-length // count)

    def cut(leaf: jax.Array) -> jax.Array:
        if count * size != length:
            padding = [(0, count * size - length), *[(0, 0)] * (leaf.ndim - 1)]
            leaf = jnp.pad(leaf, padding)
        return leaf.reshape(count, size, *leaf.shape[1:])

    return jax.tree.map(cut, tree)


def from_tiles(tree: Tree, *, length: int) -> Tree:
    """The inverse of `into_tiles`."""

    def join(leaf: jax.Array) -> jax.Array:
        return leaf.reshape(-1, *leaf.shape[2:])[:length]

    return jax.tree.map(join, tree)
