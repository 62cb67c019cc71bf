"""`attend`: the one door to every attention kernel, so that no path can turn causal by itself."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError
from marvel_jax.models import linear

# Added to a forbidden logit. Finite, so that no row of the softmax can become NaN.
_FORBIDDEN = -1e30

# Queries that meet all keys of their row at a time. On two CPU cores, attention forward and
# backward over 4 rows of 1,024 tokens with the weights computed again: 0.76 of the time of all
# queries at once and a fifth of the memory; 64 and 256 differ by a tenth.
_CHUNK = 128


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
    *,
    segments: jax.Array,
    causal: bool,
    implementation: str = "xla",
    keep: str = "weights",
) -> jax.Array:
    """Softmax attention within segments, with grouped queries.

    Args:
      query: [R, S, H, E]
      key: [R, S, K, E], where K divides H; query head h reads key head h // (H / K).
      value: [R, S, K, E]
      segments: [R, S] integers. A token sees the tokens of its own segment and no others; 0 is
        padding, which sees padding only, so that nothing real depends on it and no row is empty.
      causal: whether a token sees only itself and what stands before it in the row.
      implementation: the kernel: "xla".
      keep: what the backward pass finds: the attention "weights", H * S * S numbers a row, or only
        the "inputs", from which it computes the weights again, some queries at a time.

    Returns:
      [R, S, H, E] of the type of `query`; logits and softmax are float32.

    Raises:
      MarvelError: an implementation that does not exist, or a `keep`.
    """
    if implementation != "xla":
        raise MarvelError(f"attention implementation {implementation!r} is unknown: use 'xla'.")
    if keep not in ("weights", "inputs"):
        raise MarvelError(f"attention cannot keep {keep!r}: use 'weights' or 'inputs'.")
    kernel: Callable[[_Queries, _Keys], jax.Array] = functools.partial(_attend, causal=causal)
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

    def run(chunk: _Queries) -> jax.Array:
        narrow = wide[0].astype(key.dtype), wide[1].astype(value.dtype)
        return kernel(chunk, keys._replace(key=narrow[0], value=narrow[1]))

    width = -(-length // count)

    def split(x: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, count * width - length)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding).reshape(rows, count, width, *x.shape[2:]).swapaxes(0, 1)

    mixed = jax.lax.map(run, jax.tree.map(split, queries))
    return mixed.swapaxes(0, 1).reshape(rows, count * width, heads, size)[:, :length]


def _attend(queries: _Queries, keys: _Keys, *, causal: bool) -> jax.Array:
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
    allowed = queries.segments[:, :, None] == keys.segments[:, None, :]
    if causal:
        allowed &= keys.order[:, None, :] <= queries.order[:, :, None]
    logits = jnp.where(allowed[:, None, None], logits, _FORBIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(keys.value.dtype)
    weights = weights.reshape(rows, groups, shared * count, length)
    mixed = jnp.einsum("rgst,rgte->rgse", weights, keys.value)
    mixed = mixed.reshape(rows, groups, shared, count, size).transpose(0, 3, 1, 2, 4)
    return mixed.reshape(rows, count, heads, size).astype(queries.query.dtype)
