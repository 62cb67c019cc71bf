"""What the GPU kernels share: tiles of a row, which of them meet, and a tile of logits."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

_LOG2_E = float(np.log2(np.e))
# In place of a forbidden logit, in base 2. Finite: a tile in which a query may see nothing must not
# make it NaN; what such a tile leaves in the sums is scaled by exactly 0 when a real logit comes.
FORBIDDEN = -1e30
# The segment of what this file adds to a row to fill its last tile: no real token has it, and
# neither has a row's own padding (0).
ADDED = -1
# A matrix unit takes no smaller side.
_SMALLEST = 16


class Tiles(NamedTuple):
    """Rows of a tile of queries and of keys in each kernel: powers of two."""

    forward: tuple[int, int]
    key_gradient: tuple[int, int]
    query_gradient: tuple[int, int]

    def within(self, length: int) -> "Tiles":
        """Tiles no larger than a row needs."""
        most = max(_SMALLEST, pl.next_power_of_2(length))
        return Tiles(*((min(one, most), min(other, most)) for one, other in self))


class Options(NamedTuple):
    """What is fixed when a kernel is compiled."""

    causal: bool
    interpret: bool
    tiles: Tiles
    precision: lax.Precision | None


def spans(segments: jax.Array, *, tile: int, others: int) -> tuple[jax.Array, jax.Array]:
    """The first of the `others` tiles that a tile's segments may be in, and the one after the last.

    Two tiles may share a segment where the ranges of their segments overlap: exact for rows whose
    segments stand in order, as packed rows do, and never too few for others. Padding counts as the
    last segment, because that is where it stands. Both are [R, S / tile] int32.
    """
    last = np.iinfo(np.int32).max
    order = jnp.where(segments == ADDED, last, jnp.where(segments == 0, last - 1, segments))

    def ranges(tile: int) -> tuple[jax.Array, jax.Array]:
        tiled = order.reshape(len(order), -1, tile)
        return tiled.min(axis=-1), tiled.max(axis=-1)

    (low, high), (other_low, other_high) = ranges(tile), ranges(others)
    meet = (low[:, :, None] <= other_high[:, None]) & (other_low[:, None] <= high[:, :, None])
    first = jnp.argmax(meet, axis=-1)
    after = meet.shape[-1] - jnp.argmax(meet[..., ::-1], axis=-1)
    return first.astype(jnp.int32), after.astype(jnp.int32)


class Sizes(NamedTuple):
    """Sizes of the heads, and the blocks that follow from them."""

    size: int
    padded: int  # a power of two
    shared: int  # query heads to a key head

    @classmethod
    def of(cls, query: jax.Array, key: jax.Array) -> "Sizes":
        size = query.shape[-1]
        padded = max(_SMALLEST, pl.next_power_of_2(size))
        return cls(size, padded, query.shape[2] // key.shape[2])

    # The blocks of a grid (tile of queries, row, query head).

    def spans(self, tiles: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, tiles), lambda i, r, h: (r, 0))

    def one_head(self, tile: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, tile, None, self.padded), lambda i, r, h: (r, i, h, 0))

    def shared_head(self, length: int) -> pl.BlockSpec:
        block = (None, length, None, self.padded)
        return pl.BlockSpec(block, lambda i, r, h: (r, 0, h // self.shared, 0))

    def numbers(self, tile: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, None, tile), lambda i, r, h: (r, h, i))

    # What a kernel does with them.

    @property
    def scale(self) -> float:
        return self.size**-0.5

    def load(self, ref: Any) -> jax.Array:
        """[tile, E], with zeros up to the power of two."""
        return triton.load(ref, mask=self._inside(), other=0.0)

    def store(self, ref: Any, x: jax.Array) -> None:
        triton.store(ref, x.astype(ref.dtype), mask=self._inside())

    def _inside(self) -> jax.Array:
        return (jnp.arange(self.padded) < self.size)[None, :]


def logits_of(
    query: jax.Array,
    key: jax.Array,
    seen: tuple[jax.Array, jax.Array],
    starts: tuple[Any, Any],
    *,
    sizes: Sizes,
    options: Options,
) -> jax.Array:
    """Of a tile [queries, keys] with the segments `seen` that start at `starts`; in base 2."""
    logits = triton.dot(query, key.T, precision=options.precision) * (sizes.scale * _LOG2_E)
    allowed = seen[0][:, None] == seen[1][None, :]
    if options.causal:
        places = [start + jnp.arange(len(s)) for start, s in zip(starts, seen, strict=True)]
        allowed = jnp.logical_and(allowed, places[0][:, None] >= places[1][None, :])
    return jnp.where(allowed, logits, FORBIDDEN)
