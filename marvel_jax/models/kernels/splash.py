"""Attention on TPUs: JAX's splash attention, a Pallas kernel, fitted to our rows and heads."""

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu import splash_attention

# A vector register's lanes: heads and rows are filled up to a multiple of them.
_LANES = 128
# Larger blocks keep the matrix unit busier; the largest that divides a row is taken.
_BLOCKS = (512, 256, _LANES)
# The segment of what is added to a row: no token has it, not even the row's own padding (0).
_ADDED = -1


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    interpret: bool = False,
) -> jax.Array:
    """As `models.attention.attend`, for any head size and length.

    Both are filled with zeros up to a multiple of 128 and cut again. The backward pass keeps the
    inputs, the output, and one float32 number a query and head.
    """
    _, length, heads, size = query.shape
    padded = length + -length % _LANES

    def fill(x: jax.Array) -> jax.Array:
        """[R, S, H, E] to [R, H, S', E']."""
        padding = ((0, 0), (0, 0), (0, padded - length), (0, -size % _LANES))
        return jnp.pad(x.swapaxes(1, 2), padding)

    # The kernel has no scale of its own. Multiplied in float32, so that it is rounded once.
    scaled = (query.astype(jnp.float32) * size**-0.5).astype(query.dtype)
    added = ((0, 0), (0, padded - length))
    filled = jnp.pad(segments.astype(jnp.int32), added, constant_values=_ADDED)
    mask = splash_attention.CausalMask if causal else splash_attention.FullMask
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask((padded, padded))] * heads),
        block_sizes=_blocks(padded),
        interpret=interpret,
    )
    mixed = jax.vmap(kernel)(
        fill(scaled), fill(key), fill(value), splash_attention.SegmentIds(q=filled, kv=filled)
    )
    return mixed[:, :, :length, :size].swapaxes(1, 2).astype(query.dtype)


def _blocks(length: int) -> splash_attention.BlockSizes:
    block = next(block for block in _BLOCKS if length % block == 0)
    return splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
