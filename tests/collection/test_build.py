"""A collection follows its source by content: nothing shifts, nothing is encoded twice."""

import json
from pathlib import Path

import numpy as np
import pytest

from marvel_jax.collection import fresh, versions
from marvel_jax.collection.build import BuildOptions, Built, build_collection
from marvel_jax.collection.collection import Collection
from marvel_jax.errors import MarvelError
from tests import tiny
from tests.collection.fake import FakeEmbedder, vector_of


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "inner").mkdir(parents=True)
    for number in range(3):
        (folder / f"{number}.png").write_bytes(tiny.picture(number))
    (folder / "inner" / "cat.txt").write_text("a cat")
    (folder / "inner" / "dog.txt").write_text("a dog")
    return folder


def build(source: Path, *, embedder: FakeEmbedder | None = None, **options) -> Built:
    fake = FakeEmbedder() if embedder is None else embedder
    out = source.parent / "collection"
    return build_collection(
        source,
        out,
        model="model",
        embedder=fake,  # type: ignore[arg-type]
        options=BuildOptions(**options),
    )


def check_rows(collection: Collection) -> list[str]:
    """Every row's vector is that of what its entry shows; the ids."""
    entries = [collection.entry(row) for row in range(len(collection))]
    for row, entry in enumerate(entries):
        np.testing.assert_array_equal(collection.vector(row), vector_of(entry.item))
        assert collection.row_of(entry.id) == row
    return [entry.id for entry in entries]


def test_what_fails_is_listed_and_shifts_nobody(source):
    (source / "1.png").write_bytes(b"no picture")
    (source / "0half.png").write_bytes(tiny.picture(9)[:400])
    (source / "empty.txt").write_text(" \n")
    (source / "latin.txt").write_bytes(b"caf\xe9")
    (source / "paper.pdf").write_bytes(b"%PDF")
    (source / ".hidden.txt").write_text("hidden")
    outside = source.parent / "secret.txt"
    outside.write_text("secret")
    (source / "link.txt").symlink_to(outside)
    built = build(source)
    collection = Collection.open(built.folder)
    assert check_rows(collection) == ["0.png", "2.png", "inner/cat.txt", "inner/dog.txt"]
    told = [json.loads(line) for line in collection.failures_file.read_text().splitlines()]
    reasons = {one["id"]: one["error"] for one in told}
    assert set(reasons) == {"1.png", "0half.png", "empty.txt", "latin.txt", "link.txt"}
    assert "not an image" in reasons["1.png"] and "empty" in reasons["empty.txt"]
    assert "UTF-8" in reasons["latin.txt"] and "outside of" in reasons["link.txt"]
    assert built.manifest.left_out == {".pdf": 1, "hidden": 1}
    assert built.manifest.failures == 5 and built.manifest.counts == {"image": 2, "text": 2}


def test_only_new_content_is_encoded(source):
    first = build(source)
    assert first.changes.added == 5 and first.encoded == 5
    (source / "0.png").rename(source / "zero.png")
    (source / "inner/copy.txt").write_text("a cat")
    (source / "inner/dog.txt").write_text("two dogs")
    (source / "2.png").unlink()
    (source / "3.png").write_bytes(tiny.picture(3))
    embedder = FakeEmbedder()
    second = build(source, embedder=embedder)
    assert sorted(embedder.seen) == ["3.png", "inner/dog.txt"] and second.encoded == 2
    assert second.changes._asdict() == {
        "added": 2, "changed": 1, "removed": 1, "moved": 1, "unchanged": 2,
    }  # fmt: skip
    collection = Collection.open(second.folder)
    names = ["1.png", "3.png", "inner/cat.txt", "inner/copy.txt", "inner/dog.txt", "zero.png"]
    assert check_rows(collection) == names
    third = build(source)
    assert not third.new and third.encoded == 0
    assert versions.current(third.folder) == collection.version


@pytest.mark.parametrize("changed", [{"model_hash": "m1"}, {"max_pixels": 3136}])
def test_another_embedder_is_refused_and_the_old_stays(source, changed):
    built = build(source)
    field, value = next(iter(changed.items()))
    with pytest.raises(MarvelError, match=rf"{field}=.*{field}={value!r}.*--again"):
        build(source, embedder=FakeEmbedder(**changed))
    assert check_rows(Collection.open(built.folder))
    embedder = FakeEmbedder(**changed)
    again = build(source, embedder=embedder, again=True)
    assert len(embedder.seen) == 5 and again.manifest.embedder[field] == value


def test_another_source_is_refused_unless_it_is_to_take_the_place(source, tmp_path):
    build(source)
    moved = source.rename(tmp_path / "moved")
    with pytest.raises(MarvelError, match="--again"):
        build(moved)
    embedder = FakeEmbedder()
    build(moved, embedder=embedder, again=True)
    assert embedder.seen == []


def test_a_killed_run_goes_on_though_the_source_has_changed(source, monkeypatch):
    monkeypatch.setattr(fresh.encode_fresh, "__kwdefaults__", {
        **fresh.encode_fresh.__kwdefaults__, "part_items": 2,
    })  # fmt: skip
    stopped = FakeEmbedder()
    stopped.fail_after = 5
    (source / "more.txt").write_text("more")
    with pytest.raises(KeyboardInterrupt):
        build(source, embedder=stopped)
    with pytest.raises(MarvelError, match="unfinished"):
        Collection.open(source.parent / "collection")
    (source / "0.png").unlink()
    (source / "last.txt").write_text("the last")
    embedder = FakeEmbedder()
    built = build(source, embedder=embedder)
    assert len(stopped.seen) == 5 and len(embedder.seen) == 3  # of two whole parts nothing
    check_rows(Collection.open(built.folder))
    assert not versions.encoded(built.folder).exists()


def test_a_run_that_dies_while_it_writes_leaves_the_old_version(source, monkeypatch):
    built = build(source)
    opened = Collection.open(built.folder)
    (source / "new.txt").write_text("new")

    def die(*args, **options):
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("marvel_jax.collection.write.write_truncated", die)
        with pytest.raises(OSError, match="space"):
            build(source)
    assert len(check_rows(Collection.open(built.folder))) == 5
    embedder = FakeEmbedder()
    build(source, embedder=embedder)
    assert embedder.seen == []  # its vector was kept
    assert len(check_rows(Collection.open(built.folder))) == 6
    build(source, scann=False, dimensions=(8,))
    assert len(check_rows(opened)) == 5  # versions away, and still readable


def test_captions_are_joined_only_when_asked_for(source):
    (source / "1.txt").write_text("the first")
    build(source)
    plain = Collection.open(source.parent / "collection")
    assert plain.manifest.counts == {"image": 3, "text": 3}
    with pytest.raises(MarvelError, match="captions"):
        build(source, captions=True)
    build(source, captions=True, again=True)
    joined = Collection.open(source.parent / "collection")
    entry = joined.entry(joined.row_of("1.png"))
    assert (entry.kind, entry.text, entry.image) == ("image,text", "the first", source / "1.png")
    assert joined.manifest.counts == {"image": 2, "image,text": 1, "text": 2}
    check_rows(joined)


def test_options_left_out_are_as_the_version_before_has_them(source, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "far.png").write_bytes(tiny.picture(8))
    (source / "1.txt").write_text("a caption")
    (source / "far.png").symlink_to(other / "far.png")
    asked = {"roots": (other,), "captions": True, "scann": True, "dimensions": (8,)}
    first = build(source, compute="bfloat16", **asked).manifest
    assert not build(source).new
    (source / "new.txt").write_text("new")
    second = build(source)
    assert second.changes.added == 1 and second.encoded == 1 and not second.failures
    for name in ("roots", "captions", "has_scann", "dimensions", "compute"):
        assert getattr(second.manifest, name) == getattr(first, name), name
    assert second.manifest.dimensions == (32, 8) and second.manifest.has_scann
    assert second.manifest.counts == {"image": 3, "image,text": 1, "text": 3}
    changed = build(source, dimensions=(4,)).manifest
    assert changed.dimensions == (32, 4) and changed.has_scann and changed.captions
    with pytest.raises(MarvelError, match="captions: True; not False"):
        build(source, captions=False)
    anew = build(source, again=True).manifest
    assert (anew.dimensions, anew.has_scann, anew.compute) == ((32, 16), False, "float32")
    assert anew.failures == 1 and not anew.captions and len(anew.roots) == 1


def test_vectors_of_two_types_of_computation_are_not_mixed(source, monkeypatch):
    monkeypatch.setattr(fresh.encode_fresh, "__kwdefaults__", {
        **fresh.encode_fresh.__kwdefaults__, "part_items": 1,
    })  # fmt: skip
    stopped = FakeEmbedder()
    stopped.fail_after = 3
    with pytest.raises(KeyboardInterrupt):
        build(source, embedder=stopped, compute="bfloat16")
    embedder = FakeEmbedder()
    build(source, embedder=embedder)
    assert len(embedder.seen) == 5  # nothing of what the other run encoded
    with pytest.raises(MarvelError, match=r"--compute float32, not bfloat16.*--again"):
        build(source, compute="bfloat16")
    embedder = FakeEmbedder()
    again = build(source, embedder=embedder, compute="bfloat16", again=True)
    assert len(embedder.seen) == 5 and again.manifest.compute == "bfloat16"


def test_a_folder_of_pictures_that_is_gone_does_not_empty_it(tmp_path):
    source, other = tmp_path / "source", tmp_path / "other"
    source.mkdir()
    other.mkdir()
    (other / "far.png").write_bytes(tiny.picture(8))
    lines = [{"id": "far", "image": str(other / "far.png")}, {"id": "near", "text": "here"}]
    (source / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    build(source / "items.jsonl", roots=(other,))
    other.rename(tmp_path / "moved")
    with pytest.raises(MarvelError, match=r"--root .*other, which is no folder now"):
        build(source / "items.jsonl")
    assert len(Collection.open(source / "collection")) == 2


def test_a_jsonl_with_lines_that_cannot_be_used(tmp_path):
    (tmp_path / "a.png").write_bytes(tiny.picture(0))
    lines = [
        {"id": "both", "parts": ["see", {"image": "a.png"}]},
        {"id": "gone", "image": "gone.png"},
        {"id": "up", "image": "../../etc/hostname"},
        {"text": "no id"},
        {"id": "film", "video": "a.mp4"},
        {"id": "text", "text": "a long text " * 60},
    ]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), "{broken"]))
    built = build(path)
    collection = Collection.open(built.folder)
    assert check_rows(collection) == ["both", "text"]
    assert collection.entry(0).parts == ("see", tmp_path / "a.png")
    assert [entry.cut for entry in map(collection.entry, range(2))] == [False, True]
    assert built.manifest.cut == 1
    failed = {one.id: one.error for one in built.failures}
    assert set(failed) >= {"gone", "up", "film"} and len(failed) == 5
    assert "cannot be read" in failed["gone"] and "--root" in failed["up"]


def test_of_two_with_one_id_or_two_captions_the_first_is_kept(source):
    path = source / "items.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "z"}\n{"id": "a", "text": "y"}')
    built = build_collection(path, source / "out", model="m", embedder=FakeEmbedder())  # type: ignore[arg-type]
    collection = Collection.open(built.folder)
    assert check_rows(collection) == ["a", "b"] and collection.entry(0).text == "x"
    (failed,) = built.failures
    assert failed.file.endswith("line 3") and "used before, at" in failed.error
    assert "line 1" in failed.error
    (source / "1.txt").write_text("the second")
    (source / "1.md").write_text("the first")
    built = build(source, captions=True)
    collection = Collection.open(built.folder)
    assert collection.entry(collection.row_of("1.png")).text == "the first"
    (failed,) = built.failures
    assert failed.id == "1.txt" and "1.md captions the same picture" in failed.error


def test_an_m_beir_folder_and_its_instructions(tiny_corpus, tmp_path):
    built = build_collection(
        tiny_corpus,
        tmp_path / "out",
        model="m",
        embedder=FakeEmbedder(),  # type: ignore[arg-type]
    )
    collection = Collection.open(built.folder)
    assert built.manifest.counts == {"image": 48, "text": 48}
    assert collection.presets("text", "image")[0] == "find the picture"
    assert collection.presets("text", None) == ()
    check_rows(collection)
    pool = tiny_corpus / "cand_pool/local/mbeir_tiny_task0_cand_pool.jsonl"
    local = build_collection(
        pool,
        tmp_path / "local",
        model="m",
        embedder=FakeEmbedder(),  # type: ignore[arg-type]
    )
    assert local.manifest.counts == {"image": 48} and not local.failures


def test_a_link_that_was_turned_outside_later_is_not_followed(source, tmp_path):
    built = build(source)
    collection = Collection.open(built.folder)
    row = collection.row_of("0.png")
    (tmp_path / "secret.png").write_bytes(tiny.picture(7))
    (source / "0.png").unlink()
    (source / "0.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(MarvelError, match="outside of"):
        collection.entry(row)
    rest = collection.entry(row, gone=True)
    assert (rest.id, rest.kind, rest.image, rest.parts) == ("0.png", "image", None, ())


def test_two_at_once_are_refused(source):
    out = source.parent / "collection"
    with versions.locked(out), pytest.raises(MarvelError, match="another process"):
        build(source)
    assert build(source).new


def test_a_collection_inside_of_its_source_does_not_eat_itself(source):
    for _ in range(2):
        built = build_collection(
            source,
            source / "out",
            model="m",
            embedder=FakeEmbedder(),  # type: ignore[arg-type]
        )
    assert built.manifest.count == 5 and not built.new


def test_folders_that_are_none_of_it(source, tmp_path):
    (tmp_path / "collection").mkdir()
    (tmp_path / "collection" / "thesis.txt").write_text("mine")
    with pytest.raises(MarvelError, match="is not a collection"):
        build(source)
    (tmp_path / "none").mkdir()
    with pytest.raises(MarvelError, match="no picture and no text"):
        build_collection(
            tmp_path / "none",
            tmp_path / "o",
            model="m",
            embedder=FakeEmbedder(),  # type: ignore[arg-type]
        )
