"""List-wise distillation: a student's cosines towards a reranker's judgement of the same lists.

Every query brings its own K candidates, so that a loss over [b, K] is all there is: no gather, no
negatives of other queries. On a mesh the rows lie where their queries do, and the only thing that
crosses it is the mean.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError
from marvel_jax.losses.forms import MASKED

TeacherForm = Literal["logit_diff", "p_yes", "fused"]


class DistillationLoss(NamedTuple):
    """Scalars, float32: means over the queries that have a valid candidate."""

    loss: jax.Array
    agreement: jax.Array  # share of them whose best candidate is the teacher's best
    queries: jax.Array  # how many they are


def teacher_logits(
    yes: jax.Array,
    no: jax.Array,
    recall: jax.Array,
    *,
    form: TeacherForm = "fused",
    weight: float | jax.Array = 1.0,
) -> jax.Array:
    """The teacher's logits, float32, from what a reranker said; any shape, element by element.

    `logit_diff` is yes - no, the log-odds. `p_yes` is P(Yes) = sigmoid(yes - no). `fused` is
    (recall + weight * P(Yes)) / 2, the released recipe's teacher, on the scale of a cosine.

    Args:
      yes: the reranker's logits of "Yes".
      no: of "No".
      recall: cosines of query and candidate by the model that retrieved them.
      form: logit_diff, p_yes or fused.
      weight: of P(Yes) in `fused`, a number or an array that broadcasts (a weight per task).

    Raises:
      MarvelError: an unknown form.

    Source: U-MARVEL (specification 5.6, 6.1, 6.2).
    """
    log_odds = yes.astype(jnp.float32) - no.astype(jnp.float32)
    if form == "logit_diff":
        return log_odds
    if form == "p_yes":
        return jax.nn.sigmoid(log_odds)
    if form == "fused":
        return (recall.astype(jnp.float32) + weight * jax.nn.sigmoid(log_odds)) / 2
    raise MarvelError(f"form={form!r} is no teacher: choose logit_diff, p_yes or fused.")


def list_cosines(queries: jax.Array, candidates: jax.Array) -> jax.Array:
    """[b, K] float32 dot products of queries [b, D] with their own candidates [b, K, D]."""
    return jnp.einsum(
        "bd,bkd->bk",
        queries.astype(jnp.float32),
        candidates.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def listwise_kl(
    student: jax.Array,
    teacher: jax.Array,
    *,
    valid: jax.Array,
    temperature: jax.Array,
    teacher_temperature: float | jax.Array | None = None,
) -> DistillationLoss:
    """KL(teacher || student) over each query's list, the mean over queries.

    With p = softmax(teacher / sg(T)) and q = softmax(student / tau) over the valid candidates, a
    query's loss is sum_j p_j (log p_j - log q_j). A query without a valid candidate has no term
    and does not count. All in float32; nothing flows back into the teacher.

    Args:
      student: [b, K] cosines, any float type.
      teacher: [b, K] logits as `teacher_logits` gives them; what stands at invalid places does
        not matter, a NaN neither.
      valid: [b, K] bool; lists shorter than K are padded with False.
      temperature: scalar tau of the student, which may be learned.
      teacher_temperature: T; None takes the student's own. Log-odds want a T of their own, as 1:
        they are a hundred times as wide as cosines.

    Raises:
      MarvelError: shapes that do not fit each other.

    Source: U-MARVEL's distillation (specification 6.2), without its epsilon inside the logarithm.
    """
    if student.ndim != 2 or not student.shape == teacher.shape == valid.shape:
        raise MarvelError(
            f"student {student.shape}, teacher {teacher.shape} and valid {valid.shape} must all "
            "be [queries, candidates of each]."
        )
    tau = jnp.asarray(temperature, jnp.float32)
    own = tau if teacher_temperature is None else jnp.asarray(teacher_temperature, jnp.float32)
    student = jnp.where(valid, student.astype(jnp.float32), 0.0)
    teacher = jnp.where(valid, jax.lax.stop_gradient(teacher).astype(jnp.float32), 0.0)
    log_p = _log_softmax(teacher, valid, jax.lax.stop_gradient(own))
    log_q = _log_softmax(student, valid, tau)
    p = jnp.where(valid, jnp.exp(log_p), 0.0)
    terms = (p * jnp.where(valid, log_p - log_q, 0.0)).sum(axis=1)
    counted = valid.any(axis=1)
    agrees = _best(student, valid) == _best(teacher, valid)
    queries = counted.sum().astype(jnp.float32)

    def mean(values: jax.Array) -> jax.Array:
        return jnp.where(counted, values, 0.0).sum() / jnp.maximum(queries, 1.0)

    return DistillationLoss(mean(terms), mean(agrees.astype(jnp.float32)), queries)


def _log_softmax(scores: jax.Array, valid: jax.Array, temperature: jax.Array) -> jax.Array:
    """[b, K] log-probabilities over the valid places; finite everywhere.

    The largest score goes before the division, not after it: rounded at the size of cosine / tau,
    the loss would be off by ten times as much.
    """
    largest = jnp.where(valid, scores, MASKED).max(axis=1, keepdims=True)
    largest = jax.lax.stop_gradient(jnp.where(valid.any(axis=1, keepdims=True), largest, 0.0))
    logits = jnp.where(valid, scores - largest, 0.0) / temperature
    total = jnp.where(valid, jnp.exp(logits), 0.0).sum(axis=1, keepdims=True)
    return logits - jnp.log(jnp.where(total > 0, total, 1.0))


def _best(scores: jax.Array, valid: jax.Array) -> jax.Array:
    return jnp.argmax(jnp.where(valid, scores, MASKED), axis=1)
