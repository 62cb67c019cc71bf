"""`attend`: the one door to every attention kernel, so that no path can turn causal by itself."""

import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError

# Added to a forbidden logit. Finite, so that no row of the softmax can become NaN.
_FORBIDDEN = -1e30


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    segments: jax.Array,
    causal: bool,
    implementation: str = "xla",
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

    Returns:
      [R, S, H, E] of the type of `query`; logits and softmax are float32.

    Raises:
      MarvelError: an implementation that does not exist.
    """
    if implementation != "xla":
        raise MarvelError(f"attention implementation {implementation!r} is unknown: use 'xla'.")
    rows, length, heads, size = query.shape
    groups = key.shape[2]
    # The queries that share a key head stand on an axis of their own: keys are never repeated.
    grouped = query.reshape(rows, length, groups, heads // groups, size)
    logits = jnp.einsum("rsgqe,rtge->rgqst", grouped, key, preferred_element_type=jnp.float32)
    allowed = segments[:, :, None] == segments[:, None, :]
    if causal:
        order = jnp.arange(length)
        allowed &= order[None, :] <= order[:, None]
    logits = jnp.where(allowed[:, None, None], logits * size**-0.5, _FORBIDDEN)
    weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
    mixed = jnp.einsum("rgqst,rtge->rsgqe", weights, value)
    return mixed.reshape(rows, length, heads, size).astype(query.dtype)
