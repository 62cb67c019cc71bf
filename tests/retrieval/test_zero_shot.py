"""Ranking in pools and galleries, and its metrics, on vectors whose order is known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.data.protocols.protocol import Answers, Metric, Test
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.zero_shot import Ranked, group, rank, score, values
from tests.retrieval.vector_stores import unit, write_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Ids a to h, ever farther from the first axis; e and f are equal."""
    angles = np.array([0, 10, 20, 30, 40, 40, 60, 70]) * math.pi / 180
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return write_store(tmp_path_factory.mktemp("stores") / "store", unit(vectors), list("abcdefgh"))


QUERY = np.array([[1.0, 0.0]], np.float32)


def ranked(store, answers, *, queries=QUERY, **options):
    found = rank(Test("one", "q", "c", [answers]), queries, store, **options)
    return found, [store.ids[row] for row in found.found.indices[0].tolist() if row >= 0]


def test_a_shared_pool_is_ranked_without_what_was_shown(store):
    found, ids = ranked(store, Answers(("d",), shown=("a", "c")), depth=3)
    assert ids == ["b", "d", "e"]
    assert found.sizes.tolist() == [6]
    _, ids = ranked(store, Answers(("d",), shown=("a",)), depth=50)
    assert ids == list("bcdefgh")


def test_a_gallery_is_ranked_alone_and_a_tie_is_no_choice(store):
    for right, order in (("e", "cfe"), ("f", "cef")):
        answers = Answers((right,), gallery=tuple("fec"))
        found, ids = ranked(store, answers)
        assert "".join(ids) == order
        assert values(found, [answers], Metric(cuts=(1, 2, 3)), 3) == 1
        assert values(found, [answers], Metric(cuts=(1, 2, 3)), 2) == 0


def test_a_query_without_a_vector_finds_nothing_and_a_lacking_candidate_is_never_found(store):
    nothing = np.zeros((1, 2), np.float32)
    for answers in (Answers(("a",)), Answers(("a",), gallery=("a", "b"))):
        found, ids = ranked(store, answers, queries=nothing)
        assert ids == [] and values(found, [answers], Metric(), 10) == 0
    for gallery in (None, ("z", "b")):
        answers = Answers(("z",), gallery=gallery)
        found, ids = ranked(store, answers, missing={"z"})
        assert "z" not in ids and values(found, [answers], Metric(), 10) == 0
    with pytest.raises(MarvelError, match="no vector for 'z'"):
        ranked(store, Answers(("z",)))


def test_galleries_are_for_all_queries_or_none(store):
    answers = [Answers(("a",)), Answers(("a",), gallery=("a", "b"))]
    with pytest.raises(MarvelError, match="some queries have a gallery and some have none"):
        rank(Test("one", "q", "c", answers), np.repeat(QUERY, 2, axis=0), store)


def of(order, right):
    """A ranking of one query by hand."""
    indices = np.array([order], np.int32)
    found = TopK(np.zeros(indices.shape, np.float32), indices)
    return Ranked(found, [np.array(right)], np.array([100]))


@given(order=st.permutations(range(12)), count=st.integers(1, 12), cut=st.integers(1, 15))
def test_average_precision_divides_by_what_could_be_there(order, count, cut):
    right = list(range(count))
    hits, total = 0, 0.0
    for place, row in enumerate(order[:cut], start=1):
        if row in right:
            hits += 1
            total += hits / place
    metric = Metric(kind="average_precision", cuts=(cut,), main=cut)
    found = values(of(order, right), [Answers(("x",) * count)], metric, cut)
    assert found == pytest.approx([total / min(count, cut)])
    best = values(of(sorted(order), right), [Answers(("x",) * count)], metric, cut)
    assert best == pytest.approx([1.0])


@given(
    order=st.permutations(range(8)),
    grades=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    cut=st.integers(1, 10),
)
def test_ndcg_is_that_of_grades(order, grades, cut):
    gain = dict(enumerate(grades))
    got = sum(gain.get(row, 0) / math.log2(at + 2) for at, row in enumerate(order[:cut]))
    ideal = sorted(grades, reverse=True)[:cut]
    most = sum(grade / math.log2(at + 2) for at, grade in enumerate(ideal))
    answers = Answers(tuple(map(str, gain)), grades=tuple(grades))
    metric = Metric(kind="ndcg", cuts=(cut,), main=cut)
    found = values(of(order, list(gain)), [answers], metric, cut)
    assert found == pytest.approx([got / most])


def test_chance_is_that_of_each_gallery(store):
    answers = [Answers(("a",), gallery=("a", "b")), Answers(("a",), gallery=tuple("abcd"))]
    test = Test("one", "q", "c", answers)
    found = rank(test, np.repeat(QUERY, 2, axis=0), store)
    scores, _ = score(test, Metric(cuts=(1, 2)), found, seed=0)
    assert scores.chance == pytest.approx({"R@1": (1 / 2 + 1 / 4) / 2, "R@2": (1 + 1 / 2) / 2})
    assert scores.pool == 3 and scores.own_galleries


def test_a_mean_weighs_tests_alike_whatever_their_size(store):
    made = []
    for name, answers in (("few", [Answers(("a",))]), ("many", [Answers(("h",))] * 9)):
        test = Test(name, "q", "c", answers)
        found = rank(test, np.repeat(QUERY, len(answers), axis=0), store)
        made.append(score(test, Metric(cuts=(1,)), found, seed=0))
    (mean,) = group({"mean": ("few", "many", "other"), "none": ("other",)}, made)
    assert mean.score.mean == 0.5 and mean.tests == ("few", "many") and mean.of == 3
