"""Merging shards and scoring again: what comes out is what one list of everything would give."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from vector_stores import random_unit, write_store

from marvel_jax.retrieval import scann_candidates
from marvel_jax.retrieval.exact import rescore, top_k
from marvel_jax.retrieval.scann_candidates import merge, score
from marvel_jax.retrieval.scann_ops import Candidates

FEW = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.25, 0.5, np.inf])  # so that scores tie
SCORES = st.one_of(FEW, st.floats(-1, 1, width=32))


@st.composite
def shards(draw):
    """Candidates of 1 to 5 shards for the same queries, rows distinct; some are missing."""
    queries = draw(st.integers(1, 4))
    widths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=5))
    rows = draw(st.permutations(range(sum(widths))))
    parts, first = [], 0
    for width in widths:
        scores = draw(hnp.arrays(np.float32, (queries, width), elements=SCORES))
        missing = draw(hnp.arrays(bool, (queries, width)))
        own = np.tile(np.array(rows[first : first + width], np.int32), (queries, 1))
        scores = np.where(missing, np.float32(-np.inf), scores)
        parts.append(Candidates(np.where(missing, np.int32(-1), own), scores))
        first += width
    return parts


@given(parts=shards(), count=st.integers(1, 12), order=st.randoms())
def test_merging_is_sorting_everything(parts, count, order):
    found = merge(iter(parts), count)
    for query in range(len(found.rows)):
        everything = [
            (float(score), int(row))
            for part in parts
            for score, row in zip(part.scores[query], part.rows[query], strict=True)
        ]
        expected = sorted(everything, key=lambda pair: (-pair[0], pair[1]))[:count]
        assert list(found.rows[query]) == [row for _, row in expected]
        assert list(found.scores[query]) == [score for score, _ in expected]
    shuffled = list(parts)
    order.shuffle(shuffled)
    np.testing.assert_array_equal(merge(iter(shuffled), count).rows, found.rows)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("width", [8, 60])  # scored in float64 at once; float32 chooses first
def test_candidates_are_scored_as_exact_search_scores(tmp_path, monkeypatch, dtype, width):
    monkeypatch.setattr(scann_candidates, "_NUMBERS", 900)  # several parts, so several threads
    monkeypatch.setattr(scann_candidates, "_NUMBERS_READ", 5000)
    vectors = random_unit(80, 24)
    vectors[40:44] = vectors[3]
    store = write_store(
        tmp_path / "store", vectors, [f"c:{99 - n}" for n in range(80)], dtype=dtype
    )
    queries = random_unit(31, 24, seed=1)
    queries[0] = vectors[3]
    rng = np.random.default_rng(2)
    rows = np.array([rng.permutation(80)[:width] for _ in queries], np.int32)
    rows[5, 2:] = -1
    found = score(queries, store, rows, k=5)
    expected = rescore(queries, store, rows, k=5, rank=store.id_rank)
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.scores, expected.scores)


def test_of_all_rows_comes_the_exact_answer(tmp_path):
    vectors = random_unit(120, 16)
    store = write_store(tmp_path / "store", vectors, shard_rows=50)
    queries = random_unit(9, 16, seed=1)
    found = score(queries, store, np.tile(np.arange(120, dtype=np.int32), (9, 1)), k=10)
    exact = top_k(queries, store, 10)
    np.testing.assert_array_equal(found.indices, exact.indices)
    np.testing.assert_array_equal(found.scores, exact.scores)
