"""Stores are whole, of one model and one source, and go on where a writer died."""

import numpy as np
import pytest

from marvel_jax.data.items import TASKS, Item, Query
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates, encode_queries, instructed
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
