"""Searching a collection: kinds, ties, widths, copies, and the labelled queries that judge it."""

import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from marvel_jax.collection.build import BuildOptions, build_collection
from marvel_jax.collection.collapse import SAME_PICTURE, Shown, fold_copies
from marvel_jax.collection.collection import Collection, load_embedder
from marvel_jax.collection.entry import KINDS
from marvel_jax.collection.instructions import PRESETS
from marvel_jax.collection.judge import judge, read_labelled
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.exact import top_k
from marvel_jax.retrieval.store_types import truncate
from tests import tiny
from tests.collection.fake import FakeEmbedder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 texts (two of the same words), 20 pictures, one of them saved twice."""
    source = tmp_path_factory.mktemp("made") / "source"
    source.mkdir()
    for number in range(40):
        (source / f"{number:02}.txt").write_text(f"text {max(number, 1)}")
    for number in range(20):
        (source / f"{number:02}.png").write_bytes(tiny.picture(number))
    saved = io.BytesIO()
    PIL.Image.open(io.BytesIO(tiny.picture(4))).save(saved, "bmp")
    (source / "again.bmp").write_bytes(saved.getvalue())
    built = build_collection(
        source,
        source.parent / "collection",
        model="model",
        embedder=FakeEmbedder(),  # type: ignore[arg-type]
        options=BuildOptions(scann=True),
    )
    return built.folder


def expected(collection: Collection, query: np.ndarray, rows: list[int]) -> list[int]:
    scores = {row: np.float32(collection.vector(row).astype(np.float64) @ query) for row in rows}
    return sorted(rows, key=lambda row: (-scores[row], collection.entry(row).id))


@pytest.mark.parametrize("kind", [None, "text", "image"])
@pytest.mark.parametrize("method", ["exact", "scann"])
def test_hits_are_the_best_of_the_kind(made, kind, method):
    collection = Collection.open(made)
    every = range(len(collection))
    rows = [row for row in every if kind in (None, collection.entry(row).kind)]
    queries = np.stack([collection.vector(row) for row in (0, 7, 50)])
    found = collection.search(queries, k=9, kind=kind, method=method, collapse=False)
    for query, one in zip(queries, found, strict=True):
        assert [hit.row for hit in one.hits] == expected(collection, query, rows)[:9]
        assert one.recall == (None if method == "exact" else 1.0)
    again = collection.search(queries, k=9, kind=kind, method=method, collapse=False, compare=False)
    assert [one.recall for one in again] == [None] * 3
    assert [one.hits for one in again] == [one.hits for one in found]
    for one in found:
        assert all(hit.copies == () for hit in one.hits) and one.search_ms > 0


def test_a_width_is_searched_by_its_own_cosines(made):
    collection = Collection.open(made)
    assert collection.dimensions == (32, 16) and collection.methods == ("exact", "scann")
    query = collection.vector(30)[None] * 0.6 + collection.vector(3)[None] * 0.8
    found = collection.search(query, k=10, dimension=16, collapse=False)[0]
    short = truncate(np.stack([collection.vector(row) for row in range(61)]), 16)
    scores = short.astype(np.float64) @ truncate(query, 16)[0]
    best = np.argsort(-scores, kind="stable")[:10]
    assert {hit.row for hit in found.hits} == set(best.tolist())
    np.testing.assert_allclose([hit.score for hit in found.hits], scores[best], atol=1e-6)
    exact = collection.search(query, k=10, collapse=False)[0]
    shared = {hit.row for hit in exact.hits} & {hit.row for hit in found.hits}
    assert found.recall == len(shared) / 10 < 1


def test_copies_are_folded_and_leave_k_hits(made):
    collection = Collection.open(made)
    for first, second in (("00.txt", "01.txt"), ("04.png", "again.bmp")):
        row, other = collection.row_of(first), collection.row_of(second)
        found = collection.search(collection.vector(row), k=5)[0]
        assert found.hits[0].row == row and found.hits[0].copies == (other,)
        assert len(found.hits) == 5 and len({hit.row for hit in found.hits}) == 5
        shown = collection.search(collection.vector(row), k=5, collapse=False)[0]
        assert [hit.row for hit in shown.hits[:2]] == [row, other]


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """120 copies of one picture and 30 others."""
    source = tmp_path_factory.mktemp("crowded") / "source"
    source.mkdir()
    for number in range(120):
        (source / f"copy{number:03}.png").write_bytes(tiny.picture(0))
    for number in range(1, 31):
        (source / f"other{number:03}.png").write_bytes(tiny.picture(number))
    built = build_collection(
        source,
        source.parent / "collection",
        model="model",
        embedder=FakeEmbedder(),  # type: ignore[arg-type]
        options=BuildOptions(scann=True),
    )
    return Collection.open(built.folder)


@pytest.mark.parametrize("page", [8192, 32])
@pytest.mark.parametrize("how", [{}, {"method": "scann"}, {"dimension": 16}])
def test_however_many_copies_k_others_are_found(crowded, how, page, monkeypatch):
    monkeypatch.setattr("marvel_jax.collection.collection._PAGE", page)
    query = crowded.vector(crowded.row_of("copy119.png"))
    other = crowded.vector(crowded.row_of("other003.png"))
    for k in (1, 10, 31, 40):
        few, usual = crowded.search(np.stack([query, other]), k=k, kind="image", **how)
        assert len(few.hits) == len(usual.hits) == min(k, 31)
        if k > 1:
            rows = [crowded.row_of(f"copy{number:03}.png") for number in range(120)]
            assert [few.hits[0].row, *few.hits[0].copies] == rows
        assert usual.hits[0].row == crowded.row_of("other003.png")
        if how.get("dimension") is None:
            spread = [row for row in range(150) if row not in few.hits[0].copies]
            assert [hit.row for hit in few.hits] == expected(crowded, query, spread)[:k]
            assert few.recall == usual.recall == (1.0 if how else None)
        scores = [hit.score for hit in few.hits]
        assert scores == sorted(scores, reverse=True)


def test_copies_that_hide_the_others_of_an_index_of_leaves(crowded, monkeypatch):
    """An index may find fewer than it is asked for; what it lacks is then searched exactly."""
    query = crowded.vector(crowded.row_of("copy000.png"))
    found = crowded._scann.search

    def half(queries, k):
        top = found(queries, k)
        top.indices[:, 40:], top.scores[:, 40:] = -1, -np.inf
        return top

    monkeypatch.setattr("marvel_jax.collection.collection._FEW", 100)
    monkeypatch.setattr(crowded._scann, "search", half)
    one = crowded.search(query, k=10, method="scann")[0]
    assert len(one.hits) == 10 and one.recall == 1.0


def test_no_number_of_results_is_a_search_of_its_own(crowded, monkeypatch):
    """What is compiled depends on the number asked for: few numbers, whatever k is."""
    asked = set()

    def count(queries, store, k, **options):
        asked.add(k)
        return top_k(queries, store, k, **options)

    monkeypatch.setattr("marvel_jax.collection.collection.top_k", count)
    query = crowded.vector(crowded.row_of("other001.png"))
    for k in range(1, 24):
        crowded.search(query, k=k, dimension=16)
        crowded.search(query, k=k, method="scann")
    assert asked <= {32, 64, 128, 150}


def test_what_is_a_copy():
    near = np.array([1.0, np.tan(np.arccos(SAME_PICTURE)) * 0.99])
    far = np.array([1.0, np.tan(np.arccos(SAME_PICTURE)) * 1.01])
    vectors = np.stack([np.array([1.0, 0.0]), near, far])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def groups(*shown: Shown) -> list[tuple[int, tuple[int, ...]]]:
        return [tuple(group) for group in fold_copies(zip(shown, vectors, strict=False))]

    def picture(content: str, *texts: str) -> Shown:
        return Shown(content, texts, pictured=True)

    assert groups(picture("a"), picture("b"), picture("c")) == [(0, (1,)), (2, ())]
    assert groups(picture("a", "x"), picture("b", "y")) == [(0, ()), (1, ())]
    texts = Shown("a", ("in 2019",), pictured=False), Shown("b", ("in 2020",), pictured=False)
    assert groups(*texts) == [(0, ()), (1, ())]
    assert groups(picture("a"), Shown("b", (), pictured=False)) == [(0, ()), (1, ())]
    assert groups(picture("a"), picture("x"), picture("a")) == [(0, (1, 2))]


def test_more_than_there_is_and_what_cannot_be(made):
    collection = Collection.open(made)
    query = collection.vector(0)
    assert len(collection.search(query, k=500, collapse=False)[0].hits) == 61
    assert len(collection.search(query, k=500, kind="image")[0].hits) == 20
    assert collection.search(query, k=3, kind="image,text")[0].hits == ()
    for options, said in (
        ({"k": 0}, "k=0"),
        ({"k": 1, "kind": "video"}, "kind='video'"),
        ({"k": 1, "method": "faiss"}, "method='faiss'"),
        ({"k": 1, "dimension": 15}, "first 32, 16 numbers"),
        ({"k": 1, "method": "scann", "dimension": 16}, "Leave one"),
    ):
        with pytest.raises(MarvelError, match=said):
            collection.search(query, **options)
    with pytest.raises(MarvelError, match="no row 61"):
        collection.entry(61)
    with pytest.raises(MarvelError, match="no entry 'none'"):
        collection.row_of("none")
    with pytest.raises(MarvelError, match="is not a collection"):
        Collection.open(made.parent)


def test_threads_read_it_at_once(made):
    collection = Collection.open(made)

    def ask(row: int) -> tuple[int, str]:
        hit = collection.search(collection.vector(row), k=1, collapse=False)[0].hits[0]
        return hit.row, collection.entry(hit.row).content

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(61)))
    assert [content for _, content in found] == [
        collection.entry(row).content if collection.entry(row).id != "again.bmp"
        else collection.entry(collection.row_of("04.png")).content
        for row in range(61)
    ]  # fmt: skip


def test_labelled_queries_judge_it(made, tmp_path):
    collection = Collection.open(made)
    lines = [
        {"text": "text 5", "relevant": ["05.txt", "gone"], "kind": "text", "instruction": "find"},
        {"text": "text 6", "relevant": ["00.png"], "kind": "image"},
        {"text": "text 7", "relevant": ["gone"]},
    ]
    path = tmp_path / "labelled.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    queries = read_labelled(path, collection)
    assert [query.item.instruction for query in queries] == [
        "find", PRESETS["text", "image"][0], None,
    ]  # fmt: skip
    scores = judge(collection, FakeEmbedder(), queries, ks=(1, 21))  # type: ignore[arg-type]
    assert scores.unknown == 2
    means = {group.name: [hits.mean for hits in group.hits.values()] for group in scores.groups}
    assert means == {
        "all": pytest.approx([1 / 3, 2 / 3]),
        "text -> text": [1, 1],
        "text -> image": [0, 1],
        "text -> any": [0, 0],
    }
    for broken, said in (({"text": "a"}, "relevant"), ({"relevant": ["a"]}, "neither")):
        path.write_text(json.dumps(broken))
        with pytest.raises(MarvelError, match=rf"line 1.*{said}"):
            read_labelled(path, collection)


def test_every_pair_of_kinds_has_presets():
    assert set(PRESETS) == {(query, target) for query in KINDS for target in KINDS}


def test_another_model_is_refused(made, monkeypatch):
    collection = Collection.open(made)
    monkeypatch.setattr(Embedder, "from_pretrained", lambda *_, **__: FakeEmbedder())
    load_embedder(collection)
    other = FakeEmbedder(model_hash="m1")
    monkeypatch.setattr(Embedder, "from_pretrained", lambda *_, **__: other)
    with pytest.raises(MarvelError, match=r"model_hash='m0'.*model_hash='m1'"):
        load_embedder(collection)
