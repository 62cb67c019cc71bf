"""A real collection whose files change: what fails spoils nothing else, and copies stay copies."""

import asyncio
import io

import numpy as np
import PIL.Image
import pytest

from marvel_jax.collection.build import build_collection
from marvel_jax.collection.collection import Collection
from marvel_jax.errors import MarvelError
from marvel_jax.serving.reranking import reordered
from marvel_jax.serving.schemas import SearchRequest
from marvel_jax.serving.service import SearchService
from tests import tiny
from tests.collection.fake import FakeEmbedder
from tests.serving import fakes

COUNT, COPIES = 10, 40


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number}.png").write_bytes(tiny.picture(number))
    return folder


@pytest.fixture
def opened(source, tmp_path):
    """opened() indexes the source and gives a function that searches it."""
    services, said = [], []

    def index():
        built = build_collection(source, tmp_path / "out", model="m", embedder=FakeEmbedder())
        service = SearchService(
            Collection.open(built.folder),
            FakeEmbedder(),
            reranker=fakes.FakeReranker(),
            say=said.append,
        )
        services.append(service)

        def search(**request):
            return asyncio.run(service.search(SearchRequest(**request)))

        search.said, search.service = said, service
        return search

    yield index
    for service in services:
        service.close()


def lead_out(path):
    outside = path.parents[1] / "outside.png"
    outside.write_bytes(path.read_bytes())
    path.unlink()
    path.symlink_to(outside)


def lead_in_a_circle(path):
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    "spoil",
    [lambda path: path.unlink(), lead_out, lead_in_a_circle],
    ids=["removed", "out", "loop"],
)
def test_a_picture_that_has_gone_keeps_its_place_and_is_told(opened, source, spoil):
    search = opened()
    before = search(text="hello", k=COUNT)
    spoil(source / "7.png")
    after = search(text="hello", k=COUNT)
    assert [hit.id for hit in after.hits] == [hit.id for hit in before.hits]
    for hit in after.hits:
        assert (hit.image, hit.gone) == ((False, True) if hit.id == "7.png" else (True, False))
        assert hit.kind == "image"
    search(text="hello", k=COUNT)
    assert len(search.said) == 1 and "7.png" in search.said[0]
    assert "7.png" not in [hit.id for hit in search(like="7.png", k=3).hits]


@pytest.mark.parametrize(
    "spoil", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no picture")]
)
def test_what_the_reranker_cannot_read_stays_where_it_was(opened, source, spoil):
    search = opened()
    plain = [hit.id for hit in search(text="hello", k=COUNT).hits]
    spoil(source / plain[3])
    answer = search(text="hello", k=COUNT, rerank=True)
    others = [one for one in plain if one != plain[3]][::-1]  # the fake likes what comes last
    assert [hit.id for hit in answer.hits] == [*others[:3], plain[3], *others[3:]]
    assert answer.hits[3].rerank_score is None and answer.hits[3].previous_rank == 4
    assert all(hit.rerank_score is not None for hit in answer.hits if hit.id != plain[3])


def test_likelier_is_first_and_what_has_no_chance_stays():
    assert reordered([]) == []
    assert reordered([None, None]) == [0, 1]
    assert reordered([0.1, None, 0.9, 0.9]) == [2, 1, 3, 0]


def test_copies_of_the_entry_are_not_more_like_it(opened, source):
    """More of them than a search fetches: the entry itself may not be among these."""
    stream = io.BytesIO()
    PIL.Image.fromarray(np.full((20, 20, 3), 99, np.uint8)).save(stream, "png")
    for number in range(COPIES):
        (source / f"copy{number:02}.png").write_bytes(stream.getvalue())
    search = opened()
    for id in ("copy00.png", f"copy{COPIES - 1}.png"):
        found = [hit.id for hit in search(like=id, k=3).hits]
        assert not [one for one in found if one.startswith("copy")]
        apart = [hit.id for hit in search(like=id, k=3, collapse=False).hits]
        assert len(apart) == 3 and id not in apart


def test_a_damaged_collection_is_told_as_changed(opened, monkeypatch):
    search = opened()

    def broken(row, **options):
        raise MarvelError("row 1 is damaged")

    monkeypatch.setattr(search.service.collection, "entry", broken)
    from marvel_jax.serving.problems import Problem

    with pytest.raises(Problem) as refused:
        search(text="hello")
    assert (refused.value.status_code, refused.value.code) == (409, "changed")
