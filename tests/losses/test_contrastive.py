"""InfoNCE against a plain float64 oracle: value and gradients, masks, several positives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.losses.contrastive import info_nce


def oracle(queries, candidates, temperature, case, *, symmetric):
    """Loops in float64; the definition, one query at a time."""
    queries, candidates = np.float64(queries), np.float64(candidates)
    known = [
        {tuple(i) for i, ok in zip(ids, valid, strict=True) if ok}
        for ids, valid in zip(case["positive_ids"], case["positive_valid"], strict=True)
    ]
    ids = [tuple(i) for i in case["candidate_id"]]
    own = case["own_positive"]
    losses = []
    for b in range(len(queries)):
        if not case["query_valid"][b]:
            continue
        row = [
            queries[b] @ candidates[c] / temperature
            for c in range(len(candidates))
            if case["candidate_valid"][c] and (c == own[b] or ids[c] not in known[b])
        ]
        label = queries[b] @ candidates[own[b]] / temperature
        losses.append(np.logaddexp.reduce(row) - label)
        if symmetric:
            column = [
                queries[k] @ candidates[own[b]] / temperature
                for k in range(len(queries))
                if k == b or (case["query_valid"][k] and ids[own[b]] not in known[k])
            ]
            losses[-1] += np.logaddexp.reduce(column) - label
    return float(np.mean(losses)) if losses else 0.0


def make_case(seed, *, batch=6, extra=3, width=8, spread=1.0, ids=5):
    """Random unit vectors; candidate ids repeat, so that copies of positives occur."""
    rng = np.random.default_rng(seed)
    count = batch + extra
    candidates = rng.normal(size=(count, width))
    queries = candidates[:batch] * spread + rng.normal(size=(batch, width))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, candidates)]
    candidate_id = np.stack([rng.integers(0, ids, count), np.zeros(count)], 1).astype(np.uint32)
    positive_ids = np.stack([rng.integers(0, ids, (batch, 3)), np.zeros((batch, 3))], -1)
    positive_ids[:, 0] = candidate_id[:batch]
    case = {
        "own_positive": np.arange(batch, dtype=np.int32),
        "candidate_id": candidate_id,
        "positive_ids": positive_ids.astype(np.uint32),
        "positive_valid": np.concatenate(
            [np.ones((batch, 1), bool), rng.random((batch, 2)) < 0.5], axis=1
        ),
        "query_valid": rng.random(batch) < 0.8,
        "candidate_valid": np.concatenate([np.ones(batch, bool), rng.random(extra) < 0.5]),
    }
    return unit[0].astype(np.float32), unit[1].astype(np.float32), case


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), symmetric=st.booleans(), tau=st.sampled_from([0.02, 0.05, 1.0]))
def test_value_equals_float64_oracle(seed, symmetric, tau):
    queries, candidates, case = make_case(seed)
    found = info_nce(queries, candidates, temperature=jnp.float32(tau), symmetric=symmetric, **case)
    expected = oracle(queries, candidates, tau, case, symmetric=symmetric)
    assert found.loss == pytest.approx(expected, abs=1e-6 * max(1.0, 1 / tau))


@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_equal_finite_differences_of_the_oracle(symmetric):
    queries, candidates, case = make_case(3)

    def loss(q, c, log_tau):
        return info_nce(q, c, temperature=jnp.exp(log_tau), symmetric=symmetric, **case).loss

    log_tau = np.log(0.3)
    grads = jax.grad(loss, argnums=(0, 1, 2))(queries, candidates, jnp.float32(log_tau))
    rng = np.random.default_rng(0)
    step = 1e-5
    directions = [rng.normal(size=x.shape) for x in (queries, candidates)] + [np.float64(1.0)]
    for index, (grad, direction) in enumerate(zip(grads, directions, strict=True)):

        def moved(sign, index=index, direction=direction):
            args = [np.float64(queries), np.float64(candidates), np.float64(log_tau)]
            args[index] = args[index] + sign * step * direction
            return oracle(args[0], args[1], np.exp(args[2]), case, symmetric=symmetric)

        slope = (moved(1) - moved(-1)) / (2 * step)
        assert float((np.asarray(grad) * direction).sum()) == pytest.approx(slope, abs=2e-6)


def test_copy_of_a_positive_is_no_negative():
    queries = np.eye(2, 4, dtype=np.float32)
    candidates = np.eye(2, 4, dtype=np.float32)
    candidates[1] = candidates[0]  # the same picture under the second query
    case = {
        "own_positive": np.array([0, 1], np.int32),
        "candidate_id": np.array([[7, 0], [7, 0]], np.uint32),
        "positive_ids": np.array([[[7, 0]], [[7, 0]]], np.uint32),
        "positive_valid": np.ones((2, 1), bool),
        "query_valid": np.array([True, False]),
        "candidate_valid": np.ones(2, bool),
    }
    found = info_nce(queries, candidates, temperature=jnp.float32(0.05), **case)
    assert found.loss == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("symmetric", [False, True])
def test_fully_masked_batch_gives_zero_and_finite_gradients(symmetric):
    queries, candidates, case = make_case(1)
    case["query_valid"] = np.zeros_like(case["query_valid"])
    case["candidate_valid"] = np.zeros_like(case["candidate_valid"])

    def loss(q, c):
        return info_nce(q, c, temperature=jnp.float32(0.05), symmetric=symmetric, **case).loss

    value, grads = jax.value_and_grad(loss, argnums=(0, 1))(queries, candidates)
    assert value == 0.0
    assert all(np.isfinite(grad).all() for grad in grads)


def test_similarities_are_float32_for_bfloat16_vectors():
    queries, candidates, case = make_case(5)
    low = [jnp.asarray(x, jnp.bfloat16) for x in (queries, candidates)]
    exact = [np.asarray(x, np.float32) for x in low]
    found = info_nce(*low, temperature=jnp.float32(0.05), **case)
    expected = oracle(*exact, 0.05, case, symmetric=False)
    assert found.loss == pytest.approx(expected, abs=2e-5)
    assert found.loss.dtype == jnp.float32
