import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_stores import manifest, random_unit, write_store

from marvel_jax.bench.peak_memory import status_bytes
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files
from marvel_jax.retrieval import store as store_module
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import STORE_TYPES, decode, encode
from marvel_jax.retrieval.store_writer import StoreWriter, partial_path

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


def test_a_repeated_id_is_refused_and_nothing_that_was_encoded_is_lost(tmp_path):
    with pytest.raises(MarvelError, match=r"'emoji:0' occurs twice \(rows 0 and 7\).*is kept in"):
        write_store(tmp_path / "store", VECTORS, [*IDS[:7], IDS[0], *IDS[8:]], shard_rows=5)
    (kept,) = tmp_path.iterdir()
    assert kept.name != "store" and len(list(kept.glob("vectors-*.npy"))) == 5


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
        (lambda f: _edit_manifest(f, lambda m: m["shards"][0].pop("rows")), "manifest.json is dam"),
        (lambda f: _edit_manifest(f, lambda m: m.update(dtype="int4")), "manifest.json: dtype='in"),
    ],
)
def test_a_damaged_store_is_refused_and_the_file_named(tmp_path, damage, message):
    write_store(tmp_path / "store", VECTORS, shard_rows=5)
    damage(tmp_path / "store")
    with pytest.raises(MarvelError, match=message):
        VectorStore.open(tmp_path / "store")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: _cut(f / "vectors-00001.npy"), "vectors-00001.npy is not a readable .npy array"),
        (lambda f: _cut(f / "ids-00001.npy"), "ids-00001.npy is not a readable .npy array"),
        (
            lambda f: _edit_manifest(f, lambda m: m.update(dtype="int8")),
            r"expected uint8 .*float32",
        ),
        (
            lambda f: (f / "ids-00000.npy").write_bytes((f / "ids-00004.npy").read_bytes()),
            "ids-00000.npy: expected 5 ids",
        ),
        (
            lambda f: (f / "vectors-00000.npy").write_bytes((f / "vectors-00004.npy").read_bytes()),
            r"vectors-00000.npy: expected float32 of shape \(5, 6\)",
        ),
    ],
)
def test_what_is_cut_or_of_another_kind_is_refused_without_reading_it_all(
    tmp_path, damage, message
):
    write_store(tmp_path / "store", VECTORS, shard_rows=5)
    damage(tmp_path / "store")
    with pytest.raises(MarvelError, match=message):
        VectorStore.open(tmp_path / "store", check="layout")


def _cut(file):
    file.write_bytes(file.read_bytes()[:-1])


def test_a_store_of_more_shards_than_files_may_be_open_is_opened(tmp_path):
    write_store(tmp_path / "store", random_unit(300, 4), shard_rows=1)
    program = (
        "import resource, sys; hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (100, int(sys.argv[2]) or hard))\n"
        "from marvel_jax.retrieval.store import VectorStore\n"
        "print(VectorStore.open(sys.argv[1]).vectors().shape)\n"
    )
    for hard, told in (("0", "(300, 4)"), ("200", "may open no more files. Raise the limit")):
        command = [sys.executable, "-c", program, str(tmp_path / "store"), hard]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert told in done.stdout + done.stderr


@pytest.mark.skipif(status_bytes("VmHWM") is None, reason="the system does not tell memory")
def test_reading_a_large_store_takes_the_memory_of_some_blocks(tmp_path):
    write_store(tmp_path / "store", random_unit(1 << 16, 256), shard_rows=1 << 14)  # 64 MiB
    program = (
        "import sys\n"
        "from marvel_jax.bench.peak_memory import PeakMemory, status_bytes\n"
        "from marvel_jax.retrieval import store\n"
        "store.RESIDENT_BYTES = 0\n"
        "opened = store.VectorStore.open(sys.argv[1], check='layout')\n"
        "before, peak = status_bytes('VmRSS'), PeakMemory()\n"
        "for start, vectors in opened.blocks(1024): vectors.sum()\n"
        "print(peak.bytes() - before)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert int(done.stdout) < 16 << 20


def test_an_unknown_id_is_named(tmp_path):
    store = write_store(tmp_path / "store", VECTORS, IDS)
    with pytest.raises(MarvelError, match="no vector for 'emoji:99'"):
        store.rows_of(["emoji:3", "emoji:99"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, "dtype='float16': vectors are stored as one of"),
        ({"full_dimension": 4}, "dimension=4 is no truncation of full_dimension=4"),
        ({"count": 0}, "count=0"),
    ],
)
def test_what_cannot_be_stored_is_refused(changes, message):
    with pytest.raises(MarvelError, match=message):
        dataclasses.replace(manifest(3, 4), **changes)


@pytest.mark.parametrize("dtype", STORE_TYPES)
@pytest.mark.parametrize("large", [False, True])
def test_every_way_of_reading_gives_the_same_vectors(tmp_path, monkeypatch, dtype, large):
    if large:  # pages are given back while others read
        monkeypatch.setattr(store_module, "RESIDENT_BYTES", 0)
        monkeypatch.setattr(store_module, "_PICKED_ROWS", 100)
    # Rows of no round number of bytes, over many pages.
    vectors = random_unit(3000, 33)
    store = write_store(tmp_path / "store", vectors, shard_rows=700, dtype=dtype)
    expected = decode(encode(vectors, dtype), dtype, dimension=33)
    assert store.dtype == dtype
    size = sum(file.stat().st_size for file in (tmp_path / "store").glob("vectors-*"))
    assert size - 5 * 128 == 3000 * store.bytes_per_vector
    np.testing.assert_array_equal(store.vectors(), expected)
    rows = np.random.default_rng(0).integers(0, 3000, 2000)
    for start, block in store.blocks(512):
        np.testing.assert_array_equal(block, expected[start : start + 512])
        np.testing.assert_array_equal(store.vectors(rows[start:]), expected[rows[start:]])
        store.release()
        np.testing.assert_array_equal(block, expected[start : start + 512])
    assert store.vectors(np.array([], np.int64)).shape == (0, 33)


def test_a_store_of_version_1_is_read(tmp_path):
    folder = tmp_path / "store"
    write_store(folder, VECTORS, IDS, shard_rows=9)
    for file in folder.glob("ids-*.npy"):
        names = np.load(file).tobytes().split(b"\0")[:-1]
        np.save(file, np.array(names))

    def to_version_1(record):
        record.update(version=1)
        del record["failures"], record["full_dimension"]
        for number, shard in enumerate(record["shards"]):
            shard["ids_hash"] = hash_files(folder / f"ids-{number:05d}.npy")

    _edit_manifest(folder, to_version_1)
    store = VectorStore.open(folder)
    assert list(store.ids) == IDS and store.manifest == manifest(23, 6)
    assert store.rows_of(IDS[::-1]).tolist() == list(range(23))[::-1]
    np.testing.assert_array_equal(store.vectors(), VECTORS)


def test_verifying_tells_how_far_it_is(tmp_path):
    write_store(tmp_path / "store", VECTORS, shard_rows=9)
    told = []
    VectorStore.open(tmp_path / "store", progress=lambda *done: told.append(done))
    assert told == [(9, 23), (18, 23), (23, 23)]
