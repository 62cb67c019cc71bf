"""Stores are whole, of one model and one source, and go on where a writer died."""

import errno
import json

import numpy as np
import pytest

from marvel_jax.data.items import TASKS, Candidate, Item, Query
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import store_partial
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates, encode_queries, instructed
from marvel_jax.retrieval.encode_shards import Share, encode_share, failures_path
from marvel_jax.retrieval.store import VectorStore
from tests import tiny

SOURCE = tiny.TinySource(size=12)
SHARD = 5


@pytest.fixture(scope="module")
def embedder(tiny_model) -> Embedder:
    return Embedder.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def expected(embedder) -> np.ndarray:
    return embedder.encode([candidate.item for candidate in SOURCE.candidates])


def encode(embedder, path, **changes) -> VectorStore:
    options = {"source_hash": "s0", "shard_rows": SHARD, **changes}
    return encode_candidates(embedder, SOURCE.candidates, path, **options)


def counting(embedder, monkeypatch, *, fails_at: int = -1) -> list[int]:
    """How many items each call of `encode` is given; the call of number `fails_at` is killed."""
    calls: list[int] = []
    original = Embedder.encode

    def encode(self, items, **options):
        calls.append(len(items))
        if len(calls) - 1 == fails_at:
            raise KeyboardInterrupt
        return original(self, items, **options)

    monkeypatch.setattr(Embedder, "encode", encode)
    return calls


def test_a_store_has_every_candidate_in_order(embedder, expected, tmp_path):
    seen = []
    store = encode(embedder, tmp_path / "store", progress=lambda *counts: seen.append(counts))
    assert list(store.ids) == [candidate.id for candidate in SOURCE.candidates]
    np.testing.assert_allclose(store.vectors(), expected, atol=1e-5)
    done = [count for count, _ in seen]
    assert done == sorted(done) and seen[-1] == (24, 24)


def test_a_killed_writer_goes_on_at_its_last_whole_shard(embedder, expected, tmp_path, monkeypatch):
    calls = counting(embedder, monkeypatch, fails_at=2)
    with pytest.raises(KeyboardInterrupt):
        encode(embedder, tmp_path / "store")
    assert calls == [5, 5, 5] and not (tmp_path / "store").exists()
    store = encode(embedder, tmp_path / "store")
    assert calls[3:] == [5, 5, 4], "the first two shards are encoded again"
    np.testing.assert_allclose(store.vectors(), expected, atol=1e-5)


def test_a_whole_store_is_opened_and_nothing_encoded(embedder, tmp_path, monkeypatch):
    encode(embedder, tmp_path / "store")
    calls = counting(embedder, monkeypatch)
    assert len(encode(embedder, tmp_path / "store")) == 24
    assert calls == []


def test_a_store_of_another_model_or_source_is_refused(embedder, tiny_model, tmp_path):
    encode(embedder, tmp_path / "store")
    with pytest.raises(MarvelError, match=r"source_hash='s0', but source_hash='s1' was asked"):
        encode(embedder, tmp_path / "store", source_hash="s1")
    causal = Embedder.from_pretrained(tiny_model, attention="causal")
    with pytest.raises(MarvelError, match=r"attention='bidirectional', but attention='causal'"):
        encode(causal, tmp_path / "store")
    half = Embedder.from_pretrained(tiny_model, dtype="bfloat16")
    with pytest.raises(MarvelError, match=f"{embedder.model_hash}.*{half.model_hash}"):
        encode(half, tmp_path / "store")


def test_a_partial_store_of_another_model_is_refused(embedder, tiny_model, tmp_path, monkeypatch):
    counting(embedder, monkeypatch, fails_at=1)
    with pytest.raises(KeyboardInterrupt):
        encode(embedder, tmp_path / "store")
    causal = Embedder.from_pretrained(tiny_model, attention="causal")
    with pytest.raises(MarvelError, match=r"attention is 'bidirectional' there, 'causal' here"):
        encode(causal, tmp_path / "store")


# --- several processes -----------------------------------------------------------------------


def share(embedder, path, process: int, *, processes: int = 3, **changes) -> VectorStore | None:
    def read(number: int) -> tuple[str, Item]:
        return SOURCE.candidates[number].id, SOURCE.candidates[number].item

    options = {"source_hash": "s0", "shard_rows": SHARD, **changes}
    return encode_share(
        embedder,
        read,
        len(SOURCE.candidates),
        path,
        share=Share(process, processes),
        **options,
    )


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_processes_share_the_shards_and_the_last_makes_the_store_whole(
    embedder, expected, tmp_path, monkeypatch, order
):
    calls = counting(embedder, monkeypatch)
    found = [share(embedder, tmp_path / "store", process) for process in order]
    assert [store is None for store in found] == [True, True, False]
    assert sum(calls) == 24 and len(calls) == 5, "an item is encoded twice or never"
    assert list(found[2].ids) == [candidate.id for candidate in SOURCE.candidates]
    np.testing.assert_allclose(found[2].vectors(), expected, atol=1e-5)
    again = share(embedder, tmp_path / "store", order[0])
    assert again is not None and len(calls) == 5


def test_a_process_that_was_killed_goes_on_while_others_are_done(
    embedder, expected, tmp_path, monkeypatch
):
    with monkeypatch.context() as patched:
        counting(embedder, patched, fails_at=1)
        with pytest.raises(KeyboardInterrupt):
            share(embedder, tmp_path / "store", 0, processes=2)
    assert share(embedder, tmp_path / "store", 1, processes=2) is None
    calls = counting(embedder, monkeypatch)
    store = share(embedder, tmp_path / "store", 0, processes=2)
    assert calls == [5, 4], "its first shard is encoded again"
    np.testing.assert_allclose(store.vectors(), expected, atol=1e-5)


def test_a_process_told_of_another_number_of_them_repeats_nothing(embedder, tmp_path, monkeypatch):
    """Shards belong to their numbers, so the number of processes may change between runs."""
    share(embedder, tmp_path / "store", 0, processes=2)
    calls = counting(embedder, monkeypatch)
    assert encode(embedder, tmp_path / "store").dimension == embedder.dimension
    assert len(calls) == 2


# --- pictures that cannot be used -------------------------------------------------------------


def broken_source(folder, numbers: tuple[int, ...]) -> list[Candidate]:
    """The candidates as files, some of which are cut short."""
    found = []
    for number, candidate in enumerate(SOURCE.candidates):
        item = candidate.item
        if item.images:
            path = folder / f"{number}.png"
            content = item.images[0].source
            path.write_bytes(content[:-400] if number in numbers else content)
            item = Item.of(image=path, id=candidate.id)
        found.append(Candidate(candidate.id, item, candidate.modality))
    return found


def test_broken_pictures_are_listed_and_all_others_encoded(embedder, expected, tmp_path):
    candidates = broken_source(tmp_path, (1, 7))
    path, options = tmp_path / "store", {"source_hash": "s0", "shard_rows": SHARD}
    with pytest.raises(MarvelError, match=r"2 of 24 items .* none may .*90:1 \(.*1\.png\).*90:7"):
        encode_candidates(embedder, candidates, path, **options)
    assert not path.exists()
    listed = [json.loads(line) for line in failures_path(path).read_text().splitlines()]
    assert [(one["id"], one["number"]) for one in listed] == [("90:1", 1), ("90:7", 7)]
    assert all("decoded" in one["error"] and one["file"].endswith(".png") for one in listed)
    with pytest.raises(MarvelError, match=r"2 of 24 items .* 1 may be lacking"):
        encode_candidates(embedder, candidates, path, tolerate=1, **options)
    store = encode_candidates(embedder, candidates, path, tolerate=2, **options)
    kept = [number for number in range(24) if number not in (1, 7)]
    assert list(store.ids) == [candidates[number].id for number in kept]
    assert store.manifest.failures == 2 and len(store) == 22
    np.testing.assert_allclose(store.vectors(), expected[kept], atol=1e-5)
    with pytest.raises(MarvelError, match=r"lacks 2 items .*failures\.jsonl"):
        encode_candidates(embedder, candidates, path, **options)


def test_mended_pictures_are_encoded_and_nothing_else(embedder, expected, tmp_path, monkeypatch):
    candidates = broken_source(tmp_path, (1, 7))
    path, options = tmp_path / "store", {"source_hash": "s0", "shard_rows": SHARD}
    with pytest.raises(MarvelError):
        encode_candidates(embedder, candidates, path, **options)
    broken_source(tmp_path, (1,))
    calls = counting(embedder, monkeypatch)
    with pytest.raises(MarvelError, match=r"1 of 24 items .*90:1"):
        encode_candidates(embedder, candidates, path, **options)
    assert calls == [5], "only the shard of the mended picture"
    broken_source(tmp_path, ())
    store = encode_candidates(embedder, candidates, path, **options)
    np.testing.assert_allclose(store.vectors(), expected, atol=1e-5)
    assert store.manifest.failures == 0 and not failures_path(path).exists()


def test_a_mended_picture_is_not_left_out_though_some_may_be(embedder, expected, tmp_path):
    candidates = broken_source(tmp_path, (1, 7))
    path, options = tmp_path / "store", {"source_hash": "s0", "shard_rows": SHARD}
    with pytest.raises(MarvelError, match="2 of 24 items"):
        encode_candidates(embedder, candidates, path, **options)
    broken_source(tmp_path, ())
    store = encode_candidates(embedder, candidates, path, tolerate=2, **options)
    assert store.manifest.failures == 0 and len(store) == 24
    np.testing.assert_allclose(store.vectors(), expected, atol=1e-5)


def test_each_process_tells_its_broken_pictures_and_waits_for_those_that_others_mend(
    embedder, tmp_path
):
    candidates = broken_source(tmp_path, (1,))

    def process(number):
        def read(place):
            return candidates[place].id, candidates[place].item

        return encode_share(
            embedder,
            read,
            24,
            tmp_path / "store",
            source_hash="s0",
            shard_rows=SHARD,
            share=Share(number, 2),
        )

    with pytest.raises(MarvelError, match=r"1 of 24 items .*90:1 "):
        process(0)  # though the store is not whole yet
    with pytest.raises(MarvelError, match=r"1 of 24 items .*90:1 "):
        process(1)  # as all shards are there
    broken_source(tmp_path, ())
    assert process(1) is None, "the picture can be read, and is the other process's"
    assert len(process(0)) == 24 and len(process(1)) == 24


def test_a_full_disk_keeps_what_is_whole(embedder, expected, tmp_path, monkeypatch):
    original = store_partial.write_array

    def write(file, *given, **more):
        if file.name == "ids-00002.npy":
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(file, *given, **more)

    with monkeypatch.context() as patched:
        patched.setattr(store_partial, "write_array", write)
        with pytest.raises(MarvelError, match=r"No space left on device.*make room"):
            encode(embedder, tmp_path / "store")
    calls = counting(embedder, monkeypatch)
    np.testing.assert_allclose(encode(embedder, tmp_path / "store").vectors(), expected, atol=1e-5)
    assert calls == [5, 5, 4]


def test_a_store_may_be_smaller_and_is_then_asked_for_as_such(embedder, expected, tmp_path):
    small = {"dtype": "bfloat16", "dimension": 8}
    store = encode(embedder, tmp_path / "store", **small)
    cut = expected[:, :8] / np.linalg.norm(expected[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(store.vectors(), cut, atol=2**-8)
    assert len(encode(embedder, tmp_path / "store", **small)) == 24
    with pytest.raises(MarvelError, match="dtype='bfloat16', but dtype='float32'"):
        encode(embedder, tmp_path / "store")
    with pytest.raises(MarvelError, match="dimension=8, but dimension=32"):
        encode(embedder, tmp_path / "store", dtype="bfloat16")
    with pytest.raises(MarvelError, match="dimension=64: the model's vectors have 32"):
        encode(embedder, tmp_path / "other", dimension=64)


def test_queries_are_kept_under_their_seed_and_instructions(embedder, tmp_path, monkeypatch):
    options = {"source_hash": "q0", "seed": 3}
    path = tmp_path / "queries"
    store = encode_queries(embedder, SOURCE.queries, SOURCE.instructions, path, **options)
    assert list(store.ids) == [query.id for query in SOURCE.queries]
    items = [instructed(query, SOURCE.instructions, seed=3) for query in SOURCE.queries]
    np.testing.assert_allclose(store.vectors(), embedder.encode(items), atol=1e-5)
    calls = counting(embedder, monkeypatch)
    encode_queries(embedder, SOURCE.queries, SOURCE.instructions, path, **options)
    assert calls == []
    other = dict.fromkeys(SOURCE.instructions, ("something else",))
    for instructions, seed in ((SOURCE.instructions, 4), (other, 3)):
        with pytest.raises(MarvelError, match="source_hash"):
            encode_queries(
                embedder, SOURCE.queries, instructions, path, seed=seed, source_hash="q0"
            )


def test_the_instruction_hangs_on_the_seed_and_the_id_alone():
    table = {(90, "text", "image"): tuple(f"prompt {i}" for i in range(4))}

    def chosen(seed: int, **changes: object) -> list[str | None]:
        fields = {"item": Item.of(text="red"), "positives": ("90:1",), **changes}
        queries = [Query(id=f"90:{i}", task=TASKS[0], dataset=90, **fields) for i in range(200)]
        return [instructed(query, table, seed=seed).instruction for query in queries]

    first = chosen(0)
    assert first == chosen(0, item=Item.of(text="blue"), positives=("90:2",))
    assert first[:3] == ["prompt 2", "prompt 2", "prompt 3"], "the same on every machine"
    assert first != chosen(1)
    # Every instruction has its share.
    assert min(first.count(prompt) for prompt in table[90, "text", "image"]) > 25


def test_a_source_without_instructions_has_none_but_a_gap_in_the_table_is_told():
    query = Query("90:1", Item.of(text="red"), TASKS[1], ("90:1",), dataset=90)
    assert instructed(query, {}, seed=0) == query.item
    with pytest.raises(MarvelError, match=r"query 90:1: .* data set 90, query modality 'text'"):
        instructed(query, SOURCE.instructions, seed=0)
