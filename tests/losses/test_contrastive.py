"""`dense` InfoNCE against a plain float64 oracle, and what masks and labels mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.losses.contrastive import info_nce
from tests.losses.oracle import make_case, softmax_oracle

CASES = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 10_000),
        "labels": st.sampled_from([1, 3]),
        "hard": st.sampled_from([0, 2]),
        "ids": st.sampled_from([6, 30]),
        "trained": st.sampled_from([0.0, 1.0, 3.0]),
        "temperature": st.sampled_from([0.02, 0.05, 1.0]),
    }
)
DIRECTIONS = [
    {},
    {"symmetric": True},
    {"in_batch_negatives": False},
]


def oracle_of(case, *, symmetric=False, in_batch_negatives=True):
    return softmax_oracle(case, symmetric=symmetric, in_batch=in_batch_negatives)


@pytest.mark.parametrize("options", DIRECTIONS, ids=str)
def test_value_and_gradients_equal_the_float64_oracle(options):
    compiled = {}

    def loss(q, c, tau, labels):
        return info_nce(q, c, temperature=tau, **labels, **options).loss

    @settings(max_examples=25)
    @given(CASES)
    def check(drawn):
        case = make_case(batch=8, **drawn)
        shapes = case.candidates.shape
        step = compiled.setdefault(shapes, jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))))
        tau = jnp.float32(case.temperature)
        value, grads = step(case.queries, case.candidates, tau, case.labels)
        expected = oracle_of(case._replace(temperature=float(tau)), **options)
        assert value == pytest.approx(expected.loss, rel=1e-6, abs=1e-6)
        for grad, wanted in zip(grads[:2], expected.gradients[:2], strict=True):
            np.testing.assert_allclose(grad, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
        # With respect to 1 / tau, whose slope is a mean of differences of cosines.
        slope, wanted = (float(d) * float(tau) ** 2 for d in (grads[2], expected.d_temperature))
        assert slope == pytest.approx(wanted, rel=1e-6, abs=1e-6)

    check()


def tiny(queries, candidates, **changes):
    """The labels of queries [B, D] whose candidates follow them, with unlike ids."""
    b, count = len(queries), len(candidates)
    ids = np.stack([np.arange(count), np.arange(count)], axis=-1).astype(np.uint32)
    own = np.arange(b, dtype=np.int32)[:, None] * (count // b)
    return {
        "temperature": jnp.float32(0.5),
        "own_positive": own,
        "candidate_id": ids,
        "candidate_query": np.repeat(np.arange(b), count // b).astype(np.int32),
        "positive_ids": ids[own],
        "positive_valid": np.ones((b, 1), bool),
        "query_valid": np.ones(b, bool),
        "candidate_valid": np.ones(count, bool),
    } | changes


def test_two_pairs_by_hand():
    eye = np.eye(2, dtype=np.float32)
    found = info_nce(eye, eye, **tiny(eye, eye))
    assert found.loss == pytest.approx(np.log1p(np.exp(-2.0)), abs=1e-7)
    assert (found.accuracy, found.positive_similarity) == (1.0, 1.0)
    swapped = info_nce(eye, eye[::-1], **tiny(eye, eye))
    assert swapped.loss == pytest.approx(np.log1p(np.exp(2.0)), abs=1e-6)
    assert (swapped.accuracy, swapped.positive_similarity) == (0.0, 0.0)


def test_copy_of_a_positive_is_no_negative():
    queries = np.eye(2, 4, dtype=np.float32)
    candidates = queries[[0, 0]]  # the same picture under the second query
    same = np.array([[7, 0], [7, 0]], np.uint32)
    labels = tiny(queries, candidates, candidate_id=same, positive_ids=same[:, None])
    labels["query_valid"] = np.array([True, False])
    assert info_nce(queries, candidates, **labels).loss == pytest.approx(0.0, abs=1e-7)


def test_ids_that_agree_in_one_half_only_are_different():
    vectors = np.eye(2, 4, dtype=np.float32)
    plain = info_nce(vectors, vectors, **tiny(vectors, vectors)).loss
    for ids in ([[1, 5], [1, 6]], [[5, 1], [6, 1]]):
        ids = np.array(ids, np.uint32)
        labels = tiny(vectors, vectors, candidate_id=ids, positive_ids=ids[:, None])
        assert info_nce(vectors, vectors, **labels).loss == plain


def test_several_labels_do_not_push_each_other_away():
    queries = np.eye(1, 4, dtype=np.float32)
    candidates = np.eye(4, dtype=np.float32)[[0, 1]]
    both = tiny(queries, candidates, own_positive=np.array([[0, 1]], np.int32))
    assert info_nce(queries, candidates, **both).loss == pytest.approx(0.0, abs=1e-7)
    one = tiny(queries, candidates, own_positive=np.array([[0, -1]], np.int32))
    assert info_nce(queries, candidates, **one).loss > 0.1


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_query_without_a_label_has_no_term(symmetric):
    case = make_case(4, batch=6, valid=1.0, hard=1)
    labels = dict(case.labels)
    labels["own_positive"] = labels["own_positive"].copy()
    labels["own_positive"][2] = -1
    options = {"temperature": jnp.float32(0.1), "symmetric": symmetric}
    found = info_nce(case.queries, case.candidates, **labels, **options)
    expected = softmax_oracle(
        case._replace(labels=labels, temperature=float(np.float32(0.1))), symmetric=symmetric
    )
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    lonely = labels | {"own_positive": np.full_like(labels["own_positive"], -1)}
    empty = info_nce(case.queries, case.candidates, **lonely, **options)
    assert (empty.loss, empty.accuracy, empty.positive_similarity) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", ["softmax", "sigmoid", "llave", "focal", "focal_abs", "diht"])
def test_fully_masked_batch_gives_zero_and_finite_gradients(form, symmetric):
    if form == "sigmoid" and symmetric:
        return
    case = make_case(1, labels=2)
    labels = case.labels | {
        "query_valid": np.zeros_like(case.labels["query_valid"]),
        "candidate_valid": np.zeros_like(case.labels["candidate_valid"]),
    }
    bias = jnp.float32(-10.0) if form == "sigmoid" else None

    def loss(q, c, tau):
        options = {"form": form, "bias": bias, "symmetric": symmetric}
        return info_nce(q, c, temperature=tau, **labels, **options).loss

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    value, grads = step(case.queries, case.candidates, jnp.float32(0.05))
    assert value == 0.0
    assert all((np.asarray(grad) == 0).all() for grad in grads)


def test_vectors_that_have_collapsed_are_not_retrieved():
    vector = np.random.default_rng(0).normal(size=(1, 64))
    same = np.repeat(vector / np.linalg.norm(vector), 16, axis=0).astype(np.float32)
    assert info_nce(same, same, **tiny(same, same)).accuracy == 0.0


def test_similarities_are_float32_for_bfloat16_vectors():
    case = make_case(5, batch=8)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (case.queries, case.candidates)]
    found = info_nce(*low, temperature=jnp.float32(0.05), **case.labels)
    exact = case._replace(
        queries=np.float32(low[0]), candidates=np.float32(low[1]), temperature=np.float32(0.05)
    )
    assert found.loss == pytest.approx(softmax_oracle(exact).loss, rel=1e-6)
    assert found.loss.dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": "ring", "form": "focal"}, "'ring' knows form='softmax' only.*'focal'"),
        ({"form": "triplet"}, "form='triplet'"),
        ({"implementation": "fast"}, "implementation='fast'"),
        ({"form": "sigmoid"}, "form='sigmoid' needs a bias"),
        ({"bias": 1.0}, "form='softmax' has no bias"),
        ({"form": "sigmoid", "bias": 0.0, "symmetric": True}, "symmetric=True with form='sigmoid'"),
        ({"symmetric": True, "in_batch_negatives": False}, "in_batch_negatives=False"),
        ({"implementation": "gather"}, "'gather' needs a mesh"),
        ({"tile": 0}, "tile=0"),
        ({"own_positive": np.zeros(2, np.int32)}, "own_positive has shape"),
        ({"candidate_id": np.zeros((3, 2), np.uint32)}, "candidate_id has shape"),
    ],
)
def test_what_does_not_go_together_is_refused(options, message):
    eye = np.eye(2, dtype=np.float32)
    with pytest.raises(MarvelError, match=message):
        info_nce(eye, eye, **(tiny(eye, eye) | options))
