"""From retrieved lists to a file of scores, killed and gone on with, and refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from marvel_jax.data.keyed_lines import KeyedWriter, pool_hash, queries_hash
from marvel_jax.data.mined import KIND, VERSION, MinedLine
from marvel_jax.data.rerank_negatives import with_listed_negatives
from marvel_jax.data.teacher import read_teacher
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.encode import instructed
from marvel_jax.retrieval.rerank import Scores
from marvel_jax.retrieval.rerank_lists import rerank
from tests import tiny

SOURCE = tiny.TinySource(size=6)
IDS = [query.id for query in SOURCE.queries]


class Words:
    """Stands for a reranker: its logits are made of the pair's ids alone, and it counts calls."""

    def __init__(self, *, name: str = "t0", dies_at: int | None = None) -> None:
        self.name, self.dies_at, self.calls = name, dies_at, 0
        self.asked: list[tuple[str | None, str]] = []

    def manifest_fields(self) -> dict:
        return {"teacher_hash": self.name, "prompt": "marvel"}

    def score(self, pairs, *, batch_tokens: int) -> Scores:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.asked += [(query.instruction, str(candidate.parts)) for query, candidate in pairs]
        seeds = [len(repr((query.parts, candidate.parts))) for query, candidate in pairs]
        values = np.array(seeds, np.float32) / 7
        return Scores(values, -values)


def lists() -> dict[str, list[str]]:
    """Each query's results, best first: five places from its own on."""
    return {id: [f"90:{(place + step) % 12}" for step in range(5)] for place, id in enumerate(IDS)}


def write(path: Path, *, record: str = "all", change=lambda rows: rows, **fields: object) -> Path:
    rows = []
    for id, names in lists().items():
        # One more that was drawn from the pool: it has no rank, and is no result.
        drawn = f"90:{(int(id.split(':')[1]) + 6) % 12}"
        columns = (*names, drawn)
        line = MinedLine(
            id,
            "90:0",
            (drawn,),
            0.5,
            1,
            columns,
            tuple(0.9 - 0.1 * step for step in range(6)),
            (1, 2, 3, 4, 5, None),
            ("text",) * 6,
            ("left", "copy_of_positive", *("left",) * 3, "pool"),
        )
        rows.append(json.loads(json.dumps(line.to_dict())))
    manifest = {
        "kind": KIND,
        "version": VERSION,
        "model_hash": "m0",
        "source_fingerprint": SOURCE.fingerprint,
        "queries_hash": queries_hash(SOURCE),
        "pool_hash": pool_hash(SOURCE),
        "settings": {"record": record, "pool": "global"},
    }
    writer = KeyedWriter(path, manifest | fields)
    writer.append(change(rows))
    writer.finish({})
    return path


# --- scoring -------------------------------------------------------------------------------------


def test_every_querys_first_results_are_scored(tmp_path):
    words = Words()
    mined = write(tmp_path / "mined.jsonl", change=lambda rows: rows[::-1])
    told = []
    manifest = rerank(
        words,
        SOURCE,
        mined,
        tmp_path / "scores.jsonl",
        top=3,
        seed=5,
        block=4,
        progress=lambda *now: told.append(now),
    )
    found = read_teacher(tmp_path / "scores.jsonl", SOURCE, teacher_hash="t0", model_hash="m0")
    for place, query in enumerate(SOURCE.queries):
        row = found.lines[place]
        assert [SOURCE.candidates[one].id for one in found.candidates[row]] == lists()[query.id][:3]
        np.testing.assert_array_equal(found.recall[row], np.float32([0.9, 0.8, 0.7]))
        asked = instructed(query, SOURCE.instructions, seed=5)
        expected = Words().score(
            [(asked, SOURCE.candidates[one].item) for one in found.candidates[row]], batch_tokens=1
        )
        np.testing.assert_array_equal(found.yes[row], expected.yes)
        np.testing.assert_array_equal(found.no[row], expected.no)
    assert {instruction for instruction, _ in words.asked} == {
        instructed(query, SOURCE.instructions, seed=5).instruction for query in SOURCE.queries
    }
    assert told == [(4, 12), (8, 12), (12, 12)]
    assert manifest["settings"] == {"top": 3, "seed": 5}
    assert (manifest["pool"], manifest["prompt"]) == ("global", "marvel")


def test_a_killed_run_goes_on_and_ends_with_the_same_file(tmp_path):
    mined, out = write(tmp_path / "mined.jsonl"), tmp_path / "scores.jsonl"
    whole = tmp_path / "whole.jsonl"
    rerank(Words(), SOURCE, mined, whole, block=5)
    with pytest.raises(KeyboardInterrupt):
        rerank(Words(dies_at=3), SOURCE, mined, out, block=5)
    assert not out.exists()
    with (tmp_path / ".scores.jsonl.unfinished").open("ab") as stream:
        stream.write(b'{"qid": "90:10", "did": ["9')  # what a power cut leaves
    again = Words()
    rerank(again, SOURCE, mined, out, block=5)
    assert again.calls == 1
    assert out.read_bytes() == whole.read_bytes()
    with pytest.raises(MarvelError, match="exists already"):
        rerank(Words(), SOURCE, mined, out)


def test_another_reranker_does_not_go_on_with_the_file(tmp_path):
    mined, out = write(tmp_path / "mined.jsonl"), tmp_path / "scores.jsonl"
    with pytest.raises(KeyboardInterrupt):
        rerank(Words(dies_at=2), SOURCE, mined, out, block=5)
    with pytest.raises(MarvelError, match="teacher_hash is 't0' there, 't1' here"):
        rerank(Words(name="t1"), SOURCE, mined, out, block=5)


# --- training's negatives ------------------------------------------------------------------------


def test_negatives_are_results_of_the_first_ranks_that_are_no_positives(tmp_path):
    mined = write(tmp_path / "mined.jsonl")
    for top in (3, 100):
        source = with_listed_negatives(SOURCE, mined, top=top, model_hash="m0")
        for query in source.queries:
            first, copy, *rest = lists()[query.id][:top]
            assert first in query.positives
            assert list(query.negatives) == rest
            assert copy not in rest
    assert source.fingerprint != with_listed_negatives(SOURCE, mined, top=3).fingerprint


# --- refusals ------------------------------------------------------------------------------------


def renamed(rows: list[dict]) -> list[dict]:
    """Everything wrong at once: a line lost, an unknown query, an unknown id, an empty list."""
    rows[1]["qid"] = "90:77"
    rows[2]["candidates"][2] = "90:99"
    rows[3] |= {name: [] for name in ("candidates", "similarities", "ranks")}
    rows[3] |= {"modalities": [], "reasons": []}
    return [*rows, rows[4]]


FAULTS = (
    r"1 lines for no query of the source: 90:77.*1 ids that are no candidate of the pool: 90:2 -> "
    r"90:99.*1 queries with an empty list: 90:3.*1 queries with several lines: 90:4.*"
    r"1 queries without a line: 90:1"
)


def test_all_that_is_wrong_with_the_lists_is_told_before_anything_is_scored(tmp_path):
    mined = write(tmp_path / "mined.jsonl", change=renamed)
    words = Words()
    with pytest.raises(MarvelError, match=FAULTS):
        rerank(words, SOURCE, mined, tmp_path / "scores.jsonl")
    assert words.calls == 0
    assert not list(tmp_path.glob("*scores*")) and not list(tmp_path.glob(".scores*"))
    with pytest.raises(MarvelError, match="1 queries without a negative among the first 100: 90:3"):
        with_listed_negatives(SOURCE, mined, top=100)


def test_lists_of_another_source_or_of_chosen_negatives_are_refused(tmp_path):
    other = write(tmp_path / "other.jsonl", source_fingerprint="x", queries_hash="y", pool_hash="z")
    chosen = write(tmp_path / "chosen.jsonl", record="chosen")
    for use in (
        lambda path: rerank(Words(), SOURCE, path, tmp_path / "scores.jsonl"),
        lambda path: with_listed_negatives(SOURCE, path, top=50),
    ):
        with pytest.raises(MarvelError, match=r"another set of queries.*another pool"):
            use(other)
        with pytest.raises(MarvelError, match='record="all"'):
            use(chosen)
    with pytest.raises(MarvelError, match="model_hash"):
        with_listed_negatives(SOURCE, write(tmp_path / "m.jsonl"), top=5, model_hash="m1")
    with pytest.raises(MarvelError, match="top=0"):
        rerank(Words(), SOURCE, chosen, tmp_path / "scores.jsonl", top=0)
