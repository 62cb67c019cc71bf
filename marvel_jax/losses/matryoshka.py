"""The same loss on the first numbers of each vector, so that short vectors can be searched too."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError
from marvel_jax.losses.contrastive import ContrastiveLoss

_LEAST = 1e-24  # under the squared norm: padding is all zeros, and must give no NaN


def nested_loss(
    loss: Callable[[jax.Array, jax.Array], ContrastiveLoss],
    queries: jax.Array,
    candidates: jax.Array,
    *,
    widths: Sequence[int],
    weights: Sequence[float] = (),
) -> ContrastiveLoss:
    """The weighted mean of a loss over nested widths of its vectors.

    Args:
      loss: of queries [B, d] and candidates [C, d], unit vectors of any width d.
      queries: [B, D] unit vectors.
      candidates: [C, D] unit vectors.
      widths: how many of the first numbers each term takes, normalised again; ascending. The whole
        width D is a term always, with weight 1 where it is not named.
      weights: of `widths`; none are 1 each.

    Returns:
      `loss` is the mean; what else there is belongs to the whole width.

    Raises:
      MarvelError: a width exceeds D.

    Source: Kusupati et al. 2022, Matryoshka representation learning.
    """
    whole = queries.shape[1]
    check_widths(widths, whole=whole)
    weight_of = dict(zip(widths, weights or [1.0] * len(widths), strict=True))
    last = loss(queries, candidates)
    total = weight_of.pop(whole, 1.0)
    summed = total * last.loss
    for width, weight in weight_of.items():
        summed += weight * loss(_first(queries, width), _first(candidates, width)).loss
        total += weight
    return last._replace(loss=summed / total)


def check_widths(widths: Sequence[int], *, whole: int) -> None:
    """Refuses widths that vectors of `whole` numbers do not have.

    Raises:
      MarvelError: a width exceeds `whole`.
    """
    wide = [width for width in widths if width > whole]
    if wide:
        raise MarvelError(
            f"loss.matryoshka={tuple(widths)}: the model's vectors have {whole} numbers, so there "
            f"are no first {wide[0]}. Give widths up to {whole}."
        )


def _first(vectors: jax.Array, width: int) -> jax.Array:
    """[n, width]: the first numbers, of norm 1 again, in float32."""
    first = vectors[:, :width].astype(jnp.float32)
    squared = jnp.sum(first * first, axis=1, keepdims=True)
    return first * jax.lax.rsqrt(jnp.maximum(squared, _LEAST))
