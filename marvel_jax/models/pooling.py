"""From hidden states to one unit vector for each item of a row."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError

POOLINGS = ("mean", "last")


class Embeddings(NamedTuple):
    """vectors [R, G, D] float32 of unit norm (zeros where invalid); valid [R, G] bool."""

    vectors: jax.Array
    valid: jax.Array


def pool(
    hidden: jax.Array,
    *,
    segments: jax.Array,
    pooled: jax.Array,
    items_per_row: int,
    pooling: str = "mean",
) -> Embeddings:
    """Pools each segment of each row over its `pooled` tokens and scales it to unit norm.

    Args:
      hidden: [R, S, D], of any type; sums and norms are float32.
      segments: [R, S] int32; item g of the row is segment g + 1.
      pooled: [R, S] bool, the tokens that count.
      items_per_row: G, the largest segment number of any row.
      pooling: "mean" of those tokens (U-MARVEL, arXiv 2507.14902), or the "last" of them.

    Returns:
      Embeddings. A segment with no token that counts gives zeros and valid False, and neither its
      value nor its gradient is NaN.

    Raises:
      MarvelError: an unknown pooling.
    """
    if pooling not in POOLINGS:
        raise MarvelError(f"pooling {pooling!r} is unknown: use one of {', '.join(POOLINGS)}.")
    hidden = hidden.astype(jnp.float32)
    item = jnp.arange(1, items_per_row + 1)
    member = (segments[:, :, None] == item) & pooled[:, :, None]
    valid = member.any(axis=1)
    if pooling == "mean":
        weights = member.astype(jnp.float32)
        total = jnp.einsum("rsg,rsd->rgd", weights, hidden, precision=jax.lax.Precision.HIGHEST)
        vectors = total / jnp.maximum(weights.sum(axis=1), 1.0)[..., None]
    else:
        order = jnp.arange(hidden.shape[1])
        last = jnp.where(member, order[:, None], 0).max(axis=1)
        vectors = jnp.take_along_axis(hidden, last[..., None], axis=1)
        vectors = jnp.where(valid[..., None], vectors, 0.0)
    # Inside the root, so that the gradient of an empty segment is 0 and not 0 / 0.
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    return Embeddings(vectors / jnp.sqrt(jnp.maximum(square, 1e-24)), valid)
