"""List-wise KL against float64 numpy: value, gradients, masks, and one number on any mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from marvel_jax.errors import MarvelError
from marvel_jax.losses.distillation import list_cosines, listwise_kl, teacher_logits
from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh


def softmax(x, valid):
    x = np.where(valid, x, x.dtype.type(-np.inf))
    top = x.max(axis=1, keepdims=True)
    weights = np.exp(x - np.where(np.isfinite(top), top, x.dtype.type(0)))
    return weights / np.maximum(weights.sum(axis=1, keepdims=True), np.finfo(x.dtype).tiny)


def oracle(student, teacher, valid, tau, teacher_tau=None):
    """(loss, d student, d tau), float64, from the definition, a query at a time."""
    student, teacher = student.astype(np.float64), teacher.astype(np.float64)
    p = softmax(teacher / (tau if teacher_tau is None else teacher_tau), valid)
    q = softmax(student / tau, valid)
    count = max(1, int(valid.any(axis=1).sum()))
    loss = sum(
        p[b, j] * (np.log(p[b, j]) - np.log(q[b, j]))
        for b, j in zip(*np.nonzero(valid & (p > 0)), strict=True)
    )
    change = np.where(valid, q - p, 0.0)
    d_tau = -(change * np.where(valid, student, 0.0)).sum() / tau**2
    return loss / count, change / tau / count, d_tau / count


def case(seed, queries=6, width=10, *, spread=0.3):
    rng = np.random.default_rng(seed)
    student = rng.uniform(-spread, spread, (queries, width)).astype(np.float32) + 0.5
    teacher = (student + rng.normal(0, 0.1, student.shape)).astype(np.float32)
    valid = np.arange(width) < rng.integers(0, width + 1, (queries, 1))
    valid[0] = False
    valid[1] = True
    return student, teacher, valid


def loss_of(student, tau, teacher, valid, teacher_tau):
    found = listwise_kl(
        student, teacher, valid=valid, temperature=tau, teacher_temperature=teacher_tau
    )
    return found.loss


GRADIENT = jax.jit(jax.value_and_grad(loss_of, argnums=(0, 1, 2)))


def value_and_grad(student, teacher, valid, tau, teacher_tau=None):
    return GRADIENT(student, jnp.float32(tau), teacher, valid, teacher_tau)


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    tau=st.sampled_from([0.02, 0.05, 0.5]),
    teacher_tau=st.sampled_from([None, 1.0]),
)
def test_the_value_equals_float64(seed, tau, teacher_tau):
    tau = float(np.float32(tau))
    student, teacher, valid = case(seed)
    loss, (d_student, _, d_teacher) = value_and_grad(student, teacher, valid, tau, teacher_tau)
    expected, _, _ = oracle(student, teacher, valid, tau, teacher_tau)
    assert abs(float(loss) - expected) <= 1e-6 * max(1, expected)
    assert not np.any(d_teacher)
    assert not np.any(np.where(valid, 0, d_student))


def plain_gradients(student, teacher, valid, tau, teacher_tau):
    """(d student, d tau) in float32, as one would write them down."""
    student, teacher, tau = student.astype(np.float32), teacher.astype(np.float32), np.float32(tau)
    p = softmax(teacher / (tau if teacher_tau is None else np.float32(teacher_tau)), valid)
    q = softmax(student / tau, valid)
    assert p.dtype == q.dtype == np.float32
    change = np.where(valid, q - p, np.float32(0)) / np.float32(max(1, valid.any(axis=1).sum()))
    return change / tau, -(change * student).sum() / tau**2


# A gradient is a difference of two probabilities over tau: its rounding is that of 1 / tau, however
# small it is itself. So it is held to plain float32 on the same draws, and beats it by far where
# cosines are large beside tau.
@pytest.mark.parametrize(
    ("tau", "teacher_tau", "of_plain"),
    [(0.02, None, 0.5), (0.02, 1.0, 0.7), (0.05, None, 1), (0.05, 1.0, 1.2), (0.5, None, 1.2)],
)
def test_gradients_are_at_least_as_exact_as_plain_float32(tau, teacher_tau, of_plain):
    tau = float(np.float32(tau))
    errors = []
    for seed in range(64):
        drawn = (*case(seed), tau, teacher_tau)
        _, exact_student, exact_tau = oracle(*drawn)
        _, (d_student, d_tau, _) = value_and_grad(*drawn)
        plain_student, plain_tau = plain_gradients(*drawn)
        errors.append(
            [
                *(np.square(found - exact_student).mean() for found in (d_student, plain_student)),
                *((float(found) - exact_tau) ** 2 for found in (d_tau, plain_tau)),
            ]
        )
    ours, plain, ours_tau, plain_tau = np.sqrt(np.mean(errors, axis=0))
    assert ours <= of_plain * plain
    assert ours_tau <= of_plain * plain_tau
    assert ours <= 1e-7 / tau


def test_a_student_that_agrees_with_its_teacher_has_no_loss_and_no_gradient():
    student, _, valid = case(0)
    loss, (d_student, d_tau, _) = value_and_grad(student, student, valid, 0.05)
    assert float(loss) == 0
    # The two softmaxes are rounded apart, by half a unit in the last place of 1 / tau.
    np.testing.assert_allclose(d_student, 0, atol=1e-7 / 0.05)
    np.testing.assert_allclose(d_tau, 0, atol=1e-7 / 0.05**2)


def test_padding_counts_for_nothing_whatever_it_holds():
    student, teacher, valid = case(1)
    bad_student, bad_teacher = np.where(valid, student, np.nan), np.where(valid, teacher, np.inf)
    loss, gradients = value_and_grad(bad_student, bad_teacher, valid, 0.05)
    clean, clean_gradients = value_and_grad(student, teacher, valid, 0.05)
    assert float(loss) == float(clean)
    for found, expected in zip(gradients[:2], clean_gradients[:2], strict=True):
        np.testing.assert_array_equal(found, expected)
    # A query without any candidate is not in the mean either.
    some = valid.any(axis=1)
    alone, _ = value_and_grad(student[some], teacher[some], valid[some], 0.05)
    np.testing.assert_allclose(alone, loss, rtol=1e-6)
    found = listwise_kl(student, teacher, valid=valid, temperature=0.05)
    assert int(found.queries) == some.sum() < len(valid)
    nothing, (d_student, d_tau, _) = value_and_grad(student, teacher, np.zeros_like(valid), 0.05)
    assert float(nothing) == 0 and not np.any(d_student) and float(d_tau) == 0


def test_extreme_lists_stay_finite():
    student = np.array([[1, -1, 0.0], [-1, 1, 0.5]], np.float32)
    teacher = np.array([[-40, 40, 0.0], [1e4, -1e4, 0.0]], np.float32)
    valid = np.ones((2, 3), bool)
    loss, gradients = value_and_grad(student, teacher, valid, 0.01)
    assert all(np.isfinite(part).all() for part in (loss, *gradients))
    # All of p is on one candidate: -log q of it.
    np.testing.assert_allclose(float(loss), (200 + 200) / 2, rtol=1e-6)


@pytest.mark.parametrize("shape", [(8, 1), (4, 2)])
def test_one_number_on_any_mesh(shape):
    """Only the query axis is split; lists of very different lengths lie on different devices."""
    student, teacher, valid = case(3, queries=16, width=50)
    tau = jnp.float32(0.05)

    expected = GRADIENT(student, tau, teacher, valid, None)
    mesh = make_mesh(MeshConfig(data=shape[0], fsdp=shape[1]))
    split = NamedSharding(mesh, PartitionSpec(DATA_AXES))
    placed = [jax.device_put(one, split) for one in (student, teacher, valid)]
    found = GRADIENT(placed[0], tau, placed[1], placed[2], None)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, atol=1e-6 * scale)


def test_teachers_are_what_their_names_say():
    rng = np.random.default_rng(0)
    yes, no = rng.normal(0, 8, (2, 5, 7)).astype(np.float32)
    recall = rng.uniform(-1, 1, (5, 7)).astype(np.float32)
    p_yes = 1 / (1 + np.exp(no.astype(np.float64) - yes))
    weight = np.array([1.0, 0.5, 0.1, 1, 1], np.float32)[:, None]
    expected = {
        "logit_diff": yes.astype(np.float64) - no,
        "p_yes": p_yes,
        "fused": (recall + weight * p_yes) / 2,
    }
    for form, values in expected.items():
        found = teacher_logits(yes, no, recall, form=form, weight=weight)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, values, rtol=2e-6, atol=1e-6)
    with pytest.raises(MarvelError, match="logit_diff"):
        teacher_logits(yes, no, recall, form="best")


def test_half_precision_vectors_are_compared_in_float32():
    rng = np.random.default_rng(0)
    queries, candidates = rng.normal(size=(3, 64)), rng.normal(size=(3, 5, 64))
    low = jnp.asarray(queries, jnp.bfloat16), jnp.asarray(candidates, jnp.bfloat16)
    exact = [np.asarray(one, np.float64) for one in low]
    found = list_cosines(*low)
    assert found.dtype == jnp.float32
    expected = np.einsum("bd,bkd->bk", *exact)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_arrays_that_do_not_fit_are_refused():
    with pytest.raises(MarvelError, match="must all"):
        listwise_kl(np.zeros((2, 3)), np.zeros((2, 4)), valid=np.ones((2, 3)), temperature=1.0)
