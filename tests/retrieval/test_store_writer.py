"""Shards by number, by several writers; failures; a full disk."""

import errno
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from vector_stores import manifest, random_unit, write_store

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import store_partial
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_partial import PartialStore
from marvel_jax.retrieval.store_types import STORE_TYPES, truncate
from marvel_jax.retrieval.store_writer import StoreWriter, partial_path

VECTORS = random_unit(23, 6)
IDS = [f"emoji:{row}" for row in range(23)]
FAILED = {"id": "emoji:12", "file": "12.png", "error": "truncated"}


def writer(path, **changes):
    return StoreWriter(path, manifest(23, 6, **changes), shard_rows=5)


def write(one, number, *, without=()):
    rows = [row for row in range(number * 5, min(number * 5 + 5, 23)) if row not in without]
    failures = [FAILED] * len(without)
    one.write(number, [IDS[row] for row in rows], VECTORS[rows], failures=failures)


@pytest.mark.parametrize("dtype", STORE_TYPES)
def test_shards_in_any_order_by_two_writers_are_the_same_store(tmp_path, dtype):
    whole = write_store(tmp_path / "whole", VECTORS, IDS, shard_rows=5, dtype=dtype)
    first, second = (writer(tmp_path / "store", dtype=dtype) for _ in range(2))
    assert first.num_shards == 5
    for one, number in ((first, 3), (second, 4), (second, 1), (first, 0)):
        write(one, number)
    assert [second.has(number) for number in range(5)] == [True, True, False, True, True]
    assert second.completed == 10  # the next in order is the one that is missing
    with pytest.raises(MarvelError, match="1 of 5 shards are missing, the first is number 2"):
        second.finish()
    write(first, 2)
    # Whoever renames it, all have the store.
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda one: one.finish(), (first, second)))
    assert {store.content_hash for store in stores} == {whole.content_hash}
    assert list(VectorStore.open(tmp_path / "store").ids) == IDS
    assert not partial_path(tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["vectors-00002.npy", "ids-00002.npy"])
def test_a_shard_that_a_loss_of_power_cut_is_written_again_alone(tmp_path, name):
    one = writer(tmp_path / "store")
    for number in range(5):
        write(one, number)
    cut = partial_path(tmp_path / "store") / name
    cut.write_bytes(cut.read_bytes()[:-8])
    with pytest.raises(MarvelError, match=r"1 of 5 shards were damaged.*number 2: run again"):
        one.finish()
    again = writer(tmp_path / "store")
    assert [again.has(number) for number in range(5)] == [True, True, False, True, True]
    write(again, 2)
    np.testing.assert_array_equal(again.finish().vectors(), VECTORS)


def test_processes_that_begin_discard_and_finish_at_once_leave_one_whole_store(tmp_path):
    program = (
        "import sys, time\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from test_store_writer import IDS, VECTORS, manifest\n"
        "from marvel_jax.errors import MarvelError\n"
        "from marvel_jax.retrieval.store_writer import StoreWriter\n"
        "own = int(sys.argv[3])\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for turn in range(20):\n"
        "    path = f'{sys.argv[2]}/{turn}'\n"
        "    try:\n"
        "        one = StoreWriter(path, manifest(23, 6), shard_rows=1)\n"
        "        for number in [*range(own, 23, 3)] * 2:\n"
        "            one.discard(number); one.failures\n"
        "            one.write(number, IDS[number : number + 1], VECTORS[number : number + 1])\n"
        "        one.finish()\n"
        "    except MarvelError as error:\n"
        "        expected = 'shards are missing', 'exists already', 'writes shards again'\n"
        "        assert any(word in str(error) for word in expected), error\n"
    )
    folder = str(Path(__file__).parent)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, folder, str(tmp_path), str(own)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for own in range(3)
    ]
    try:
        for process in processes:
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            process.stdin.write("go\n")
            process.stdin.flush()
        assert [process.wait(timeout=120) for process in processes] == [0, 0, 0]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    for turn in range(20):
        if not (path := tmp_path / str(turn)).exists():  # each found another still writing
            StoreWriter(path, manifest(23, 6), shard_rows=1).finish()
        np.testing.assert_array_equal(VectorStore.open(path).vectors(), VECTORS)
    assert not list(tmp_path.glob(".*"))


def test_two_who_begin_with_other_settings_do_not_mix(tmp_path, monkeypatch):
    # As if the other had begun between the look and the promise.
    give = PartialStore._give

    def late(self, promise):
        monkeypatch.setattr(PartialStore, "_give", give)
        writer(tmp_path / "store", dtype="bfloat16")
        give(self, promise)

    monkeypatch.setattr(PartialStore, "_give", late)
    with pytest.raises(MarvelError, match="dtype is 'bfloat16' there, 'float32' here"):
        writer(tmp_path / "store")


def test_items_that_failed_are_counted_and_missing(tmp_path):
    one = writer(tmp_path / "store")
    for number in range(5):
        write(one, number, without=(12,) if number == 2 else ())
    assert one.failures == [FAILED]
    with pytest.raises(MarvelError, match=r"1 of 23 items have no vector.*12.png"):
        one.finish()
    store = writer(tmp_path / "store").finish(tolerated=True)
    assert len(store) == 22 and store.manifest.failures == 1
    assert list(store.ids) == IDS[:12] + IDS[13:]
    np.testing.assert_array_equal(store.vectors(), np.delete(VECTORS, 12, axis=0))


def test_a_shard_whose_items_all_failed_has_no_rows(tmp_path):
    one = writer(tmp_path / "store")
    for number in range(5):
        write(one, number, without=range(5, 10) if number == 1 else ())
    store = one.finish(tolerated=True)
    np.testing.assert_array_equal(store.vectors(), np.delete(VECTORS, range(5, 10), axis=0))
    assert store.rows_of([IDS[10]]) == [5]


def test_a_discarded_shard_is_written_again(tmp_path):
    one = writer(tmp_path / "store")
    for number in range(5):
        write(one, number, without=(12,) if number == 2 else ())
    one.discard(2)
    assert not one.has(2) and one.failures == []
    write(one, 2)
    assert list(one.finish().ids) == IDS


def test_a_shard_of_the_wrong_length_or_number_is_refused(tmp_path):
    one = writer(tmp_path / "store")
    with pytest.raises(MarvelError, match="shard 4 has 3 items, but 5 vectors and 0 failures"):
        one.write(4, IDS[:5], VECTORS[:5])
    with pytest.raises(MarvelError, match="no shard 5: there are 5"):
        one.write(5, [], VECTORS[:0])
    with pytest.raises(MarvelError, match="promises 23 rows, 46 were given"):
        one.append([f"{name}'" for name in IDS] + IDS, np.concatenate([VECTORS, VECTORS]))


def test_other_shard_rows_are_refused(tmp_path):
    writer(tmp_path / "store")
    with pytest.raises(MarvelError, match="shard_rows is 5 there, 6 here"):
        StoreWriter(tmp_path / "store", manifest(23, 6), shard_rows=6)


def test_an_unfinished_store_of_an_earlier_version_is_refused(tmp_path):
    folder = partial_path(tmp_path / "store")
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"version": 1}))
    with pytest.raises(MarvelError, match="earlier version of marvel-jax: remove that folder"):
        writer(tmp_path / "store")


@pytest.mark.parametrize("by_number", [False, True])
def test_a_disk_that_fills_up_loses_no_whole_shard(tmp_path, monkeypatch, by_number):
    one = writer(tmp_path / "store")
    real = store_partial.write_array
    written = []

    def fill_up(file, parts, **shape):
        """The third shard's vectors find no room, half of them written."""
        written.append(file)
        if len(written) < 5:
            return real(file, parts, **shape)

        class Full:
            def __array__(self, *_, **__):
                raise OSError(errno.ENOSPC, "No space left on device")

        return real(file, [parts[0][:1], Full()], **shape)

    monkeypatch.setattr(store_partial, "write_array", fill_up)
    with pytest.raises(MarvelError, match=r"No space left on device.*run the same command again"):
        if by_number:
            for number in range(5):
                write(one, number)
        else:
            one.append(IDS, VECTORS)
    monkeypatch.undo()
    # Nothing of the broken shard takes room.
    assert not list(partial_path(tmp_path / "store").glob(".*"))

    again = writer(tmp_path / "store")
    assert again.completed == 10
    again.append(IDS[10:], VECTORS[10:])
    store = again.finish()
    whole = write_store(tmp_path / "whole", VECTORS, IDS, shard_rows=5)
    assert store.content_hash == whole.content_hash


def test_a_writer_that_found_no_room_still_has_its_rows(tmp_path, monkeypatch):
    one = writer(tmp_path / "store")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store_partial, "write_array", full)
        with pytest.raises(MarvelError, match="No space left"):
            one.append(IDS[:18], VECTORS[:18])
    one.append(IDS[18:], VECTORS[18:])
    store = one.finish()
    assert list(store.ids) == IDS
    np.testing.assert_array_equal(store.vectors(), VECTORS)


def test_one_who_finishes_leaves_what_another_is_about_to_rename(tmp_path, monkeypatch):
    first, second = (writer(tmp_path / "store") for _ in range(2))
    first.append(IDS, VECTORS)
    theirs = second.partial._write_beside("manifest.json", {})
    replace, seen = Path.replace, []

    def look(self, target):
        if self == partial_path(tmp_path / "store"):
            seen.append(theirs.exists())
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", look)
    np.testing.assert_array_equal(first.finish().vectors(), VECTORS)
    assert seen == [True]  # until the store has its name
    assert not list((tmp_path / "store").glob(".*"))


def test_what_a_killed_writer_left_does_not_stay_in_the_store(tmp_path):
    one = writer(tmp_path / "store")
    (partial_path(tmp_path / "store") / ".vectors-00000.npy-0123").write_bytes(b"half")
    one.append(IDS, VECTORS)
    one.finish()
    assert not list((tmp_path / "store").glob(".*"))


def test_truncation_happens_in_the_writer(tmp_path):
    store = write_store_truncated(tmp_path / "store", VECTORS)
    np.testing.assert_array_equal(store.vectors(), truncate(VECTORS, 4))
    store.require(dimension=6)  # the model's
    np.testing.assert_array_equal(store.fit(VECTORS[:3]), truncate(VECTORS[:3], 4))
    np.testing.assert_array_equal(store.fit(store.vectors()[:3]), store.vectors()[:3])
    with pytest.raises(MarvelError, match=r"shape \(3, 5\).*dimension 6"):
        store.fit(random_unit(3, 5))


def test_a_vector_without_its_first_numbers_cannot_be_truncated(tmp_path):
    vectors = VECTORS.copy()
    vectors[9] = [0, 0, 0, 0, 1, 0]
    with pytest.raises(MarvelError, match="cut to 4 numbers: the vector of 'c:9' has norm nan"):
        write_store_truncated(tmp_path / "store", vectors)


def write_store_truncated(path, vectors):
    one = StoreWriter(path, manifest(len(vectors), 4, full_dimension=6))
    one.append([f"c:{row}" for row in range(len(vectors))], vectors)
    return one.finish()
