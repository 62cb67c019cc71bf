"""InfoNCE around a ring of devices: memory that does not grow with the global batch.

Every device keeps its own candidates. Blocks of queries travel from device to device with their
labels and their running logsumexp, meet every candidate, and are home again after as many hops
as there are devices; hard negatives therefore add neither traffic nor travelling memory. Nothing
of the [B, C] similarities is kept: the backward pass sends the queries round once more, with
their gradient, and takes each probability again from the logsumexp.

A block is worked on and passed on tile by tile, in place, so that a hop needs no second copy of
it. The statistics of columns, for the symmetric direction, stay at home with the candidates and
come from the same tiles.

Source: ring attention's schedule (Liu et al. 2023) for the contrastive loss (Inf-CL, Cheng et al.
2024), with the label taken out of its own denominator.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from marvel_jax.losses.forms import MASKED
from marvel_jax.losses.labels import (
    CandidateLabels,
    QueryLabels,
    from_tiles,
    into_tiles,
    negatives,
    own_candidates,
)
from marvel_jax.losses.packing import from_words, into_words
from marvel_jax.losses.rows import cosines


@dataclass(frozen=True)
class Ring:
    """Which devices pass blocks on, and how large the tiles are."""

    axes: tuple[str, ...]
    devices: int
    tile: int
    columns: bool  # whether the columns' statistics are wanted too

    def varying(self, value: jax.Array) -> jax.Array:
        """The value as one that may differ from device to device, as a loop's carry must be."""
        return jax.lax.pcast(value, self.axes, to="varying")

    def full(self, shape: tuple[int, ...], value: float) -> jax.Array:
        """A constant for a carry."""
        return self.varying(jnp.full(shape, value, jnp.float32))

    def pass_on(self, vectors: tuple[jax.Array, ...], beside: tuple[Any, ...]) -> tuple[Any, ...]:
        """Sends a tile to the next device: its vectors, and all that goes beside them as one.

        What a small array costs is the sending, not its bytes.
        """
        hops = [(i, (i + 1) % self.devices) for i in range(self.devices)]
        *sent, words = [
            jax.lax.ppermute(leaf, self.axes, hops) for leaf in (*vectors, into_words(beside))
        ]
        return (*sent, *from_words(words, like=beside))

    def steps(self, tiles: jax.Array) -> jax.Array:
        """Which tile of the visiting block is worked on, step by step, over all hops."""
        return jnp.tile(jnp.arange(tiles.shape[0]), self.devices)


class Statistics(NamedTuple):
    """What a shard's b queries and c candidates have seen; cosines are over the temperature."""

    lse: jax.Array  # [b] logsumexp over the negatives of each query
    best: jax.Array  # [b] their largest; it carries no gradient
    label: jax.Array  # [b, P] the labels' own
    column_lse: jax.Array  # [c] logsumexp over the queries that are negatives of each candidate


class _Running(NamedTuple):
    """A logsumexp on its way: the largest so far, and the sum of exp(x - largest)."""

    largest: jax.Array
    total: jax.Array

    def add(self, logits: jax.Array, mask: jax.Array, *, axis: int) -> "_Running":
        masked = jnp.where(mask, logits, MASKED)
        largest = jnp.maximum(self.largest, masked.max(axis=axis))
        terms = jnp.where(mask, jnp.exp(logits - jnp.expand_dims(largest, axis)), 0.0)
        total = self.total * jnp.exp(self.largest - largest) + terms.sum(axis=axis)
        return _Running(largest, total)

    def lse(self) -> jax.Array:
        return jnp.where(self.total > 0, self.largest + jnp.log(self._divisor()), MASKED)

    def weight(self, cotangent: jax.Array) -> jax.Array:
        """What exp(x - largest) is multiplied with to be the gradient with respect to x.

        To take x from the logsumexp itself would round at its size, ten times as coarse.
        """
        return cotangent / self._divisor()

    def _divisor(self) -> jax.Array:
        return jnp.where(self.total > 0, self.total, 1.0)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def ring_statistics(
    ring: Ring,
    queries: jax.Array,
    candidates: jax.Array,
    scale: jax.Array,
    query_labels: QueryLabels,
    candidate_labels: CandidateLabels,
) -> Statistics:
    """Statistics of a shard's queries [b, D] over all candidates, and of its candidates [c, D].

    To be called inside `shard_map`, by every device of the ring with the same shapes. `scale` is
    the reciprocal of the temperature, varying over the ring's axes.
    """
    return _forward(ring, queries, candidates, scale, query_labels, candidate_labels)[0]


def _forward(
    ring: Ring,
    queries: jax.Array,
    candidates: jax.Array,
    scale: jax.Array,
    query_labels: QueryLabels,
    candidate_labels: CandidateLabels,
) -> tuple[Statistics, Any]:
    count = candidates.shape[0]

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        visitor, columns = carry
        block, labels, rows, own = _take(visitor, t)

        def column_tile(carry: Any, k: jax.Array) -> tuple[Any, None]:
            rows, columns, own = carry
            at, visited, visited_labels = _columns(candidates, candidate_labels, k, ring.tile)
            logits = cosines(block, visited)
            negative = negatives(labels, visited_labels)
            rows = rows.add(logits, negative, axis=1)
            masks = own_candidates(labels, visited_labels)
            own += jnp.stack([jnp.where(m, logits, 0.0).sum(axis=1) for m in masks], axis=1)
            if ring.columns:
                here = _Running(*(_slice(leaf, at, visited.shape[0]) for leaf in columns))
                here = here.add(logits, negative & labels.valid[:, None], axis=0)
                columns = _Running(*map(partial(_update, at=at), columns, here))
            return (rows, columns, own), None

        tiles = jnp.arange(_tile_count(count, ring.tile))
        (rows, columns, own), _ = jax.lax.scan(column_tile, (rows, columns, own), tiles)
        return (_put(visitor, ring.pass_on((block,), (labels, rows, own)), t), columns), None

    length = queries.shape[0]
    block, labels = into_tiles((queries * scale, query_labels), tile=ring.tile)
    rows = _Running(ring.full(block.shape[:2], MASKED), ring.full(block.shape[:2], 0.0))
    own = ring.full(labels.own.shape, 0.0)
    columns = _Running(ring.full((count,), MASKED), ring.full((count,), 0.0))
    carry = ((block, labels, rows, own), columns)
    ((_, _, rows, own), columns), _ = jax.lax.scan(step, carry, ring.steps(block))
    rows, own = from_tiles((rows, own), length=length)
    statistics = Statistics(rows.lse(), rows.largest, own, columns.lse())
    return statistics, (queries, candidates, scale, query_labels, candidate_labels, rows, columns)


def _backward(ring: Ring, residuals: Any, cotangent: Statistics) -> tuple[Any, ...]:
    queries, candidates, scale, query_labels, candidate_labels, rows, columns = residuals
    count = candidates.shape[0]
    column_weight = columns.weight(cotangent.column_lse)

    def step(carry: Any, t: jax.Array) -> tuple[Any, None]:
        visitor, d_candidates = carry
        block, d_block, labels, largest, weight, d_label = _take(visitor, t)

        def column_tile(carry: Any, k: jax.Array) -> tuple[Any, None]:
            d_block, d_candidates = carry
            at, visited, visited_labels = _columns(candidates, candidate_labels, k, ring.tile)
            size = visited.shape[0]
            logits = cosines(block, visited)
            negative = negatives(labels, visited_labels)
            d_logits = weight[:, None] * jnp.exp(logits - largest[:, None])
            d_logits = jnp.where(negative, d_logits, 0.0)
            if ring.columns:
                there = jnp.exp(logits - _slice(columns.largest, at, size))
                there *= _slice(column_weight, at, size)
                d_logits += jnp.where(negative & labels.valid[:, None], there, 0.0)
            for p, mask in enumerate(own_candidates(labels, visited_labels)):
                d_logits += jnp.where(mask, d_label[:, p, None], 0.0)
            d_block += cosines(d_logits, visited.T)
            d_visited = _slice(d_candidates, at, size) + cosines(d_logits.T, block.T)
            return (d_block, _update(d_candidates, d_visited, at=at)), None

        tiles = jnp.arange(_tile_count(count, ring.tile))
        (d_block, d_candidates), _ = jax.lax.scan(column_tile, (d_block, d_candidates), tiles)
        leaving = ring.pass_on((block, d_block), (labels, largest, weight, d_label))
        return (_put(visitor, leaving, t), d_candidates), None

    visitor = queries * scale, query_labels, rows.largest, rows.weight(cotangent.lse)
    block, *rest = into_tiles((*visitor, cotangent.label), tile=ring.tile)
    carry = ((block, ring.full(block.shape, 0.0), *rest), ring.full(candidates.shape, 0.0))
    ((_, d_block, *_), d_candidates), _ = jax.lax.scan(step, carry, ring.steps(block))
    d_scaled = from_tiles(d_block, length=queries.shape[0])
    return d_scaled * scale, d_candidates, (d_scaled * queries).sum(), None, None


ring_statistics.defvjp(_forward, _backward)


def _tile_count(length: int, tile: int) -> int:
    return max(1, -(-length // tile))


def _columns(
    candidates: jax.Array, labels: CandidateLabels, k: jax.Array, tile: int
) -> tuple[jax.Array, jax.Array, CandidateLabels]:
    """Tile k of the candidates at home: (where it starts, vectors, labels).

    The last tile of a ragged block is moved back to end with the block; what it shares with the
    one before is made invalid, so that no candidate is met twice and none is copied to pad.
    """
    length = candidates.shape[0]
    size = -(-length // _tile_count(length, tile))
    at = jnp.minimum(k * size, length - size)
    visited = CandidateLabels(*(_slice(leaf, at, size) for leaf in labels))
    fresh = at + jnp.arange(size) >= k * size
    return at, _slice(candidates, at, size), visited._replace(valid=visited.valid & fresh)


def _slice(array: jax.Array, at: jax.Array, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(array, at, size)


def _update(array: jax.Array, part: jax.Array, *, at: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, at, axis=0)


def _take(tiles: Any, t: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf[t], tiles)


def _put(tiles: Any, tile: Any, t: jax.Array) -> Any:
    def put(leaf: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_index_in_dim(leaf, part, t, axis=0)

    return jax.tree.map(put, tiles, tile)
