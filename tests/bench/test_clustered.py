"""The invented corpus: the same rows however they are read, uneven, clustered, in parts."""

import numpy as np
import pytest

from marvel_jax.bench import clustered
from marvel_jax.bench.clustered import Clustered, write_store
from marvel_jax.errors import MarvelError


def test_rows_do_not_depend_on_how_they_are_read(monkeypatch):
    monkeypatch.setattr(clustered, "_BLOCK", 32)
    vectors = Clustered(rows=100, dimension=12)
    whole = vectors.corpus(0, 100)
    assert whole.shape == (100, 12) and whole.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(vectors.corpus(30, 70), whole[30:70])
    np.testing.assert_array_equal(vectors.corpus(96, 200), whole[96:])
    # Asked for fewer, the same come first.
    np.testing.assert_array_equal(vectors.queries(40)[:9], vectors.queries(9))
    others = Clustered(rows=100, dimension=12, seed=1)
    for draw in (
        vectors.queries(100),
        vectors.queries(100, stream="tuning"),
        others.corpus(0, 100),
    ):
        assert (np.abs(draw @ whole.T) < 0.9999).all()


def test_clusters_are_uneven_and_parts_lie_apart():
    tight = Clustered(rows=4000, dimension=64, clusters=20, spread=0.05)
    near = tight.corpus(0, 4000) @ tight.corpus(0, 4000).T > 0.9
    sizes = near.sum(axis=1)
    assert sizes.max() > 4 * sizes.min() > 100
    parts = [Clustered(rows=300, dimension=64, apart=3.0, part=part) for part in range(2)]
    first, second = (part.corpus(0, 300) for part in parts)
    assert (first @ first.T).mean() > 0.5 > 0.3 > (first @ second.T).mean()


def test_a_store_of_parts_is_written_once_and_a_killed_writer_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(clustered, "_BLOCK", 64)
    parts = [("a", Clustered(rows=90, dimension=8)), ("b", Clustered(rows=70, dimension=8, part=1))]
    seen = []

    def interrupt(done, total):
        seen.append((done, total))
        if done == 154:
            raise KeyboardInterrupt

    writer = clustered.StoreWriter
    monkeypatch.setattr(clustered, "StoreWriter", lambda *args: writer(*args, shard_rows=64))
    with pytest.raises(KeyboardInterrupt):
        write_store(parts, tmp_path / "store", dtype="float32", progress=interrupt)
    assert seen == [(64, 160), (90, 160), (154, 160)]
    store = write_store(parts, tmp_path / "store", dtype="float32")
    assert store.ids[89] == "a:89" and store.ids[90] == "b:0"
    expected = np.concatenate([part.corpus(0, part.rows) for _, part in parts])
    np.testing.assert_array_equal(store.vectors(), expected)
    assert len(write_store(parts, tmp_path / "store", dtype="float32")) == 160
    with pytest.raises(MarvelError, match="dtype="):
        write_store(parts, tmp_path / "store", dtype="int8")


def test_nothing_is_no_corpus():
    with pytest.raises(MarvelError, match="rows=0"):
        Clustered(rows=0, dimension=8)
