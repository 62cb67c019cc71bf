"""What a shard on disk shows already is not encoded again, and copies have the same bits."""

import errno
import threading

import numpy as np
import pytest
from vector_stores import manifest, random_unit

from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import encode_shards, store_partial, store_types
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode_calls import Tally
from marvel_jax.retrieval.encode_known import KnownContent, as_keys
from marvel_jax.retrieval.encode_shards import Share, encode_share
from marvel_jax.retrieval.item_content import content_key
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_partial import PartialStore
from marvel_jax.retrieval.store_types import STORE_TYPES
from marvel_jax.retrieval.store_writer import DamagedShardsError, StoreWriter, partial_path
from tests import tiny

SHARD = 4
# Which of seven contents each of 18 items shows; shards of 4, the last of 2.
SHOWN = [0, 1, 2, 3, 1, 4, 4, 0, 5, 5, 2, 2, 6, 0, 1, 3, 4, 6]
FIRST = [SHOWN.index(one) for one in SHOWN]


@pytest.fixture(scope="module")
def embedder(tiny_model) -> Embedder:
    return Embedder.from_pretrained(tiny_model)


@pytest.fixture
def items(tmp_path) -> list[Item]:
    contents = []
    for number in range(7):
        if number % 2:
            contents.append(lambda n=number: Item.of(text=f"words {n}"))
        else:
            (tmp_path / f"{number}.png").write_bytes(tiny.picture(number))
            contents.append(lambda n=number: Item.of(image=tmp_path / f"{n}.png"))
    return [contents[one]() for one in SHOWN]


class Source:
    """Ids are numbers."""

    def __init__(self, items: list[Item]) -> None:
        self.items = items

    def read(self, number: int) -> tuple[str, Item]:
        return str(number), self.items[number]


def share(embedder, items, path, process=0, processes=1, **options):
    return encode_share(
        embedder,
        Source(items).read,
        len(items),
        path,
        source_hash="s0",
        shard_rows=SHARD,
        share=Share(process, processes),
        **options,
    )


class Noise:
    """Has every shard's vectors differ by more than a last bit, as those of other rows may."""

    def __init__(self, monkeypatch) -> None:
        self.computed: list[int] = []
        self.vectors: list[np.ndarray] = []  # of each call
        encode, draws = Embedder.encode, np.random.default_rng(0)

        def noisy(embedder, items, **options):
            found = encode(embedder, items, **options)
            self.computed.append(int(np.any(found, axis=1).sum()))
            found[np.any(found, axis=1)] += draws.normal(0, 1e-5, found.shape[1]).astype("f4")
            found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
            self.vectors.append(found)
            return found

        monkeypatch.setattr(Embedder, "encode", noisy)


def assert_copies_are_equal(store) -> None:
    stored = store.stored(np.arange(len(SHOWN)))
    np.testing.assert_array_equal(stored, stored[FIRST])
    if store.dtype != "binary":  # sixteen signs tell few of them apart
        assert len(np.unique(stored, axis=0)) == 7


@pytest.mark.parametrize("dtype", STORE_TYPES)
def test_what_an_earlier_shard_shows_is_not_encoded_again(
    embedder, items, tmp_path, monkeypatch, dtype
):
    noise, tally, seen = Noise(monkeypatch), Tally(), []
    store = share(
        *(embedder, items, tmp_path / "store"),
        dtype=dtype,
        dimension=16,
        tally=tally,
        progress=lambda *counts: seen.append(counts),
    )
    # Within a shard the noise is one, so what is encoded counts its copies there.
    assert noise.computed == [4, 2, 2, 1, 0]
    assert tally.items == 18 and tally.copies == 18 - 7
    lengths = [embedder.processor.lengths(items[SHOWN.index(one)])[0] for one in range(7)]
    assert tally.tokens == sum(lengths)
    assert seen == sorted(seen) and seen[-1] == (18, 18)
    assert_copies_are_equal(store)
    assert list(store.ids) == [str(number) for number in range(18)]
    left = {file.name.split("-")[0] for file in store.path.iterdir()}
    assert left == {"manifest.json", "vectors", "ids"}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_processes_take_from_whoever_was_faster(embedder, items, tmp_path, monkeypatch, order):
    noise = Noise(monkeypatch)
    stores = [share(embedder, items, tmp_path / "store", process, 3) for process in order]
    assert [store is None for store in stores] == [True, True, False]
    assert_copies_are_equal(stores[-1])
    assert sum(noise.computed) < 18


def at_the_same_time(monkeypatch) -> None:
    """As if no shard were on disk while another is encoded."""
    find = KnownContent.find

    def blind(known, keys, *, below=None, **more):
        return find(known, keys if below is not None else np.zeros_like(keys), below=below, **more)

    monkeypatch.setattr(KnownContent, "find", blind)


@pytest.mark.parametrize("dtype", STORE_TYPES)
def test_copies_of_shards_encoded_at_the_same_time_are_made_equal(
    embedder, items, tmp_path, monkeypatch, dtype
):
    noise = Noise(monkeypatch)
    at_the_same_time(monkeypatch)
    store = share(embedder, items, tmp_path / "store", dtype=dtype)
    assert sum(noise.computed) == 18
    assert_copies_are_equal(store)
    # The first of its kind is as it was encoded, and the hashes are those of what is there.
    encoded = store_types.encode(np.concatenate(noise.vectors), dtype)
    np.testing.assert_array_equal(store.stored(np.array(FIRST)), encoded[FIRST])
    VectorStore.open(store.path, check="content")


def test_without_settling_they_differ(embedder, items, tmp_path, monkeypatch):
    Noise(monkeypatch)
    at_the_same_time(monkeypatch)
    monkeypatch.setattr(KnownContent, "settle", lambda known: None)
    with pytest.raises(AssertionError):
        assert_copies_are_equal(share(embedder, items, tmp_path / "store"))


@pytest.mark.parametrize("behind", ["the first record", "the vectors", "nothing"])
def test_a_kill_while_they_are_made_equal_loses_nothing(
    embedder, items, tmp_path, monkeypatch, behind
):
    noise = Noise(monkeypatch)
    with monkeypatch.context() as patched:
        at_the_same_time(patched)
        patched.setattr(PartialStore, "change", dying(behind))
        with pytest.raises(KeyboardInterrupt):
            share(embedder, items, tmp_path / "store")
    noise.computed.clear()
    store = share(embedder, items, tmp_path / "store")
    assert noise.computed == [], "a shard is encoded again"
    assert_copies_are_equal(store)
    VectorStore.open(store.path, check="content")


@pytest.mark.parametrize("behind", ["the first record", "the vectors"])
def test_a_shard_half_changed_is_sound_to_a_writer_alone(tmp_path, behind):
    writer = StoreWriter(tmp_path / "store", manifest(4, 8), shard_rows=4)
    vectors = random_unit(8, 8)
    writer.write(0, list("abcd"), vectors[:4])
    with pytest.raises(KeyboardInterrupt):
        dying(behind)(writer.partial, 0, np.array([2]), vectors[6:7])
    record = writer.partial.record(0)
    assert writer.partial.is_sound(0, record) and not writer.partial.discard_damaged()
    writer.finish()
    store = VectorStore.open(tmp_path / "store", check="content")
    changed = vectors[6] if behind == "the vectors" else vectors[2]
    np.testing.assert_array_equal(store.vectors(), [vectors[0], vectors[1], changed, vectors[3]])


def dying(behind: str):
    """`PartialStore.change` that is killed behind a step of it."""
    change, replace = PartialStore.change, PartialStore._replace

    def mortal(partial, number, rows, stored):
        if behind == "nothing":
            raise KeyboardInterrupt
        records = []

        def record(name, value):
            if behind == "the vectors" and records:
                raise KeyboardInterrupt
            records.append(name)
            replace(partial, name, value)
            if behind == "the first record":
                raise KeyboardInterrupt

        partial._replace = record
        try:
            change(partial, number, rows, stored)
        finally:
            del partial._replace

    return mortal


def test_a_disk_that_fills_up_while_they_are_made_equal_is_told_and_loses_nothing(
    embedder, items, tmp_path, monkeypatch
):
    noise, write = Noise(monkeypatch), store_partial.write_array

    def full(file, *given, **more):
        if file.name.startswith("."):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, *given, **more)

    with monkeypatch.context() as patched:
        at_the_same_time(patched)
        patched.setattr(store_partial, "write_array", full)
        with pytest.raises(MarvelError, match=r"No space left on device.*make room"):
            share(embedder, items, tmp_path / "store", 1, 2)
            share(embedder, items, tmp_path / "store", 0, 2)
    noise.computed.clear()
    assert_copies_are_equal(share(embedder, items, tmp_path / "store", 0, 2))
    assert noise.computed == []


def test_one_process_at_a_time_makes_a_store_whole(tmp_path):
    first, second = (
        StoreWriter(tmp_path / "store", manifest(4, 8), shard_rows=4).partial for _ in range(2)
    )
    entered = threading.Event()

    def wait():
        with second.alone():
            entered.set()

    thread = threading.Thread(target=wait, daemon=True)
    with first.alone():
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(60)
    thread.join()


def damage(path, how) -> None:
    """Does to a shard's vectors what a loss of power may."""
    content = path.read_bytes()
    zeros = content[:128] + bytes(len(content) - 128)
    path.write_bytes(content[:-8] if how == "cut" else zeros)


@pytest.mark.parametrize("how", ["zeros", "cut"])
def test_a_damaged_shard_gives_nothing_and_is_encoded_again(
    embedder, items, tmp_path, monkeypatch, how
):
    noise = Noise(monkeypatch)
    assert share(embedder, items, tmp_path / "store", 0, 5) is None
    damage(partial_path(tmp_path / "store") / "vectors-00000.npy", how)
    noise.computed.clear()
    assert share(embedder, items, tmp_path / "store", 1, 5) is None
    assert noise.computed == [4]
    store = share(embedder, items, tmp_path / "store")
    assert_copies_are_equal(store)
    assert len(noise.computed) == 1 + 3 + 1
    VectorStore.open(store.path, check="content")


@pytest.mark.parametrize("how", ["zeros", "cut"])
def test_damage_to_shards_of_others_is_told(embedder, items, tmp_path, monkeypatch, how):
    noise = Noise(monkeypatch)
    assert share(embedder, items, tmp_path / "store", 0, 2) is None
    for number in (0, 2):
        damage(partial_path(tmp_path / "store") / f"vectors-0000{number}.npy", how)
    with pytest.raises(
        DamagedShardsError, match=r"2 of 5 shards were damaged.*number 0: run again"
    ):
        share(embedder, items, tmp_path / "store", 1, 2)
    noise.computed.clear()
    store = share(embedder, items, tmp_path / "store", 0, 2)
    assert len(noise.computed) == 2
    assert_copies_are_equal(store)
    VectorStore.open(store.path, check="content")


def test_a_shard_that_another_writes_again_meanwhile_is_not_read(embedder, items, tmp_path):
    assert share(embedder, items, tmp_path / "store", 0, 5) is None
    writer = StoreWriter(
        tmp_path / "store", encode_shards._manifest(embedder, "s0", "float32", None, 18),
        shard_rows=SHARD,
    )  # fmt: skip
    known = KnownContent(writer)
    keys = as_keys([content_key(items[3]), None, content_key(items[5]), content_key(items[0])])
    found = known.find(keys)
    assert found.rows.tolist() == [0, 3]
    np.testing.assert_array_equal(found.stored, writer.partial.vectors(0)[[3, 0]])
    vectors = embedder.encode(items[:4])
    record, calls = writer.partial.record(0), []

    def replaced(number, kept=writer.partial.vectors):
        """Between the look at its record and the read, the first item of the shard fails."""
        if not calls:
            calls.append(number)
            writer.discard(0)
            failed = {"id": "0", "number": 0, "file": "0.png", "error": "truncated"}
            contents = as_keys([content_key(one) for one in items[1:4]])
            writer.write(0, ["1", "2", "3"], vectors[1:], failures=[failed], contents=contents)
        return kept(number)

    writer.partial.vectors = replaced
    assert len(known.find(keys).rows) == 0, "a row of the new shard under an old number"
    assert writer.partial.record(0) != record
    found = known.find(keys)
    assert found.rows.tolist() == [0]
    np.testing.assert_array_equal(found.stored[0], vectors[3])


def test_a_broken_picture_is_told_in_every_shard(embedder, items, tmp_path):
    broken = tmp_path / "0.png"
    broken.write_bytes(broken.read_bytes()[:-400])
    with pytest.raises(MarvelError, match=r"3 of 18 items have pictures"):
        share(embedder, items, tmp_path / "store")
    store = share(embedder, items, tmp_path / "store", tolerate=3)
    assert len(store) == 15
    stored = dict(zip(store.ids, store.vectors(), strict=True))
    for number, first in enumerate(FIRST):
        if SHOWN[number]:
            np.testing.assert_array_equal(stored[str(number)], stored[str(first)])
