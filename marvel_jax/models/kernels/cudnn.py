"""cuDNN's attention, for rows that hold one item: it knows lengths, and no segments."""

from typing import Literal

import jax
import jax.numpy as jnp


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segments: jax.Array,
    *,
    causal: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> jax.Array:
    """As `models.attention.attend`, for rows of one item each, at their start, in 16 bits.

    Padding is not attended to and comes back as 0, its gradient too. cuDNN is told the length of
    each row; its form for packed rows is not used, because jax 0.10.2 has it wrong for grouped
    queries. `implementation` is for tests, which have no GPU.
    """
    real = segments > 0
    # A row without an item attends to one padding token: of none, the softmax would be 0 / 0.
    lengths = jnp.maximum(real.sum(axis=1, dtype=jnp.int32), 1)
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        is_causal=causal,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        implementation=implementation,
    )
    return jnp.where(real[:, :, None, None], mixed, jnp.zeros((), mixed.dtype))
