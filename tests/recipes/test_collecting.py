"""`marvel search COLLECTION`: what is like an entry, and what is drawn."""

from pathlib import Path

import pytest

from marvel_jax.collection import sheet
from marvel_jax.collection.build import build_collection
from marvel_jax.recipes.collecting import Asked, search_collection
from tests import tiny
from tests.collection.fake import FakeEmbedder


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Four pictures, of the first two copies, and a text."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(4):
        (source / f"{number}.png").write_bytes(tiny.picture(number))
    for name in ("copy.png", "other.png"):
        (source / name).write_bytes(tiny.picture(0))
    (source / "words.txt").write_text("some words")
    embedder = FakeEmbedder()
    return build_collection(source, tmp_path / "out", model="m", embedder=embedder).folder  # type: ignore[arg-type]


def ids(folder: Path, **asked) -> list[str]:
    return [hit["id"] for hit in search_collection(folder, Asked(**asked)).facts["hits"]]


def test_nothing_is_like_itself(collection):
    for k in (1, 2, 4):
        found = ids(collection, like="other.png", k=k)
        assert len(found) == k and not {"0.png", "copy.png", "other.png"} & set(found)
    assert set(ids(collection, like="0.png", k=9)) == {"1.png", "2.png", "3.png", "words.txt"}
    assert ids(collection, like="0.png", k=2, collapse=False) == ["copy.png", "other.png"]
    assert ids(collection, like="0.png", k=2, kind="text") == ["words.txt"]
    nothing = search_collection(collection, Asked(like="words.txt", kind="text"))
    assert "has nothing else of kind text." in nothing.lines[0]


def test_the_sheet_shows_what_is_liked(collection, tmp_path, monkeypatch):
    drawn = []
    paste = sheet._paste

    def note(canvas, path, corner, fonts):
        drawn.append((corner, path.name))
        paste(canvas, path, corner, fonts)

    monkeypatch.setattr(sheet, "_paste", note)
    path = tmp_path / "sheet.png"
    search_collection(collection, Asked(like="2.png", k=2, kind="image"), sheet=path)
    assert min(drawn)[1] == "2.png" and len(drawn) == 3 and path.is_file()


def test_a_picture_that_was_turned_outside_keeps_its_place(collection, tmp_path):
    before = ids(collection, like="3.png")
    (tmp_path / "secret.png").write_bytes(tiny.picture(7))
    for name in ("1.png", "copy.png"):
        path = tmp_path / "source" / name
        path.unlink()
        path.symlink_to(tmp_path / "secret.png")
    found = search_collection(collection, Asked(like="3.png"), sheet=tmp_path / "sheet.png")
    assert [hit["id"] for hit in found.facts["hits"]] == before
    images = {hit["id"]: hit["image"] for hit in found.facts["hits"]}
    assert images["1.png"] is None and images["2.png"] is not None
    (line,) = (line for line in found.lines if "1.png" in line)
    assert "has left" in line
