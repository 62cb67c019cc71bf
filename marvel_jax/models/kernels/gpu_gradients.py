"""The backward kernels of `pallas_gpu`: of the queries, and of the keys and values."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from marvel_jax.models.kernels.gpu_tiles import Options, Sizes, logits_of, spans


class Needed(NamedTuple):
    """What the backward pass reads."""

    query: jax.Array  # [R, S, H, E]
    key: jax.Array  # [R, S, K, E]
    value: jax.Array  # [R, S, K, E]
    cotangent: jax.Array  # [R, S, H, E]
    normaliser: jax.Array  # [R, H, S] float32: base-2 logarithm of the sum over a query's keys
    inner: jax.Array  # [R, H, S] float32: product of a query's result and its cotangent
    segments: jax.Array  # [R, S]


def query_gradient(needed: Needed, options: Options) -> jax.Array:
    """[R, S, H, E] of the type of the queries."""
    rows, length, heads, _ = needed.query.shape
    sizes = Sizes.of(needed.query, needed.key)
    tile, others = options.tiles.query_gradient
    return pl.pallas_call(
        functools.partial(_query_gradient_kernel, sizes=sizes, options=options),
        grid=(length // tile, rows, heads),
        in_specs=[
            sizes.spans(length // tile),
            sizes.spans(length // tile),
            sizes.one_head(tile),
            sizes.shared_head(length),
            sizes.shared_head(length),
            sizes.one_head(tile),
            sizes.numbers(tile),
            sizes.numbers(tile),
            pl.BlockSpec((None, length), lambda i, r, h: (r, 0)),
        ],
        out_specs=sizes.one_head(tile),
        out_shape=jax.ShapeDtypeStruct.like(needed.query),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=options.interpret,
        name="attention_query_gradient",
    )(*spans(needed.segments, tile=tile, others=others), *needed)


def _query_gradient_kernel(
    first_ref: Any,
    after_ref: Any,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    cotangent_ref: Any,
    normaliser_ref: Any,
    inner_ref: Any,
    segments_ref: Any,
    gradient_ref: Any,
    *,
    sizes: Sizes,
    options: Options,
) -> None:
    tile, others = options.tiles.query_gradient
    dot = functools.partial(triton.dot, precision=options.precision)
    number = pl.program_id(0)
    start = number * tile
    query, cotangent = sizes.load(query_ref), sizes.load(cotangent_ref)
    normaliser, inner = normaliser_ref[...], inner_ref[...]
    own = segments_ref[pl.ds(start, tile)]

    def meet(other: Any, gradient: jax.Array) -> jax.Array:
        there = pl.ds(other * others, others)
        key, value = sizes.load(key_ref.at[there, :]), sizes.load(value_ref.at[there, :])
        seen, starts = (own, segments_ref[there]), (start, other * others)
        logits = logits_of(query, key, seen, starts, sizes=sizes, options=options)
        weights = jnp.exp2(logits - normaliser[:, None])
        slope = weights * (dot(cotangent, value.T) - inner[:, None])
        return gradient + dot(slope.astype(key.dtype), key)

    after = after_ref[number]
    if options.causal:
        after = jnp.minimum(after, lax.div(start + tile + others - 1, others))
    nothing = jnp.zeros((tile, sizes.padded), jnp.float32)
    gradient = lax.fori_loop(first_ref[number], after, meet, nothing)
    sizes.store(gradient_ref, gradient * sizes.scale)


def key_gradients(needed: Needed, options: Options) -> tuple[jax.Array, jax.Array]:
    """Of the keys and of the values, [R, S, K, E] of their type."""
    rows, length, groups, _ = needed.key.shape
    sizes = Sizes.of(needed.query, needed.key)
    others, tile = options.tiles.key_gradient
    # A grid (tile of keys, row, key head): all query heads of the key head at hand.
    own = pl.BlockSpec((None, tile, None, sizes.padded), lambda i, r, g: (r, i, g, 0))
    queries = pl.BlockSpec((None, length, sizes.shared, sizes.padded), lambda i, r, g: (r, 0, g, 0))
    numbers = pl.BlockSpec((None, sizes.shared, length), lambda i, r, g: (r, g, 0))
    key_gradient, value_gradient = pl.pallas_call(
        functools.partial(_key_gradients_kernel, sizes=sizes, options=options),
        grid=(length // tile, rows, groups),
        in_specs=[
            sizes.spans(length // tile),
            sizes.spans(length // tile),
            queries,
            own,
            own,
            queries,
            numbers,
            numbers,
            pl.BlockSpec((None, length), lambda i, r, g: (r, 0)),
        ],
        out_specs=[own, own],
        out_shape=[jax.ShapeDtypeStruct.like(x) for x in (needed.key, needed.value)],
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=2),
        interpret=options.interpret,
        name="attention_key_gradients",
    )(*spans(needed.segments, tile=tile, others=others), *needed)
    return key_gradient, value_gradient


def _key_gradients_kernel(
    first_ref: Any,
    after_ref: Any,
    query_ref: Any,
    key_ref: Any,
    value_ref: Any,
    cotangent_ref: Any,
    normaliser_ref: Any,
    inner_ref: Any,
    segments_ref: Any,
    key_gradient_ref: Any,
    value_gradient_ref: Any,
    *,
    sizes: Sizes,
    options: Options,
) -> None:
    others, tile = options.tiles.key_gradient
    dot = functools.partial(triton.dot, precision=options.precision)
    number = pl.program_id(0)
    start = number * tile
    key, value = sizes.load(key_ref), sizes.load(value_ref)
    own = segments_ref[pl.ds(start, tile)]
    first = first_ref[number]
    if options.causal:
        first = jnp.maximum(first, lax.div(start, others))
    count = after_ref[number] - first

    def meet(turn: Any, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        key_gradient, value_gradient = carry
        head, other = lax.div(turn, count), first + lax.rem(turn, count)
        there = pl.ds(other * others, others)
        query = sizes.load(query_ref.at[there, head, :])
        cotangent = sizes.load(cotangent_ref.at[there, head, :])
        seen, starts = (segments_ref[there], own), (other * others, start)
        logits = logits_of(query, key, seen, starts, sizes=sizes, options=options)
        weights = jnp.exp2(logits - normaliser_ref[head, there][:, None])
        value_gradient += dot(weights.astype(cotangent.dtype).T, cotangent)
        slope = weights * (dot(cotangent, value.T) - inner_ref[head, there][:, None])
        return key_gradient + dot(slope.astype(query.dtype).T, query), value_gradient

    nothing = jnp.zeros((tile, sizes.padded), jnp.float32)
    # One loop and not two: the loads of the next turn then begin in this one, across heads too.
    key_gradient, value_gradient = lax.fori_loop(0, sizes.shared * count, meet, (nothing, nothing))
    sizes.store(key_gradient_ref, key_gradient * sizes.scale)
    sizes.store(value_gradient_ref, value_gradient)
