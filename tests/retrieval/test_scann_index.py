import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from vector_stores import random_unit, unit, write_store

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import scann_index, scann_memory, scann_ops
from marvel_jax.retrieval.exact import TopK, top_k
from marvel_jax.retrieval.scann_folder import IndexFolder, open_folder
from marvel_jax.retrieval.scann_index import (
    ScannConfig,
    ScannIndex,
    measure,
    recall_against_exact,
)

scann = pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")


def clustered(rows, *, seed):
    """Unit vectors around a hundred centres, as embeddings are; the same centres for any seed."""
    rng = np.random.default_rng(seed)
    centres = random_unit(100, 24)
    return unit(centres[rng.integers(100, size=rows)] + 0.15 * rng.normal(size=(rows, 24)))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("scann") / "store"
    return write_store(path, clustered(6000, seed=1), shard_rows=2500)


@pytest.fixture(scope="module")
def index_path(store, tmp_path_factory):
    path = tmp_path_factory.mktemp("scann") / "index"
    ScannIndex.build(store, path=path)
    return path


QUERIES = clustered(200, seed=2)
VECTORS_OF_60 = random_unit(60, 8)


def test_a_loaded_index_finds_what_exact_search_finds(store, index_path):
    index = ScannIndex.open(index_path, store)
    assert index.config.kind == "tree"
    exact, found = top_k(QUERIES, store, 10), index.search(QUERIES, 10)
    assert recall_against_exact(found, exact).mean() >= 0.95
    # Scores are the exact cosines, so that rankings and fusions of both agree.
    same = found.indices == exact.indices
    np.testing.assert_array_equal(found.scores[same], exact.scores[same])


def test_a_built_a_loaded_and_a_moved_index_answer_alike(store, tmp_path):
    built = ScannIndex.build(store, path=tmp_path / "index").search(QUERIES, 5)
    (tmp_path / "index").rename(tmp_path / "moved")
    moved = ScannIndex.open(tmp_path / "moved", store).search(QUERIES, 5)
    np.testing.assert_array_equal(built.indices, moved.indices)


def test_one_query_is_answered_as_in_a_batch(store, index_path):
    index = ScannIndex.open(index_path, store)
    together = index.search(QUERIES[:4], 5)
    for query in range(4):
        alone = index.search(QUERIES[query : query + 1], 5)
        np.testing.assert_array_equal(alone.indices[0], together.indices[query])


def test_more_leaves_and_reordering_find_more(store, index_path):
    index = ScannIndex.open(index_path, store)
    exact = top_k(QUERIES, store, 10)
    little = index.search(QUERIES, 10, search_leaves=1, reorder=10)
    much = index.search(QUERIES, 10, search_leaves=index.config.leaves, reorder=2000)
    assert recall_against_exact(little, exact).mean() < recall_against_exact(much, exact).mean()
    assert recall_against_exact(much, exact).mean() == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_where_the_leaves_hold_fewer_the_places_are_empty(store, index_path, batch):
    found = ScannIndex.open(index_path, store).search(QUERIES[:batch], 2000, search_leaves=1)
    empty = found.indices == -1
    assert empty.any()
    assert np.isneginf(found.scores[empty]).all()
    assert np.isfinite(found.scores[~empty]).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found.indices)


def test_many_queries_are_searched_some_at_a_time(store, index_path, monkeypatch):
    index, sizes = ScannIndex.open(index_path, store), []
    whole, search = index.search(QUERIES, 5), scann_ops.search

    def spied(searcher, queries, *given, **more):
        sizes.append(len(queries))
        return search(searcher, queries, *given, **more)

    monkeypatch.setattr(scann_ops, "search", spied)
    monkeypatch.setattr(scann_index, "_QUERY_BLOCK", 64)
    found = index.search(QUERIES, 5)
    assert sizes == [64, 64, 64, 8]
    np.testing.assert_array_equal(found.indices, whole.indices)
    np.testing.assert_array_equal(found.scores, whole.scores)


@pytest.mark.parametrize(
    ("count", "cores", "share"), [(200, 30, 7), (5, 30, 1), (8000, 30, 267), (8000, 2, 1024)]
)
def test_every_core_has_queries_to_search(store, index_path, monkeypatch, count, cores, share):
    """ScaNN's threads take whole batches of queries: on 30 cores, one in 30."""
    shares = []
    monkeypatch.setattr(scann_ops, "cores", lambda: cores)
    index = ScannIndex.open(index_path, store)
    searcher = index._searcher(0)

    class Spied:
        def search_batched_parallel(self, *given, batch_size=None, **more):
            shares.append(batch_size)
            return searcher.search_batched_parallel(*given, batch_size=batch_size, **more)

    monkeypatch.setattr(index, "_searcher", lambda number: Spied())
    queries = np.resize(QUERIES, (count, QUERIES.shape[1]))
    found = index.search(queries, 3)
    assert shares == [share]
    few = index.search(queries[:2], 3)
    np.testing.assert_array_equal(found.indices[:2], few.indices)


def test_a_small_corpus_is_searched_exactly_with_ties_by_id(tmp_path):
    vectors = random_unit(50, 7)
    vectors[10] = vectors[3]
    store = write_store(tmp_path / "store", vectors, [f"c:{50 - row:02d}" for row in range(50)])
    ScannIndex.build(store, path=tmp_path / "index")
    index = ScannIndex.open(tmp_path / "index", store)
    assert index.config == ScannConfig(kind="brute_force")
    found, exact = index.search(vectors[:5], 10), top_k(vectors[:5], store, 10)
    np.testing.assert_array_equal(found.indices, exact.indices)
    np.testing.assert_array_equal(found.scores, exact.scores)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_hash": "m1"}, "model_hash='m0'.*model_hash='m1'"),
        ({"rows": 5999}, "count=6000.*count=5999"),
        ({"dimension": 20}, "dimension=24.*dimension=20"),
        ({"seed": 3}, "content_hash="),
    ],
)
def test_an_index_of_another_store_is_refused_with_both_values(
    index_path, tmp_path, changes, message
):
    vectors = clustered(6000, seed=changes.pop("seed", 1))
    vectors = unit(vectors[: changes.pop("rows", 6000), : changes.pop("dimension", 24)])
    other = write_store(tmp_path / "store", vectors, **changes)
    with pytest.raises(MarvelError, match=message):
        ScannIndex.open(index_path, other)


def test_a_damaged_index_is_refused(store, index_path, tmp_path):
    path = tmp_path / "index"
    shutil.copytree(index_path, path)
    codebook = path / "shard-00000" / "ah_codebook.pb"
    with codebook.open("ab") as file:
        file.write(b"x")
    with pytest.raises(MarvelError, match=r"ah_codebook.pb is missing or damaged"):
        ScannIndex.open(path, store)
    manifest = json.loads((path / "manifest.json").read_text())
    del manifest["shards"][0]["files"]["ah_codebook.pb"]
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(MarvelError, match=r"unknown files.*ah_codebook.pb"):
        ScannIndex.open(path, store)
    for damage in ({"shards": None}, {"config": {"x": 1}}, {"shards": [{"start": 0}]}):
        (path / "manifest.json").write_text(json.dumps({**manifest, **damage}))
        with pytest.raises(MarvelError, match=r"manifest\.json is damaged"):
            ScannIndex.open(path, store)
    (path / "manifest.json").write_text(json.dumps({**manifest, "version": 1}))
    with pytest.raises(MarvelError, match="version=1, but version=2"):
        ScannIndex.open(path, store)


def test_a_killed_build_goes_on_and_half_an_index_is_refused(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store", clustered(3200, seed=1))
    path, built = tmp_path / "index", []

    def build(vectors, config):
        if len(built) == 1:
            raise KeyboardInterrupt
        built.append(len(vectors))
        return scann_ops_build(vectors, config)

    scann_ops_build = scann_ops.build
    with monkeypatch.context() as patched:
        patched.setattr(scann_ops, "build", build)
        patched.setattr(scann_memory, "budget", lambda memory_gb: 1_110_000)
        with pytest.raises(KeyboardInterrupt):
            ScannIndex.build(store, path=path)
    with pytest.raises(MarvelError, match=r"unfinished one lies in .*\.index\.unfinished"):
        ScannIndex.open(path, store)
    with pytest.raises(
        MarvelError, match=r"unfinished index made otherwise \(leaves is None there"
    ):
        ScannIndex.build(store, ScannConfig(leaves=9), path=path)
    told = []
    # More memory, for which the rule would make one shard, does not throw away what is there.
    index = ScannIndex.build(store, path=path, say=told.append)
    assert told == ["shard 2 of 2: rows 1,600 to 3,200"]
    exact, found = top_k(QUERIES, store, 10), index.search(QUERIES, 10)
    assert recall_against_exact(found, exact).mean() >= 0.9


def test_a_build_killed_as_it_ends_goes_on_and_is_an_index(tmp_path, monkeypatch):
    store, path = write_store(tmp_path / "store", random_unit(60, 8)), tmp_path / "index"
    rename, unlink = Path.replace, Path.unlink

    def killed(at, act):
        def dies(self, *given, **more):
            if str(self).startswith(str(at)) and (act is unlink or self == at):
                raise KeyboardInterrupt
            return act(self, *given, **more)

        return dies

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed(tmp_path / ".index.unfinished", rename))
        with pytest.raises(KeyboardInterrupt):
            ScannIndex.build(store, path=path)
    monkeypatch.setattr(scann_ops, "build", None)  # nothing is built again
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", killed(path, unlink))
        with pytest.raises(KeyboardInterrupt):
            ScannIndex.build(store, path=path)
    found = ScannIndex.open(path, store).search(VECTORS_OF_60[:3], 5)
    np.testing.assert_array_equal(found.indices, top_k(VECTORS_OF_60[:3], store, 5).indices)


def test_two_that_build_one_shard_do_not_mix_their_files(tmp_path):
    store = write_store(tmp_path / "store", random_unit(60, 8))
    config = ScannConfig().resolve(60, 8, memory=1 << 30)
    first, second = (
        IndexFolder.begin(tmp_path / "index", store, config, asked={}) for _ in range(2)
    )
    with first.shard(0, start=0, stop=60) as one:
        (one / "a").write_text("first")
        with second.shard(0, start=0, stop=60) as other:
            (other / "b").write_text("second")
    (shard,) = first.manifest().shards
    assert list(shard.files) == ["b"]
    path = first.finish()
    assert [file.name for file in (path / shard.folder).iterdir()] == ["b"]
    assert open_folder(path, store).shards == (shard,)


@pytest.mark.parametrize("resident", [True, False])
def test_shards_give_what_one_index_gives_once_everything_is_scored(
    tmp_path, monkeypatch, resident
):
    store = write_store(tmp_path / "store", clustered(3200, seed=1), dtype="bfloat16")
    config = ScannConfig(shard_rows=1100, leaves=8, reorder=3200)
    if not resident:
        monkeypatch.setattr(scann_memory, "_SHARE", 0.0)
    index = ScannIndex.build(store, config, path=tmp_path / "index", memory_gb=1)
    assert index.config.vectors == "store"
    assert "3 shards" in index.description and "from the store" in index.description
    # No second copy of the vectors.
    assert not list((tmp_path / "index").rglob("dataset.npy"))
    found = index.search(QUERIES[:50], 10, search_leaves=8)
    exact = top_k(QUERIES[:50], store, 10)
    np.testing.assert_array_equal(found.indices, exact.indices)
    np.testing.assert_array_equal(found.scores, exact.scores)
    assert bool(index._loaded) == resident


def test_a_tuned_index_reaches_its_target_on_other_queries(tmp_path):
    store = write_store(tmp_path / "store", clustered(3200, seed=1))
    path, lines = tmp_path / "index", []
    ScannIndex.build(
        store, path=path, target_recall=0.9, queries=clustered(300, seed=5), say=lines.append
    )
    index = ScannIndex.open(path, store)
    chosen = index.tuned["chosen"]
    assert index.tuned["reached"] and index.tuned["queries"] == 300
    assert (index.config.search_leaves, index.config.reorder) == (
        chosen["search_leaves"],
        chosen["reorder"],
    )
    recall = recall_against_exact(index.search(QUERIES, 10), top_k(QUERIES, store, 10))
    assert recall.mean() + 2 * recall.std() / len(recall) ** 0.5 >= 0.9
    assert sum("queries/s" in line for line in lines) == len(index.tuned["curve"])


def test_mistakes_are_told(store, index_path, tmp_path):
    index = ScannIndex.open(index_path, store)
    with pytest.raises(MarvelError, match="k=6001: the pool has 6000"):
        index.search(QUERIES, 6001)
    with pytest.raises(MarvelError, match=r"\(200, 20\).*dimension 24"):
        index.search(QUERIES[:, :20], 5)
    with pytest.raises(MarvelError, match=r"Query 3 is not finite \(1 of 200"):
        index.search(np.where(np.arange(200)[:, None] == 3, np.nan, QUERIES), 5)
    with pytest.raises(MarvelError, match="no such folder"):
        ScannIndex.open(tmp_path / "none", store)
    with pytest.raises(MarvelError, match="exists already"):
        ScannIndex.build(store, path=index_path)


def test_without_scann_the_error_says_to_search_exactly(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scann", None)
    with pytest.raises(MarvelError, match="use exact search"):
        ScannIndex.build(store, path=tmp_path / "index")


def test_recall_counts_shared_rows_and_measure_times_both_ways():
    exact = TopK(np.zeros((2, 2), np.float32), np.array([[1, 2], [3, 4]], np.int32))
    found = TopK(np.zeros((2, 2), np.float32), np.array([[2, 9], [4, 3]], np.int32))
    assert recall_against_exact(found, exact).tolist() == [0.5, 1.0]
    # Of a list that ends early what is there counts, and a query that found nothing does not.
    exact = TopK(exact.scores, np.array([[2, -1], [-1, -1]], np.int32))
    found = TopK(exact.scores, np.array([[1, -1], [-1, -1]], np.int32))
    assert recall_against_exact(found, exact).tolist() == [0.0]
    sizes = []
    speed = measure(lambda part: sizes.append(len(part)) or found, QUERIES, singles=4)
    assert sizes == [1, *[1] * 4, 200, *[200] * 3]
    assert speed.single >= 0 and speed.batched >= 0
