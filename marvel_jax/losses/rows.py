"""Rows against all their columns at once: the core of `dense` and `gather`."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from marvel_jax.losses.forms import FORMS, MASKED, Rows, mean_over_labels
from marvel_jax.losses.labels import (
    CandidateLabels,
    QueryLabels,
    into_tiles,
    negatives,
    own_candidates,
)

# A label wins only by more than two float32 sums of one cosine can differ: vectors that have
# collapsed onto one point must not count as retrieved.
TIE = 1e-6


class Sums(NamedTuple):
    """Sums over the valid queries that have a label, float32 scalars."""

    loss: jax.Array
    hits: jax.Array
    similarity: jax.Array
    queries: jax.Array  # how many they are


class Terms(NamedTuple):
    """How the loss of a row is taken from its cosines."""

    form: str
    temperature: jax.Array
    bias: jax.Array

    def __call__(self, rows: Rows) -> jax.Array:
        """[r] losses."""
        return FORMS[self.form](rows, temperature=self.temperature, bias=self.bias)


def cosines(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """[r, n] dot products in full float32: accelerators would multiply in bfloat16 or TF32.

    Not of `columns.T`: where a loop hoists that as a copy, the CPU's product with it is rounded
    half again to twice as coarsely, and with it the loss.
    """
    over_width = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(rows, columns, over_width, precision=jax.lax.Precision.HIGHEST)


def query_sums(
    queries: jax.Array,
    candidates: jax.Array,
    query_labels: QueryLabels,
    candidate_labels: CandidateLabels,
    *,
    terms: Terms,
    in_batch: bool,
    tile: int,
) -> Sums:
    """Sums over queries [b, D] against all the candidates [n, D] that they are given.

    Rows are taken `tile` at a time and computed again in the backward pass, so that memory grows
    with tile * n and not with b * n; where all fit into one tile it is kept.
    """

    def one_tile(part: tuple[jax.Array, QueryLabels]) -> Sums:
        x, labels = part
        similarity = cosines(x, candidates)
        negative = negatives(labels, candidate_labels, in_batch=in_batch)
        own = own_candidates(labels, candidate_labels)
        label = jnp.stack([jnp.where(mask, similarity, 0.0).sum(axis=1) for mask in own], axis=1)
        has_label = jnp.stack([mask.any(axis=1) for mask in own], axis=1)
        losses = terms(Rows(similarity, negative, label, has_label))
        best = jnp.where(negative, similarity, MASKED).max(axis=1)
        return add_up(losses, best, label, has_label, labels.valid)

    return _sum_tiles(one_tile, (queries, query_labels), tile=tile)


def label_sums(
    query_labels: QueryLabels,
    candidates: jax.Array,
    candidate_labels: CandidateLabels,
    all_queries: jax.Array,
    all_query_labels: QueryLabels,
    *,
    terms: Terms,
    tile: int,
) -> jax.Array:
    """The other direction's sum of losses: the labels of b queries against all queries [B, D].

    A label's positive is the query of its row; queries that hold it for a positive too, as their
    own label or by its id, are none of its negatives. Candidates are all those of the batch.
    """

    def one_tile(labels: QueryLabels) -> jax.Array:
        losses, found = [], []
        for p in range(labels.own.shape[1]):
            row = jnp.maximum(labels.own[:, p], 0)
            mine = CandidateLabels(*(jnp.take(leaf, row, axis=0) for leaf in candidate_labels))
            similarity = cosines(jnp.take(candidates, row, axis=0), all_queries)
            negative = negatives(all_query_labels, mine).T & all_query_labels.valid[None, :]
            at = all_query_labels.row[None, :] == labels.row[:, None]
            own = jnp.where(at, similarity, 0.0).sum(axis=1, keepdims=True)
            has_label = (mine.valid & (labels.own[:, p] >= 0))[:, None]
            losses.append(terms(Rows(similarity, negative, own, has_label)))
            found.append(has_label[:, 0])
        per_query = mean_over_labels(jnp.stack(losses, axis=1), jnp.stack(found, axis=1))
        return jnp.where(labels.valid, per_query, 0.0).sum()

    return _sum_tiles(one_tile, query_labels, tile=tile)


def add_up(
    losses: jax.Array, best: jax.Array, label: jax.Array, has_label: jax.Array, valid: jax.Array
) -> Sums:
    """Sums of [r] losses, of hits of the best own label [r, P] over the `best` negative [r]."""
    counted = valid & has_label.any(axis=1)
    best_label = jnp.where(has_label, label, MASKED).max(axis=1)
    return Sums(
        loss=jnp.where(counted, losses, 0.0).sum(),
        hits=(counted & (best_label > best + TIE)).sum().astype(jnp.float32),
        similarity=jnp.where(counted, mean_over_labels(label, has_label), 0.0).sum(),
        queries=counted.sum().astype(jnp.float32),
    )


Result = TypeVar("Result")


def _sum_tiles(function: Callable[[Any], Result], rows: Any, *, tile: int) -> Result:
    if jax.tree.leaves(rows)[0].shape[0] <= tile:
        return function(rows)
    tiles = into_tiles(rows, tile=tile)
    sums = jax.lax.map(jax.checkpoint(function), tiles)
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), sums)
