import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_stores import manifest, random_unit, write_store

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.store import StoreWriter, VectorStore, partial_path

VECTORS = random_unit(23, 6)
IDS = [f"emoji:{row * 7 % 23}" for row in range(23)]


@pytest.mark.parametrize("shard_rows", [1, 4, 23, 100])
def test_a_store_gives_back_what_was_written_whatever_its_shards(tmp_path, shard_rows):
    write_store(tmp_path / "store", VECTORS, IDS, shard_rows=shard_rows)
    store = VectorStore.open(tmp_path / "store")
    assert store.manifest == manifest(23, 6)
    assert list(store.ids) == IDS
    assert store.ids[-1] == IDS[-1]
    assert store.ids[3:6] == IDS[3:6]
    np.testing.assert_array_equal(store.vectors(), VECTORS)
    rows = np.array([22, 0, 5, 5, 13])
    np.testing.assert_array_equal(store.vectors(rows), VECTORS[rows])
    for size in (1, 5, 64):
        starts, blocks = zip(*store.blocks(size), strict=True)
        assert list(starts) == list(range(0, 23, size))
        np.testing.assert_array_equal(np.concatenate(blocks), VECTORS)


@settings(max_examples=30, deadline=None)
@given(
    ids=st.lists(
        st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1, max_size=9),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    shard_rows=st.integers(1, 5),
)
def test_any_ids_are_found_again_and_ranked_as_strings(tmp_path_factory, ids, shard_rows):
    path = tmp_path_factory.mktemp("ids") / "store"
    store = write_store(path, random_unit(len(ids), 3), ids, shard_rows=shard_rows)
    assert list(store.ids) == ids
    assert store.rows_of(ids[::-1]).tolist() == list(range(len(ids)))[::-1]
    assert [ids[row] for row in np.argsort(store.id_rank)] == sorted(ids)


def test_a_killed_writer_resumes_at_its_last_whole_shard_with_the_same_bytes(tmp_path):
    whole = write_store(tmp_path / "whole", VECTORS, IDS, shard_rows=5)
    writer = StoreWriter(tmp_path / "store", manifest(23, 6), shard_rows=5)
    writer.append(IDS[:13], VECTORS[:13])
    del writer  # killed with two shards on disk and three rows in memory
    with pytest.raises(MarvelError, match="encode again to complete"):
        VectorStore.open(tmp_path / "store")
    # A shard without its record is not whole.
    (partial_path(tmp_path / "store") / "vectors-00002.npy").write_bytes(b"half")

    writer = StoreWriter(tmp_path / "store", manifest(23, 6), shard_rows=5)
    assert writer.completed == 10
    writer.append(IDS[10:], VECTORS[10:])
    store = writer.finish()
    assert store.content_hash == whole.content_hash
    assert not partial_path(tmp_path / "store").exists()
    names = sorted(file.name for file in (tmp_path / "whole").iterdir())
    assert sorted(file.name for file in (tmp_path / "store").iterdir()) == names


def test_a_writer_killed_while_finishing_can_finish(tmp_path, monkeypatch):
    writer = StoreWriter(tmp_path / "store", manifest(23, 6), shard_rows=5)
    writer.append(IDS, VECTORS)
    with monkeypatch.context() as patch:
        patch.setattr(
            VectorStore, "open", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            writer.finish()
    assert not (tmp_path / "store").exists()
    writer = StoreWriter(tmp_path / "store", manifest(23, 6), shard_rows=5)
    assert writer.completed == 23
    np.testing.assert_array_equal(writer.finish().vectors(), VECTORS)


def test_resuming_with_another_model_is_refused_with_both_values(tmp_path):
    StoreWriter(tmp_path / "store", manifest(23, 6))
    with pytest.raises(MarvelError, match=r"model_hash is 'm0' there, 'm1' here"):
        StoreWriter(tmp_path / "store", manifest(23, 6, model_hash="m1"))


def test_a_finished_store_is_never_overwritten(tmp_path):
    write_store(tmp_path / "store", VECTORS)
    with pytest.raises(MarvelError, match="exists already"):
        StoreWriter(tmp_path / "store", manifest(23, 6))


def test_another_model_or_dimension_is_refused_with_both_values(tmp_path):
    store = write_store(tmp_path / "store", VECTORS)
    store.require(model_hash="m0", dimension=6)
    with pytest.raises(MarvelError, match=r"model_hash='m0'.*model_hash='m1'"):
        store.require(model_hash="m1", dimension=6)
    with pytest.raises(MarvelError, match=r"dimension=6.*dimension=8"):
        store.require(model_hash="m0", dimension=8)


@pytest.mark.parametrize(
    ("ids", "vectors", "message"),
    [
        (IDS[:2], VECTORS[:3], r"expected vectors of shape \(2, 6\)"),
        (IDS[:2], VECTORS[:2, :5], r"found \(2, 5\)"),
        (IDS[:2], VECTORS[:2] * [[1.0], [1.1]], "'emoji:7' has norm 1.1"),
        (IDS[:2], VECTORS[:2] * [[1.0], [np.nan]], "'emoji:7' has norm nan"),
        (["a", ""], VECTORS[:2], "cannot be an id"),
        (["a\0", "b"], VECTORS[:2], "cannot be an id"),
    ],
)
def test_bad_rows_are_refused_by_name(tmp_path, ids, vectors, message):
    writer = StoreWriter(tmp_path / "store", manifest(23, 6))
    with pytest.raises(MarvelError, match=message):
        writer.append(ids, vectors)


def test_a_repeated_id_is_refused_and_leaves_nothing(tmp_path):
    with pytest.raises(MarvelError, match=r"'emoji:0' occurs twice \(rows 0 and 7\)"):
        write_store(tmp_path / "store", VECTORS, [*IDS[:7], IDS[0], *IDS[8:]], shard_rows=5)
    assert list(tmp_path.iterdir()) == []


def test_too_few_rows_are_not_a_store(tmp_path):
    writer = StoreWriter(tmp_path / "store", manifest(23, 6))
    writer.append(IDS[:22], VECTORS[:22])
    with pytest.raises(MarvelError, match="promises 23 rows, 22 were written"):
        writer.finish()
    assert not (tmp_path / "store").exists()


def _flip_a_byte(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def _edit_manifest(folder, change):
    record = json.loads((folder / "manifest.json").read_text())
    change(record)
    (folder / "manifest.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "manifest.json").unlink(), "manifest.json does not exist"),
        (lambda f: (f / "manifest.json").write_text("{"), "not valid JSON"),
        (lambda f: _edit_manifest(f, lambda m: m.pop("pooling")), "not the manifest"),
        (lambda f: _edit_manifest(f, lambda m: m.update(count=24)), "counts 24 rows.* hold 23"),
        (lambda f: _edit_manifest(f, lambda m: m.update(dimension=7)), r"\(5, 7\), found"),
        (lambda f: _edit_manifest(f, lambda m: m.update(version=99)), "version=99"),
        (lambda f: (f / "vectors-00001.npy").unlink(), "vectors-00001.npy is missing"),
        (lambda f: _flip_a_byte(f / "vectors-00002.npy"), "vectors-00002.npy is damaged"),
        (lambda f: _flip_a_byte(f / "ids-00000.npy"), "ids-00000.npy is damaged"),
    ],
)
def test_a_damaged_store_is_refused_and_the_file_named(tmp_path, damage, message):
    write_store(tmp_path / "store", VECTORS, shard_rows=5)
    damage(tmp_path / "store")
    with pytest.raises(MarvelError, match=message):
        VectorStore.open(tmp_path / "store")


def test_an_unknown_id_is_named(tmp_path):
    store = write_store(tmp_path / "store", VECTORS, IDS)
    with pytest.raises(MarvelError, match="no vector for 'emoji:99'"):
        store.rows_of(["emoji:3", "emoji:99"])


def test_a_type_that_cannot_be_stored_is_refused():
    with pytest.raises(MarvelError, match="int8"):
        dataclasses.replace(manifest(3, 4), dtype="int8")
