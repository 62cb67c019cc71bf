"""Next-token cross-entropy without the logits: a part of each row at a time.

The logits of 32,000 tokens over a vocabulary of 152,000 would take 19 GB. Here they exist for a
few positions of each row, forward and backward, so the memory does not grow with the tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError


class NextTokenLoss(NamedTuple):
    """Scalars, float32: means over the tokens that are asked for."""

    loss: jax.Array
    accuracy: jax.Array  # share of them that the largest logit names
    tokens: jax.Array  # how many they are


def next_token_targets(
    tokens: jax.Array, segments: jax.Array, supervised: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What each place of packed rows predicts: targets [R, S] int32 and mask [R, S] bool.

    Place s predicts the token at s + 1 where that token is supervised and of the same item: the
    last token of an item never predicts the first of its neighbour.

    Args:
      tokens: [R, S] int32.
      segments: [R, S] int32, 0 = padding, 1.. = the item.
      supervised: [R, S] bool, the tokens that are to be predicted.
    """
    targets = jnp.concatenate([tokens[:, 1:], jnp.zeros_like(tokens[:, :1])], axis=1)
    follows = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0) & supervised[:, 1:]
    return targets, jnp.concatenate([follows, jnp.zeros_like(supervised[:, :1])], axis=1)


def next_token_loss(
    hidden: jax.Array,
    head: jax.Array,
    targets: jax.Array,
    *,
    mask: jax.Array,
    positions: int = 16,
) -> NextTokenLoss:
    """Mean of -log softmax(hidden @ head.T)[target] over the tokens of the mask.

    The sequence is cut into parts of `positions` places of every row, and the rows stay whole, so
    that on a mesh each device keeps its own. A part's logits are computed again in the backward
    pass. Logits, softmax and sums are float32.

    Args:
      hidden: [R, S, D] last hidden states, any float type. Where few tokens are asked for, as a
        reranker's answers, pick their places out first: [rows, answers, D].
      head: [V, D], the token embeddings where they are tied. It is cast to the type of `hidden`
        within each part, so give float32 masters: their gradient is summed in their own type.
      targets: [R, S] int32, the token that each place predicts (`next_token_targets`); any number
        where the mask is False.
      mask: [R, S] bool. If nothing is asked for, the loss is 0.
      positions: places of each row whose logits [R, positions, V] exist at a time.

    Raises:
      MarvelError: shapes that do not fit each other, or positions below 1.

    Source: next-token prediction as in U-MARVEL's reranker and generative retention
    (specification 5.3).
    """
    _check(hidden, head, targets, mask, positions)
    rows, length = hidden.shape[:2]
    parts = max(1, -(-length // positions))
    size = -(-length // parts)

    def cut(array: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, parts * size - length), *[(0, 0)] * (array.ndim - 2)]
        split = jnp.pad(array, padding).reshape(rows, parts, size, *array.shape[2:])
        return jnp.moveaxis(split, 1, 0)

    @jax.checkpoint
    def add(
        sums: jax.Array, part: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        states, wanted, counted = part
        states = jnp.where(counted[..., None], states, 0)
        logits = jax.lax.dot_general(
            states,
            head.astype(states.dtype),
            (((2,), (1,)), ((), ())),
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        wanted = jnp.where(counted, wanted, 0)
        # Not one over the vocabulary: a comparison fuses with the sums, a gather's backward pass
        # would scatter into an array of zeros of the logits' size.
        at_target = jnp.arange(logits.shape[-1], dtype=wanted.dtype) == wanted[..., None]
        target = jnp.where(at_target, logits, 0.0).sum(axis=-1, keepdims=True)
        # Less the target before the sum, not after it: a small loss keeps its digits.
        terms = jax.nn.logsumexp(logits - target, axis=-1)
        right = jnp.argmax(logits, axis=-1) == wanted
        new = [jnp.where(counted, values, 0.0).sum() for values in (terms, right, counted)]
        return sums + jnp.stack(new).astype(jnp.float32), None

    cuts = cut(hidden), cut(targets), cut(mask)
    sums, _ = jax.lax.scan(add, jnp.zeros(3, jnp.float32), cuts)
    count = jnp.maximum(sums[2], 1.0)
    return NextTokenLoss(sums[0] / count, sums[1] / count, sums[2])


def _check(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, mask: jax.Array, positions: int
) -> None:
    if hidden.ndim != 3 or head.ndim != 2 or hidden.shape[2] != head.shape[1]:
        raise MarvelError(
            f"hidden {hidden.shape} and head {head.shape} must be [rows, places, D] and "
            "[vocabulary, D]."
        )
    if not hidden.shape[:2] == targets.shape == mask.shape:
        raise MarvelError(
            f"targets {targets.shape} and mask {mask.shape} must both be {hidden.shape[:2]}, as "
            "the hidden states are."
        )
    if positions < 1:
        raise MarvelError(f"positions={positions}: it is a positive number of places, as 16.")
