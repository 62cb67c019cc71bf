"""Tar shards: samples by their place, the list of members kept, broken shards named."""

import io
import json
import pickle
import tarfile

import pytest

from marvel_jax.data import webdataset
from marvel_jax.data.webdataset import WebDatasetSource
from marvel_jax.errors import MarvelError
from tests.data import samples


def shard(path, members, mode="w"):
    """Writes members (name -> bytes), folders where the value is None."""
    with tarfile.open(path, mode) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if content is None:
                entry.type = tarfile.DIRTYPE
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


PNG = [samples.png(9, 12, seed=seed) for seed in range(3)]
FIRST = [
    ("part", None),
    ("part/a.jpg", PNG[0]),
    ("part/a.txt", "ein Hünd".encode()),
    ("part/a.json", json.dumps({"caption": "not this one"}).encode()),
    ("part/b.json", json.dumps({"caption": "a cat", "width": 3}).encode()),
    ("part/b.seg.png", b"not a picture of the sample"),
    ("part/b.PNG", PNG[1]),
]
SECOND = [("a.txt", b"a bus"), ("a.webp", PNG[2])]


@pytest.fixture
def folder(tmp_path):
    shard(tmp_path / "train-000.tar", FIRST)
    shard(tmp_path / "train-001.tar", SECOND)
    return tmp_path


def test_samples_are_read_by_their_place(folder):
    source = pickle.loads(pickle.dumps(WebDatasetSource(folder)))
    assert [one.item.parts for one in source.queries] == [("ein Hünd",), ("a cat",), ("a bus",)]
    assert [source.candidates[i].item.images[0].source for i in (2, 0, 1)] == [
        PNG[2],
        PNG[0],
        PNG[1],
    ]
    for index, query in enumerate(source.queries):
        assert query.positives == (source.candidates[index].id,)
        assert source.candidate_index(query.positives[0]) == index
    assert "train-000.tar, sample part/b" in source.candidates[1].item.images[0].describe()
    with pytest.raises(MarvelError, match="0:3 is not among 0:0 to 0:2"):
        source.candidate_index("0:3")
    one = WebDatasetSource(folder / "train-001.tar")
    some = WebDatasetSource(folder / "*-001.tar")
    assert [q.item for q in one.queries] == [q.item for q in some.queries] and len(one.queries) == 1


def test_members_are_listed_once_and_again_when_a_shard_changes(folder, monkeypatch):
    first = WebDatasetSource(folder).fingerprint
    listed = []
    real = webdataset._list_members
    monkeypatch.setattr(webdataset, "_list_members", lambda p: listed.append(p.name) or real(p))
    assert WebDatasetSource(folder).fingerprint == first and listed == []
    for kept in folder.glob(".train-000*.npz"):
        kept.write_bytes(b"damaged")
    assert WebDatasetSource(folder).fingerprint == first and listed == ["train-000.tar"]
    shard(folder / "train-001.tar", [("c.txt", b"another text"), ("c.jpg", PNG[0])])
    again = WebDatasetSource(folder)
    assert listed == ["train-000.tar", "train-001.tar"] and again.fingerprint != first
    assert again.queries[2].item.parts == ("another text",)


def test_a_folder_that_cannot_be_written_is_read(folder, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    monkeypatch.setattr(webdataset.np, "savez", refuse)
    assert len(WebDatasetSource(folder).queries) == 3
    assert sorted(path.name for path in folder.iterdir()) == ["train-000.tar", "train-001.tar"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.txt", b"x"), ("a.jpg", b"y"), ("b.txt", b"z")], r"1 of 2 samples lack .* b \(txt\)"),
        ([("a.jpg", b"y"), ("a.cls", b"3")], r"1 of 1 samples lack .* a \(jpg, cls\)"),
        ([("a.txt", b"x"), ("b.jpg", b"y"), ("a.jpg", b"z")], "the sample a comes twice"),
        ([("a.txt", b"x"), ("a.txt", b"y")], "the sample a comes twice"),
        ([], "the shards hold no sample"),
    ],
)
def test_broken_samples_are_named(tmp_path, members, message):
    shard(tmp_path / "s.tar", members)
    with pytest.raises(MarvelError, match=message):
        WebDatasetSource(tmp_path)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("a.txt", b"\xff"), "s.tar, sample a: the caption cannot be read"),
        (("a.txt", b" "), "sample a: the caption is no text but ' '"),
        (("a.json", b"{"), "sample a: the caption cannot be read"),
        (("a.json", b'{"text": "x"}'), "sample a: the field 'caption' is no text but None"),
    ],
)
def test_a_broken_caption_is_named_when_it_is_read(tmp_path, member, message):
    shard(tmp_path / "s.tar", [member, ("a.jpg", b"x")])
    source = WebDatasetSource(tmp_path)
    with pytest.raises(MarvelError, match=message):
        source.queries[0]
    if b"text" in member[1]:
        named = WebDatasetSource(tmp_path, caption_field="text")
        assert named.queries[0].item.parts == ("x",) and named.fingerprint != source.fingerprint


def test_shards_that_are_none(tmp_path):
    with pytest.raises(MarvelError, match=r"there is no shard. Give a folder with \.tar files"):
        WebDatasetSource(tmp_path)
    shard(tmp_path / "s.tar", FIRST, "w:gz")
    with pytest.raises(MarvelError, match=r"cannot be read as a tar file .* unpacked"):
        WebDatasetSource(tmp_path)


@pytest.mark.parametrize("kept", [100, 512, 700, 1536, 2000, 2100])
def test_a_shard_that_is_cut_off_is_refused(tmp_path, kept):
    path = shard(tmp_path / "s.tar", SECOND)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(MarvelError, match=r"s\.tar .*(cut off|cannot be read)"):
        WebDatasetSource(tmp_path)
