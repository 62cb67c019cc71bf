"""Attention on NVIDIA GPUs: a Pallas kernel for packed rows, forward and backward.

The online softmax in tiles of FlashAttention-2 (Dao 2023, arXiv 2307.08691), with three things that
rows of several items want. A tile of queries meets only the tiles of keys that can hold its
segments, so that the cost of a row grows with its items' lengths and not with its own. Query heads
that share a key head read it in place; its gradient is summed over them in float32, inside the
kernel. Logits, statistics and sums are float32, whatever the type of the heads.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from marvel_jax.models.kernels import gpu_gradients
from marvel_jax.models.kernels.gpu_tiles import (
    ADDED,
    FORBIDDEN,
    Options,
    Sizes,
    Tiles,
    logits_of,
    spans,
)

# The outer side of a kernel is large, because it stays in registers while the inner one goes by.
# Float32 takes twice the shared memory and its products run outside of the tensor cores.
_NARROW = Tiles(forward=(128, 64), key_gradient=(32, 128), query_gradient=(128, 32))
_WIDE = Tiles(forward=(64, 32), key_gradient=(32, 32), query_gradient=(32, 32))


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    interpret: bool = False,
) -> jax.Array:
    """As `models.attention.attend`, for heads of at most 128; lengths may be anything.

    The backward pass keeps the inputs, the output, and one float32 number a query and head.
    """
    length = query.shape[1]
    wide = query.dtype == jnp.float32
    tiles = (_WIDE if wide else _NARROW).within(length)
    precision = lax.Precision.HIGHEST if wide else None
    added = -length % max(side for pair in tiles for side in pair)

    def fill(x: jax.Array, value: int = 0) -> jax.Array:
        padding = [(0, 0), (0, added)] + [(0, 0)] * (x.ndim - 2)
        return jnp.pad(x, padding, constant_values=value) if added else x

    options = Options(causal, interpret, tiles, precision)
    filled = fill(segments.astype(jnp.int32), ADDED)
    return _attention(fill(query), fill(key), fill(value), filled, options)[:, :length]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, options: Options
) -> jax.Array:
    return _forward(query, key, value, segments, options)[0]


def _attention_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, options: Options
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    mixed, normaliser = _forward(query, key, value, segments, options)
    return mixed, (query, key, value, segments, mixed, normaliser)


def _attention_backward(
    options: Options, saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array | None, ...]:
    query, key, value, segments, mixed, normaliser = saved
    # What the softmax's gradient subtracts from every logit's: in float32, for much cancels.
    inner = jnp.sum(mixed.astype(jnp.float32) * cotangent.astype(jnp.float32), axis=-1)
    needed = gpu_gradients.Needed(
        query, key, value, cotangent, normaliser, inner.swapaxes(1, 2), segments
    )
    queries = gpu_gradients.query_gradient(needed, options)
    return queries, *gpu_gradients.key_gradients(needed, options), None


_attention.defvjp(_attention_forward, _attention_backward)


def _forward(
    query: jax.Array, key: jax.Array, value: jax.Array, segments: jax.Array, options: Options
) -> tuple[jax.Array, jax.Array]:
    """The mixed values [R, S, H, E], and the base-2 logarithm of the normalisers [R, H, S]."""
    rows, length, heads, _ = query.shape
    sizes = Sizes.of(query, key)
    tile, others = options.tiles.forward
    out = [
        jax.ShapeDtypeStruct.like(query),
        jax.ShapeDtypeStruct((rows, heads, length), jnp.float32),
    ]
    mixed, normaliser = pl.pallas_call(
        functools.partial(_forward_kernel, sizes=sizes, options=options),
        grid=(length // tile, rows, heads),
        in_specs=[
            sizes.spans(length // tile),
            sizes.spans(length // tile),
            sizes.one_head(tile),
            sizes.shared_head(length),
            sizes.shared_head(length),
            pl.BlockSpec((None, length), lambda i, r, h: (r, 0)),
        ],
        out_specs=[sizes.one_head(tile), sizes.numbers(tile)],
        out_shape=out,
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=options.interpret,
        name="attention_forward",
    )(*spans(segments, tile=tile, others=others), query, key, value, segments)
    return mixed, normaliser


def _forward_kernel(
    first_ref: Any,
    after_ref: Any,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    segments_ref: Any,
    mixed_ref: Any,
    normaliser_ref: Any,
    *,
    sizes: Sizes,
    options: Options,
) -> None:
    tile, others = options.tiles.forward
    number = pl.program_id(0)
    start = number * tile
    query = sizes.load(query_ref)
    own = segments_ref[pl.ds(start, tile)]

    def meet(other: Any, carry: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        mixed, largest, total = carry
        there = pl.ds(other * others, others)
        key = sizes.load(key_ref.at[there, :])
        seen, starts = (own, segments_ref[there]), (start, other * others)
        logits = logits_of(query, key, seen, starts, sizes=sizes, options=options)
        larger = jnp.maximum(largest, jnp.max(logits, axis=-1))
        shrink = jnp.exp2(largest - larger)
        weights = jnp.exp2(logits - larger[:, None])
        value = sizes.load(value_ref.at[there, :])
        more = triton.dot(weights.astype(value.dtype), value, precision=options.precision)
        total = total * shrink + jnp.sum(weights, axis=-1)
        return mixed * shrink[:, None] + more, larger, total

    after = after_ref[number]
    if options.causal:
        after = jnp.minimum(after, lax.div(start + tile + others - 1, others))
    mixed, largest, total = lax.fori_loop(
        first_ref[number],
        after,
        meet,
        (
            jnp.zeros((tile, sizes.padded), jnp.float32),
            jnp.full((tile,), 2 * FORBIDDEN, jnp.float32),
            jnp.zeros((tile,), jnp.float32),
        ),
    )
    sizes.store(mixed_ref, mixed / total[:, None])
    normaliser_ref[...] = largest + jnp.log2(total)
