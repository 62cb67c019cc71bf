"""An evaluation on disk: what was written is what is read, and nothing half-written is."""

import zipfile

import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import evaluation_folder
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.retrieval_sets import IdRange, Rankings

ABOUT = {"model": "m", "data": "d", "seed": 3, "sets": ["one", "two"]}


def rankings(seed: int = 0, queries: int = 4) -> Rankings:
    rng = np.random.default_rng(seed)

    def one() -> TopK:
        rows = rng.integers(-1, 90, (queries, 50)).astype(np.int32)
        return TopK(rng.normal(size=rows.shape).astype(np.float32), rows)

    return Rankings(one(), one())


def write(path, name="one", *, queries=4, **changes):
    given = {
        "k": 5,
        "query_ids": [f"9:{number}" for number in range(queries)],
        "retrieved": rankings(queries=queries),
        "relevant": [np.arange(number + 1) for number in range(queries)],
        "reranked": {"reranked": rankings(1, queries), "fused": rankings(2, queries)},
        "origin": "x",
    }
    evaluation_folder.write_rankings(path, name, **{**given, **changes})


def same(one: Rankings, other: Rankings) -> None:
    for here, there in zip(one, other, strict=True):
        np.testing.assert_array_equal(here.indices, there.indices)
        np.testing.assert_array_equal(here.scores, there.scores)
        assert here.indices.dtype == np.int32 and here.scores.dtype == np.float32


def test_a_folder_is_read_as_it_was_written(tmp_path):
    write(tmp_path)
    write(tmp_path, "two", reranked=None)
    evaluation_folder.write(tmp_path, scores={"mean_local": 1}, about=ABOUT)
    folder = evaluation_folder.read(tmp_path)
    assert folder.sets == ("one", "two") and folder.scores == {"mean_local": 1}
    assert folder.about["model"] == "m"
    assert folder.queries_path("two") == tmp_path / "queries" / "seed-3" / "two"
    assert folder.store_path == tmp_path / "store" and folder.index_path is None
    found = folder.rankings("one")
    assert (found.name, found.k, found.origin) == ("one", 5, "x")
    assert found.query_ids == ["9:0", "9:1", "9:2", "9:3"]
    assert [rows.tolist() for rows in found.relevant] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]
    same(found.retrieved, rankings())
    assert list(found.reranked) == ["reranked", "fused"]
    same(found.reranked["fused"], rankings(2))
    assert folder.rankings("two").reranked == {}
    with pytest.raises(MarvelError, match=r"no set 'three'; there are \['one', 'two'\]"):
        folder.rankings("three")


def test_a_folder_is_whole_only_with_all_that_it_names(tmp_path):
    with pytest.raises(MarvelError, match=r"holds no finished evaluation.*marvel evaluate"):
        evaluation_folder.read(tmp_path)
    write(tmp_path)
    with pytest.raises(MarvelError, match=r"rankings/two\.npz does not exist"):
        evaluation_folder.write(tmp_path, scores={}, about=ABOUT)
    write(tmp_path, "two")
    evaluation_folder.write(tmp_path, scores={}, about=ABOUT)
    evaluation_folder.begin(tmp_path)
    evaluation_folder.begin(tmp_path)  # of one that is under way already
    with pytest.raises(MarvelError, match="holds no finished evaluation"):
        evaluation_folder.read(tmp_path)
    (tmp_path / "evaluation.json").write_text('{"version": 99, "sets": []}')
    with pytest.raises(MarvelError, match="version is 99"):
        evaluation_folder.read(tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    write(tmp_path)
    file = tmp_path / "rankings" / "one.npz"
    whole = file.read_bytes()
    for damaged in (whole[:-300], whole[:50], b"", b"nothing"):
        file.write_bytes(damaged)
        with pytest.raises(MarvelError, match=r"one\.npz is damaged.*remove it"):
            evaluation_folder.read_rankings(tmp_path, "one")
    file.write_bytes(whole)
    with zipfile.ZipFile(file) as archive:
        kept = {name: archive.read(name) for name in archive.namelist() if "global" not in name}
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)
    with pytest.raises(MarvelError, match="has no array 'global_"):
        evaluation_folder.read_rankings(tmp_path, "one")
    write(tmp_path, relevant=[np.array([1])] * 3)
    with pytest.raises(MarvelError, match=r"4 queries, but arrays for \[3, 4\]"):
        evaluation_folder.read_rankings(tmp_path, "one")


def test_a_writer_that_is_killed_leaves_the_file_before(tmp_path, monkeypatch):
    write(tmp_path)

    def dies(stream, **arrays):
        stream.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_folder.np, "savez", dies)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, retrieved=rankings(7))
    same(evaluation_folder.read_rankings(tmp_path, "one").retrieved, rankings())


def test_ids_of_numbers_are_those_of_the_files():
    ids = IdRange(np.array([9_000_000_007, 12_000_123_456, 3]))
    assert list(ids) == ["9:7", "12:123456", "0:3"] == [ids[0], ids[1], ids[-1]]
    assert len(ids) == 3 and list(ids[1:]) == ["12:123456", "0:3"]
