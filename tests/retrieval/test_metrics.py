import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import metrics


class Case(NamedTuple):
    """Rankings by a random run's scores, equal ones by row, and what pytrec_eval takes."""

    indices: np.ndarray
    relevant: list[np.ndarray]
    k: int
    run: dict[str, dict[str, float]]


@st.composite
def cases(draw) -> Case:
    """Few distinct scores, so that many are equal; lists that end early; answers never retrieved,
    some of them outside of what was searched; k beyond the list."""
    pool = draw(st.integers(1, 14))
    depth = draw(st.integers(1, pool))
    queries = draw(st.integers(1, 5))
    k = draw(st.integers(1, 18))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    indices = np.full((queries, depth), -1)
    run: dict[str, dict[str, float]] = {}
    for query in range(queries):
        scores = rng.integers(0, 4, pool) / 4
        found = sorted(range(pool), key=lambda row: (-scores[row], row))
        found = found[: rng.integers(1, depth + 1)]
        indices[query, : len(found)] = found
        run[f"q{query}"] = {_name(row): float(scores[row]) for row in found}
    relevant = [
        rng.permutation(pool + 3)[: rng.integers(1, pool + 4)].astype(np.int64)
        for _ in range(queries)
    ]
    return Case(indices, relevant, k, run)


def _name(row: int) -> str:
    """trec_eval puts the larger of two names first where scores are equal; ours is by row."""
    return f"d{999 - row}"


def by_definition(case: Case) -> dict[str, list[float]]:
    """The five metrics, query by query, in plain Python."""
    found: dict[str, list[float]] = {"hit": [], "recall": [], "rr": [], "ndcg": [], "ap": []}
    k = case.k
    for row, answers in zip(case.indices.tolist(), map(set, case.relevant), strict=True):
        top = [place for place in row[:k] if place >= 0]
        right = [place for place, one in enumerate(top, start=1) if one in answers]
        found["hit"].append(float(bool(right)))
        found["recall"].append(len(right) / len(answers))
        found["rr"].append(1 / right[0] if right else 0.0)
        ideal = sum(1 / math.log2(place + 1) for place in range(1, min(k, len(answers)) + 1))
        found["ndcg"].append(sum(1 / math.log2(place + 1) for place in right) / ideal)
        precisions = [number / place for number, place in enumerate(right, start=1)]
        found["ap"].append(sum(precisions) / len(answers))
    return found


def ours(case: Case) -> dict[str, np.ndarray]:
    judged = metrics.judge(case.indices, case.relevant)
    return {
        "hit": judged.hit(case.k),
        "recall": judged.recall(case.k),
        "rr": judged.reciprocal_rank(case.k),
        "ndcg": judged.ndcg(case.k),
        "ap": judged.average_precision(case.k),
    }


@settings(max_examples=100, deadline=None)
@given(cases())
def test_metrics_equal_their_definitions(case):
    for name, values in by_definition(case).items():
        np.testing.assert_allclose(ours(case)[name], values, rtol=1e-12, err_msg=name)
    # One metric by itself is the same.
    asked = (case.indices, case.relevant, case.k)
    np.testing.assert_array_equal(metrics.hit_at_k(*asked), ours(case)["hit"])
    np.testing.assert_array_equal(metrics.average_precision(*asked), ours(case)["ap"])


@settings(max_examples=100, deadline=None)
@given(cases())
def test_metrics_equal_those_of_trec_eval(case):
    trec = pytest.importorskip("pytrec_eval", reason="pytrec-eval-terrier is not installed")
    k = case.k
    qrels = {
        f"q{query}": {_name(int(row)): 1 for row in answers}
        for query, answers in enumerate(case.relevant)
    }
    measures = {f"{name}.{k}" for name in ("success", "recall", "ndcg_cut", "map_cut")}
    found = trec.RelevanceEvaluator(qrels, {*measures, "recip_rank"}).evaluate(case.run)
    names = {"hit": f"success_{k}", "recall": f"recall_{k}", "ndcg": f"ndcg_cut_{k}"}
    names["ap"] = f"map_cut_{k}"
    for ours_, theirs in names.items():
        expected = [found[f"q{query}"][theirs] for query in range(len(qrels))]
        np.testing.assert_allclose(ours(case)[ours_], expected, rtol=1e-6, err_msg=theirs)
    whole = metrics.judge(case.indices, case.relevant).reciprocal_rank(case.indices.shape[1])
    expected = [found[f"q{query}"]["recip_rank"] for query in range(len(qrels))]
    np.testing.assert_allclose(whole, expected, rtol=1e-6)


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


def test_with_k_beyond_the_pool_chance_is_that_of_drawing_it_all():
    assert metrics.chance_hit_at_k(3, [1, 0], 50).tolist() == [1.0, 0.0]


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
    with pytest.raises(MarvelError, match="k=0"):
        metrics.hit_at_k(indices, [np.array([1])], 0)
    with pytest.raises(MarvelError, match="1 rankings, but answers for 2"):
        metrics.hit_at_k(indices, [np.array([1])] * 2, 1)
    with pytest.raises(MarvelError, match="pool of 4"):
        metrics.chance_hit_at_k(4, [5], 1)
