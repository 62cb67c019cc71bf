import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import metrics


@st.composite
def rankings(draw):
    pool = draw(st.integers(4, 12))
    depth = draw(st.integers(1, pool))
    queries = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = np.stack([rng.permutation(pool)[:depth] for _ in range(queries)])
    indices[rng.random(indices.shape) < 0.1] = -1
    relevant = [rng.permutation(pool)[: rng.integers(1, pool)] for _ in range(queries)]
    return indices, relevant, draw(st.integers(1, depth))


@settings(max_examples=80, deadline=None)
@given(rankings())
def test_metrics_equal_their_definitions(case):
    indices, relevant, k = case
    hit, recall, rr, ndcg = [], [], [], []
    for row, answers in zip(indices.tolist(), [set(r.tolist()) for r in relevant], strict=True):
        top = row[:k]
        hit.append(float(any(i in answers for i in top)))
        recall.append(sum(i in answers for i in top) / len(answers))
        rr.append(next((1 / (place + 1) for place, i in enumerate(top) if i in answers), 0.0))
        gain = sum(1 / math.log2(place + 2) for place, i in enumerate(top) if i in answers)
        ideal = sum(1 / math.log2(place + 2) for place in range(min(k, len(answers))))
        ndcg.append(gain / ideal)
    np.testing.assert_allclose(metrics.hit_at_k(indices, relevant, k), hit)
    np.testing.assert_allclose(metrics.recall_at_k(indices, relevant, k), recall)
    np.testing.assert_allclose(metrics.reciprocal_rank(indices, relevant, k), rr)
    np.testing.assert_allclose(metrics.ndcg_at_k(indices, relevant, k), ndcg)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 7))
def test_chance_equals_counting_every_draw(pool, relevant, k):
    relevant, k = min(relevant, pool), min(k, pool)
    draws = list(itertools.combinations(range(pool), k))
    hits = sum(min(draw) < relevant for draw in draws)
    chance = metrics.chance_hit_at_k(pool, [relevant, relevant], k)
    np.testing.assert_allclose(chance, [hits / len(draws)] * 2, atol=1e-12)


def test_chance_does_not_overflow_on_the_union_pool():
    assert metrics.chance_hit_at_k(5_609_079, [1], 5)[0] == pytest.approx(5 / 5_609_079)


def test_bootstrap_agrees_with_resampling_queries_one_by_one():
    values = np.random.default_rng(0).choice([0.0, 0.2, 1.0], size=60)
    rng = np.random.default_rng(1)
    plain = [values[rng.integers(60, size=60)].mean() for _ in range(4000)]
    found = metrics.bootstrap_interval(values, seed=3, draws=4000)
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(np.quantile(plain, 0.025), abs=0.02)
    assert found.high == pytest.approx(np.quantile(plain, 0.975), abs=0.02)
    assert metrics.bootstrap_means(values, seed=3).std() == pytest.approx(np.std(plain), rel=0.1)


def test_bootstrap_is_a_function_of_its_seed_and_covers_the_mean():
    values = np.random.default_rng(0).random(500)  # as many distinct values as queries
    first, again = (metrics.bootstrap_interval(values, seed=7) for _ in range(2))
    assert first == again
    assert first != metrics.bootstrap_interval(values, seed=8)
    assert first.low < first.mean < first.high
    assert metrics.bootstrap_interval(np.ones(9), seed=0) == (1.0, 1.0, 1.0)


def test_a_repeated_answer_counts_once():
    indices, relevant = np.array([[4, 2, 7]]), [np.array([2, 7, 2])]
    assert metrics.recall_at_k(indices, relevant, 2).tolist() == [0.5]
    assert metrics.ndcg_at_k(np.array([[2, 7, 4]]), relevant, 3).tolist() == [1.0]


def test_an_empty_place_is_nobodys_answer():
    # The place before a query's row 0 must not be the last row of the query before.
    indices = np.array([[0, -1], [-1, -1]])
    relevant = [np.array([9]), np.array([0])]
    assert metrics.relevance(indices, relevant).tolist() == [[False, False], [False, False]]


def test_impossible_questions_are_refused():
    indices = np.array([[0, 1]])
    with pytest.raises(MarvelError, match="Query 0 has no relevant"):
        metrics.hit_at_k(indices, [np.array([], int)], 1)
    with pytest.raises(MarvelError, match="k=3, but 2 results"):
        metrics.hit_at_k(indices, [np.array([1])], 3)
    with pytest.raises(MarvelError, match="1 rankings, but answers for 2"):
        metrics.hit_at_k(indices, [np.array([1])] * 2, 1)
    with pytest.raises(MarvelError, match="pool of 4"):
        metrics.chance_hit_at_k(4, [1], 5)
