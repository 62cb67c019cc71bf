"""The forms of the contrastive loss: pure functions of one tile of rows against all columns.

A row is a query and its columns are candidates; in the symmetric direction a row is a label and
its columns are queries. With cosines s, a label's cosine p and temperature tau every form but the
sigmoid is

    log(sum_n w_n exp(theta(s_n)) + v exp(phi(p))) - phi(p)

averaged over the labels of the row; the labels are not in each other's sum. It is computed as
log v + softplus(lse_n - phi(p) - log v), which keeps the precision of a small loss.

Source: U-MARVEL's reference code (specification 1.10), whose small epsilon inside the logarithm
softplus makes needless, and the papers named below.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

# Large and finite: a row that is masked from end to end must give a number, not a NaN.
MASKED = -1e30


class Rows(NamedTuple):
    """Cosines of r rows against all n columns, float32."""

    similarity: jax.Array  # [r, n]
    negative: jax.Array  # [r, n] bool, the columns that count as negatives
    label: jax.Array  # [r, P] cosines of the row's own labels
    has_label: jax.Array  # [r, P] bool


Form = Callable[..., jax.Array]


def softmax(rows: Rows, *, temperature: jax.Array, bias: jax.Array) -> jax.Array:
    """[r]: InfoNCE (van den Oord et al. 2018), theta = phi = s / tau."""
    return _contrast(rows, rows.similarity / temperature, rows.label / temperature)


def llave(rows: Rows, *, temperature: jax.Array, bias: jax.Array) -> jax.Array:
    """[r]: hardness-weighted negatives (LLaVE, Lan et al. 2025): w_n = exp(9 s_n), no gradient."""
    weighted = rows.similarity / temperature + 9.0 * jax.lax.stop_gradient(rows.similarity)
    return _contrast(rows, weighted, rows.label / temperature)


def focal(rows: Rows, *, temperature: jax.Array, bias: jax.Array) -> jax.Array:
    """[r]: FocalInfoNCE (Hou and Li 2023): theta = s (s + 0.2) / tau, phi = p^2 / tau."""
    s = rows.similarity
    return _contrast(rows, s * (s + 0.2) / temperature, rows.label**2 / temperature)


def focal_abs(rows: Rows, *, temperature: jax.Array, bias: jax.Array) -> jax.Array:
    """[r]: focal that keeps the sign: theta = s (|s| + 0.3) / tau, phi = p |p| / tau."""
    s, p = rows.similarity, rows.label
    return _contrast(rows, s * (jnp.abs(s) + 0.3) / temperature, p * jnp.abs(p) / temperature)


def diht(rows: Rows, *, temperature: jax.Array, bias: jax.Array) -> jax.Array:
    """[r]: DiHT (Radenovic et al. 2023): w_n proportional to exp(0.1 s_n), v = 0.95.

    The weights of a row sum to the number of its negatives, and carry gradient.
    """
    tilt = jnp.where(rows.negative, 0.1 * rows.similarity, MASKED)
    count = jnp.maximum(rows.negative.sum(axis=1, keepdims=True), 1).astype(jnp.float32)
    log_weight = tilt - jax.nn.logsumexp(tilt, axis=1, keepdims=True) + jnp.log(count)
    weighted = rows.similarity / temperature + log_weight
    return _contrast(rows, weighted, rows.label / temperature, log_label_weight=math.log(0.95))


def sigmoid(rows: Rows, *, temperature: jax.Array, bias: jax.Array) -> jax.Array:
    """[r]: SigLIP (Zhai et al. 2023): every pair is a yes or no of its own, z = s / tau + bias.

    The sum over the row's negatives and over its labels: each label counts fully.
    """
    no = jax.nn.softplus(rows.similarity / temperature + bias)
    yes = jax.nn.softplus(-(rows.label / temperature + bias))
    no_sum = jnp.where(rows.negative, no, 0.0).sum(axis=1)
    return no_sum + jnp.where(rows.has_label, yes, 0.0).sum(axis=1)


FORMS: dict[str, Form] = {
    "softmax": softmax,
    "sigmoid": sigmoid,
    "llave": llave,
    "focal": focal,
    "focal_abs": focal_abs,
    "diht": diht,
}


def mean_over_labels(values: jax.Array, has_label: jax.Array) -> jax.Array:
    """[r] from [r, P]: the mean over the labels that there are; 0 where there is none."""
    count = jnp.maximum(has_label.sum(axis=1), 1).astype(values.dtype)
    return jnp.where(has_label, values, 0.0).sum(axis=1) / count


def _contrast(
    rows: Rows, negative_logits: jax.Array, label_logits: jax.Array, log_label_weight: float = 0.0
) -> jax.Array:
    masked = jnp.where(rows.negative, negative_logits, MASKED)
    others = jax.nn.logsumexp(masked, axis=1)[:, None]
    terms = jax.nn.softplus(others - label_logits - log_label_weight) + log_label_weight
    return mean_over_labels(terms, rows.has_label)
