"""A test's lists ordered again: ties, what is behind the depth, and that none is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.data.protocols.protocol import Answers, Test
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.zero_shot import Ranked
from marvel_jax.retrieval.zero_shot_reranked import reorder


def lists(cosines: list[float], right: int, *, gallery: bool) -> tuple[Test, Ranked]:
    """One query that found the rows 0, 1, ... in this order; `right` is its answer."""
    rows = tuple(map(str, range(len(cosines))))
    answers = Answers((str(right),), gallery=rows if gallery else None)
    found = TopK(np.float32([cosines]), np.arange(len(cosines), dtype=np.int32)[None])
    ranked = Ranked(found, [np.array([right])], np.array([len(cosines)]))
    return Test("one", "queries", "candidates", [answers]), ranked


@pytest.mark.parametrize(("gallery", "order"), [(True, [1, 0, 2]), (False, [0, 1, 2])])
def test_who_ties_in_a_gallery_after_reranking_has_not_chosen(gallery, order):
    # 0.75 + 0 and 0.25 + 0.5, halves of each: equal to the last bit.
    test, ranked = lists([0.75, 0.25, 0.0], 0, gallery=gallery)
    p_yes = np.array([[0.0, 0.5, 0.0]])
    found = reorder(test, ranked, p_yes, weight=0.5, form="alpha")["fused"]
    assert found.indices[0].tolist() == order
    assert found.scores[0].tolist() == [0.375, 0.375, 0.0]


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=12),
    st.data(),
    st.booleans(),
)
def test_the_first_are_ordered_by_their_scores_and_the_others_stay(cosines, data, gallery):
    cosines = sorted(cosines, reverse=True)
    top = data.draw(st.integers(1, len(cosines)))
    said = data.draw(st.lists(st.floats(0, 1), min_size=top, max_size=top))
    right = data.draw(st.integers(0, len(cosines) - 1))
    test, ranked = lists(cosines, right, gallery=gallery)
    orders = reorder(test, ranked, np.array([said]), weight=0.3, form="add")
    score = {"reranked": lambda row: said[row]}
    score["fused"] = lambda row: np.float64(np.float32(cosines[row])) + 0.3 * said[row]
    for name, found in orders.items():
        rows = found.indices[0].tolist()
        assert sorted(rows[:top]) == list(range(top))
        assert rows[top:] == list(range(top, len(cosines)))
        values = [score[name](row) for row in rows[:top]]
        assert values == sorted(values, reverse=True)
        np.testing.assert_array_equal(found.scores[0, :top], np.float32(values))
        assert np.isneginf(found.scores[0, top:]).all()
        if gallery and right < top:
            behind = values[rows.index(right) + 1 :]
            assert values[rows.index(right)] not in behind
