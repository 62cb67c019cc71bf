"""Tuning: the fastest setting that reaches the target, judged on other queries, too."""

import numpy as np
import pytest
from vector_stores import random_unit, write_store

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import scann_tune
from marvel_jax.retrieval.exact import top_k
from marvel_jax.retrieval.scann_tune import perturbed, tune

CORPUS = random_unit(400, 16)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("tune") / "store", CORPUS)


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Seconds that pass only when a search takes them."""
    now = [0.0]
    monkeypatch.setattr(scann_tune, "perf_counter", lambda: now[0])
    return now


def index_of_shares(store, clock, share, seconds=lambda leaves, reorder: 1.0):
    """A search that finds a given share of the exact answer, and takes a given time."""

    def search(queries, k, *, search_leaves, reorder):
        found = top_k(queries, store, k)
        kept = np.random.default_rng(0).random(found.indices.shape) < share(search_leaves, reorder)
        clock[0] += seconds(search_leaves, reorder)
        return found._replace(indices=np.where(kept, found.indices, -1))

    return search


def test_the_fewest_candidates_that_reach_the_target_are_found(store, clock):
    search = index_of_shares(
        store,
        clock,
        lambda leaves, reorder: 0.99 if leaves >= 8 and reorder >= 100 else 0.5,
        lambda leaves, reorder: 0.05 * leaves + 0.001 * reorder,
    )
    lines = []
    found = tune(search, store, leaves=40, target=0.95, queries=CORPUS[:50], say=lines.append)
    assert found.reached
    assert (found.chosen.search_leaves, found.chosen.reorder) == (8, 100)
    assert found.chosen.recall == pytest.approx(0.99, abs=0.02)
    # The curve is told, and is not followed to its slow end.
    assert [point.search_leaves for point in found.curve[:6]] == [1, 2, 3, 4, 6, 8]
    assert len(found.curve) < 11 and len(lines) == 1 + len(found.curve)
    assert all("recall@10 0." in line for line in lines[1:])


def test_a_target_out_of_reach_gives_the_most_accurate_and_says_so(store, clock):
    search = index_of_shares(store, clock, lambda leaves, reorder: 0.3 if leaves == 3 else 0.1)
    found = tune(search, store, leaves=4, target=0.9, queries=CORPUS[:50])
    assert not found.reached
    assert found.chosen.search_leaves == 3


def test_a_recall_within_its_error_of_the_target_does_not_suffice(store, clock):
    search = index_of_shares(store, clock, lambda leaves, reorder: 0.9)
    assert not tune(search, store, leaves=2, target=0.9, queries=CORPUS[:100]).reached


def test_without_queries_vectors_of_the_store_are_moved_to_cosine_point_8(store):
    moved = perturbed(store, seed=3)
    assert moved.shape == (400, 16)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-5)
    nearest = moved @ CORPUS.T
    rows = np.random.default_rng(3).choice(400, 400, replace=False)
    np.testing.assert_allclose(nearest[np.arange(400), rows], 0.8, atol=1e-5)
    np.testing.assert_array_equal(moved, perturbed(store, seed=3))
    assert not np.array_equal(moved, perturbed(store, seed=4))


@pytest.mark.parametrize("target", [0, 1, 1.5, -0.1])
def test_a_target_that_is_no_share_is_refused(store, clock, target):
    with pytest.raises(MarvelError, match="target recall"):
        tune(index_of_shares(store, clock, lambda *_: 1), store, leaves=4, target=target)
