"""InfoNCE over every candidate of the global batch, with copies of known positives masked."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Large and finite: a row that is masked from end to end must give a number, not a NaN.
MASKED = -1e30


class ContrastiveLoss(NamedTuple):
    """Scalars, float32: the mean over valid queries and what is worth watching beside it."""

    loss: jax.Array
    accuracy: jax.Array  # share of queries whose own positive scores above every other candidate
    positive_similarity: jax.Array  # mean cosine of query and own positive


def info_nce(
    queries: jax.Array,
    candidates: jax.Array,
    *,
    temperature: jax.Array,
    own_positive: jax.Array,
    candidate_id: jax.Array,
    positive_ids: jax.Array,
    positive_valid: jax.Array,
    query_valid: jax.Array,
    candidate_valid: jax.Array,
    symmetric: bool = False,
) -> ContrastiveLoss:
    """Dense InfoNCE: the plain-array oracle that every other implementation must equal.

    Every candidate of the batch stands in every query's denominator, hard negatives of other
    queries too, except copies of the query's known positives other than its own.

    Args:
      queries: [B, D] unit vectors, any float type; similarities are taken in float32.
      candidates: [C, D] unit vectors.
      temperature: scalar that divides the cosines.
      own_positive: [B] int32, the row of `candidates` that is the query's label.
      candidate_id: [C, 2] uint32 hash of each candidate's id.
      positive_ids: [B, M, 2] uint32 hashes of every known positive of the query.
      positive_valid: [B, M] bool, False where `positive_ids` is padding.
      query_valid: [B] bool; an invalid query has no term.
      candidate_valid: [C] bool; an invalid candidate is in no denominator.
      symmetric: adds the candidate-to-query direction with equal weight, for own positives.

    Source: van den Oord et al. 2018; in-batch form as in U-MARVEL (specification 1.8 to 1.10).
    """
    similarity = jnp.matmul(
        queries.astype(jnp.float32),
        candidates.astype(jnp.float32).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    logits = similarity / temperature.astype(jnp.float32)
    is_own = own_positive[:, None] == jnp.arange(candidates.shape[0])[None, :]
    allowed = is_own | ~known_positives(candidate_id, positive_ids, positive_valid)
    allowed &= candidate_valid[None, :]
    own_logit = jnp.take_along_axis(logits, own_positive[:, None], axis=1)[:, 0]

    per_query = _cross_entropy(logits, allowed, own_logit, axis=1)
    if symmetric:
        backward = jnp.take(logits, own_positive, axis=1).T
        others = jnp.take(allowed, own_positive, axis=1).T & query_valid[None, :]
        # Two queries may share one positive: only the query of this row is its label.
        label = jnp.eye(queries.shape[0], dtype=bool)
        same = own_positive[:, None] == own_positive[None, :]
        per_query += _cross_entropy(backward, (others & ~same) | label, own_logit, axis=1)

    weight = query_valid.astype(jnp.float32)
    count = jnp.maximum(weight.sum(), 1.0)
    best_other = jnp.where(allowed & ~is_own, logits, MASKED).max(axis=1)
    own_similarity = jnp.take_along_axis(similarity, own_positive[:, None], axis=1)[:, 0]
    return ContrastiveLoss(
        loss=(per_query * weight).sum() / count,
        accuracy=((own_logit > best_other) * weight).sum() / count,
        positive_similarity=(own_similarity * weight).sum() / count,
    )


def known_positives(
    candidate_id: jax.Array, positive_ids: jax.Array, positive_valid: jax.Array
) -> jax.Array:
    """[B, C] bool: candidate c carries the id of one of the known positives of query b."""
    equal = (positive_ids[:, :, None, :] == candidate_id[None, None, :, :]).all(axis=-1)
    return (equal & positive_valid[:, :, None]).any(axis=1)


def _cross_entropy(
    logits: jax.Array, allowed: jax.Array, own_logit: jax.Array, *, axis: int
) -> jax.Array:
    return jax.nn.logsumexp(jnp.where(allowed, logits, MASKED), axis=axis) - own_logit
