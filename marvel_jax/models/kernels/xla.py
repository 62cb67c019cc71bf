"""Attention as array code: the oracle of every other kernel, and the kernel of the CPU."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from marvel_jax.models import linear

# Added to a forbidden logit. Finite, so that no row of the softmax can become NaN.
_FORBIDDEN = -1e30

# Of segment numbers: those of a segment's k-th branch are k times this above the segment's own.
BRANCH = 1 << 16

# Queries that meet all keys of their row at a time. On two CPU cores, attention forward and
# backward over 4 rows of 1,024 tokens with the weights computed again: 0.76 of the time of all
# queries at once and a fifth of the memory; 64 and 256 differ by a tenth.
_CHUNK = 128

_LEAST_WINDOW = 256  # keys


class _Queries(NamedTuple):
    """Queries [R, C, H, E], and the segment and the place in the row of each [R, C]."""

    query: jax.Array
    segments: jax.Array
    order: jax.Array


class _Keys(NamedTuple):
    """Key and value [R, K, S, E], and the segment and the place in the row of each [R, S]."""

    key: jax.Array
    value: jax.Array
    segments: jax.Array
    order: jax.Array


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    keep: str,
    branching: bool = False,
    windows: bool = False,
) -> jax.Array:
    """As `models.attention.attend`, some queries of a row at a time.

    With `windows` they meet the keys between the first and the last that any of them may see: the
    others would have the weight 0. In rows of several items these are few: see `kernels.Kernel`.
    """
    kernel: Callable[[_Queries, _Keys], jax.Array] = functools.partial(
        _attend, causal=causal, branching=branching
    )
    if keep == "inputs":
        kernel = jax.checkpoint(kernel)
    rows, length, heads, size = query.shape
    order = jnp.broadcast_to(jnp.arange(length), (rows, length))
    queries = _Queries(query, segments, order)
    keys = _Keys(key.swapaxes(1, 2), value.swapaxes(1, 2), segments, order)
    count = -(-length // _CHUNK)
    if count == 1:
        return kernel(queries, keys)
    # Float32 outside of the loop, because the chunks' gradients of a key are added in this type.
    wide = keys.key.astype(jnp.float32), keys.value.astype(jnp.float32)

    sizes = _window_sizes(length) if windows else [length]

    def run(chunk: _Queries) -> jax.Array:
        narrow = wide[0].astype(key.dtype), wide[1].astype(value.dtype)
        whole = keys._replace(key=narrow[0], value=narrow[1])
        if len(sizes) == 1:
            return kernel(chunk, whole)
        allowed = _allowed(chunk, whole, causal=causal, branching=branching).any(axis=1)
        first, last = allowed.argmax(axis=1), length - 1 - allowed[:, ::-1].argmax(axis=1)
        least = jnp.searchsorted(jnp.array(sizes), jnp.max(last - first) + 1)
        within = [functools.partial(_within, kernel, size) for size in sizes]
        mixed: jax.Array = jax.lax.switch(least, within, chunk, whole, first)
        return mixed

    width = -(-length // count)

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, count * width - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(rows, count, width, *x.shape[2:]).swapaxes(0, 1)

    mixed = jax.lax.map(run, jax.tree.map(split, queries))
    return mixed.swapaxes(0, 1).reshape(rows, count * width, heads, size)[:, :length]


def _window_sizes(length: int) -> list[int]:
    """Keys that a window may hold, from few to all."""
    return [size for size in (length // 8, length // 4, length // 2) if size >= _LEAST_WINDOW] + [
        length
    ]


def _within(
    kernel: Callable[[_Queries, _Keys], jax.Array],
    size: int,
    queries: _Queries,
    keys: _Keys,
    first: jax.Array,
) -> jax.Array:
    """The kernel over `size` keys of every row, from the `first` [R] on or some before it."""

    def cut(row: _Keys, start: jax.Array) -> _Keys:
        def part(x: jax.Array, axis: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, size, axis)

        return _Keys(
            part(row.key, 1), part(row.value, 1), part(row.segments, 0), part(row.order, 0)
        )

    start = jnp.minimum(first, keys.segments.shape[1] - size)
    return kernel(queries, jax.vmap(cut)(keys, start))


def _allowed(queries: _Queries, keys: _Keys, *, causal: bool, branching: bool) -> jax.Array:
    """Which keys a query may see: bool [R, C, S]."""
    allowed = queries.segments[:, :, None] == keys.segments[:, None, :]
    if branching:
        # A trunk's number is its segment's alone, without a branch.
        allowed |= (queries.segments % BRANCH)[:, :, None] == keys.segments[:, None, :]
    if causal:
        allowed &= keys.order[:, None, :] <= queries.order[:, :, None]
    return allowed


def _attend(queries: _Queries, keys: _Keys, *, causal: bool, branching: bool) -> jax.Array:
    """Some queries of every row against all its keys: [R, C, H, E]."""
    rows, count, heads, size = queries.query.shape
    groups, length = keys.key.shape[1:3]
    shared = heads // groups
    # The queries that share a key head stand one after the other on one axis: keys are never
    # repeated, and a head's logits are one plain matmul, which XLA's CPU backend does 1.7 times as
    # fast as an einsum with an axis for them.
    query = queries.query.reshape(rows, count, groups, shared, size).transpose(0, 2, 3, 1, 4)
    query = query.reshape(rows, groups, shared * count, size)
    logits = linear.contract(query, keys.key, (((3,), (3,)), ((0, 1), (0, 1))))
    logits = logits.reshape(rows, groups, shared, count, length) * size**-0.5
    allowed = _allowed(queries, keys, causal=causal, branching=branching)
    logits = jnp.where(allowed[:, None, None], logits, _FORBIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(keys.value.dtype)
    weights = weights.reshape(rows, groups, shared * count, length)
    mixed = jnp.einsum("rgst,rgte->rgse", weights, keys.value)
    mixed = mixed.reshape(rows, groups, shared, count, size).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(rows, count, heads, size).astype(queries.query.dtype)
