"""Mined and teacher files: written in pieces, read whole, and refused where they do not fit."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.data.items import Item
from marvel_jax.data.keyed_lines import (
    KeyedWriter,
    manifest_path,
    pool_hash,
    queries_hash,
    read_manifest,
)
from marvel_jax.data.mined import KIND, VERSION, MinedLine, read_mined, with_negatives
from marvel_jax.data.teacher import read_teacher, teacher_line, teacher_writer
from marvel_jax.errors import MarvelError
from tests import tiny

SOURCE = tiny.TinySource(size=6)
IDS = [query.id for query in SOURCE.queries]


def origin(source=SOURCE) -> dict:
    return {
        "model_hash": "m0",
        "weights_hash": "w0",
        "teacher_hash": "t0",
        "source_fingerprint": source.fingerprint,
        "queries_hash": queries_hash(source),
        "pool_hash": pool_hash(source),
    }


def mined_rows() -> list[dict]:
    """Each query's two neighbours of its answer."""
    rows = []
    for place, query in enumerate(SOURCE.queries):
        negatives = tuple(f"90:{(place + step) % 12}" for step in (1, 2))
        line = MinedLine(
            query.id, "90:0", negatives, 0.5, None, negatives, (0.4, 0.3), (1, 2), ("text",) * 2,
            ("top",) * 2,
        )  # fmt: skip
        rows.append(json.loads(json.dumps(line.to_dict())))
    return rows


def write(path: Path, rows: list[dict], **changes: object) -> Path:
    writer = KeyedWriter(path, {"kind": KIND, "version": VERSION, **origin(), **changes})
    writer.append(rows)
    writer.finish({})
    return path


# --- the writer ------------------------------------------------------------------------------


def test_a_killed_writer_goes_on_behind_its_last_whole_line(tmp_path):
    path, rows = tmp_path / "x.jsonl", mined_rows()
    manifest = {"kind": KIND, "version": VERSION, "settings": {"ranks": (1, 2)}}
    writer = KeyedWriter(path, manifest)
    writer.append(rows[:3])
    with (tmp_path / ".x.jsonl.unfinished").open("ab") as stream:
        stream.write(b'{"qid": "90:3", "neg')  # the power goes
    assert not path.exists()
    writer = KeyedWriter(path, manifest)
    assert [row["qid"] for row in writer.done()] == IDS[:3]
    writer.append(rows[3:])
    writer.finish({"counts": 12})
    assert [line.qid for line in read_mined(path)[1]] == IDS
    assert read_manifest(path, kind=KIND, version=VERSION)["counts"] == 12
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x.jsonl", "x.manifest.json"]
    with pytest.raises(MarvelError, match="exists already"):
        KeyedWriter(path, manifest)


def test_an_unfinished_file_is_not_gone_on_with_otherwise(tmp_path):
    KeyedWriter(tmp_path / "x.jsonl", {"model_hash": "m0", "seed": 1}).append([])
    with pytest.raises(MarvelError, match=r"model_hash is 'm0' there, 'm1' here; seed is 1"):
        KeyedWriter(tmp_path / "x.jsonl", {"model_hash": "m1"})


def test_an_unfinished_file_is_gone_on_with_where_its_model_has_moved(tmp_path):
    path, made = tmp_path / "x.jsonl", {"kind": KIND, "version": VERSION, "model_hash": "m0"}
    KeyedWriter(path, made | {"model": "runs/7b/model"}).append([{"qid": "90:0"}])
    again = KeyedWriter(path, made | {"model": "/disk2/runs/7b/model"})
    assert [row["qid"] for row in again.done()] == ["90:0"]
    assert again.finish({})["model"] == "/disk2/runs/7b/model"


def test_killed_between_manifest_and_name_it_is_still_finished(tmp_path, monkeypatch):
    path, rows = tmp_path / "x.jsonl", mined_rows()
    writer = KeyedWriter(path, {"kind": KIND, "version": VERSION})
    writer.append(rows)
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        writer.finish({})
    monkeypatch.undo()
    assert not path.exists()
    KeyedWriter(path, {"kind": KIND, "version": VERSION}).finish({})
    assert len(list(read_mined(path)[1])) == 12


# --- mined negatives as a source -------------------------------------------------------------


def test_queries_carry_their_negatives_in_any_order_of_lines(tmp_path):
    rows = mined_rows()
    source = with_negatives(SOURCE, write(tmp_path / "x.jsonl", rows[::-1]), model_hash="m0")
    expected = {row["qid"]: tuple(row["negatives"]) for row in rows}
    assert [query.negatives for query in source.queries] == [expected[id] for id in IDS]
    assert [query.negatives for query in source.queries[2:5]] == [expected[i] for i in IDS[2:5]]
    assert source.queries[-1] == dataclasses.replace(
        SOURCE.queries[-1], negatives=expected[IDS[-1]]
    )
    assert source.candidates is SOURCE.candidates and source.candidate_index("90:3") == 3
    assert source.fingerprint != SOURCE.fingerprint


def test_a_query_that_occurs_twice_has_the_same_negatives_twice(tmp_path):
    twice = tiny.TinySource(size=6)
    path = write(tmp_path / "x.jsonl", mined_rows())
    twice.queries = [*twice.queries, twice.queries[0]]
    twice.fingerprint = "up-sampled"
    source = with_negatives(twice, path)
    assert len(source.queries) == 13
    assert source.queries[12] == source.queries[0]


BROKEN = {
    "1 queries without a line: 90:4": lambda rows: rows.pop(4),
    "12 queries without a line: 90:0, 90:1, 90:2, 90:3, 90:4, ...": lambda rows: rows.clear(),
    "1 lines for no query of the source: 90:77": lambda rows: rows.append(
        rows[0] | {"qid": "90:77"}
    ),
    "1 queries with several lines: 90:2": lambda rows: rows.append(rows[2]),
    "2 queries without a negative: 90:0, 90:5": lambda rows: [
        rows[place].update(negatives=[]) for place in (0, 5)
    ],
    "1 queries with a negative twice: 90:1": lambda rows: rows[1].update(negatives=["90:5"] * 2),
    "1 negatives that are no candidate of the pool: 90:99": lambda rows: [
        rows[place].update(negatives=["90:99"]) for place in (0, 1)
    ],
    "1 negatives that are a positive of their query: 90:3 -> 90:3": lambda rows: rows[3].update(
        negatives=["90:4", "90:3"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("message", BROKEN)
def test_offenders_are_refused_with_their_count_and_the_first_of_them(message, tmp_path):
    rows = mined_rows()
    BROKEN[message](rows)
    path = write(tmp_path / "x.jsonl", rows)
    with pytest.raises(MarvelError) as error:
        with_negatives(SOURCE, path)
    assert message in str(error.value) and "mine again" in str(error.value)


def test_all_kinds_of_offenders_are_told_at_once(tmp_path):
    rows = mined_rows()
    for message in list(BROKEN)[2:]:
        BROKEN[message](rows)
    rows.pop(4)
    with pytest.raises(MarvelError) as error:
        with_negatives(SOURCE, write(tmp_path / "x.jsonl", rows))
    for kind in ("without a line", "for no query", "several", "without a negative", "no candidate"):
        assert kind in str(error.value)


def altered(change: str) -> tiny.TinySource:
    """Another corpus under the same ids."""
    source = tiny.TinySource(size=6)
    source.fingerprint = "another"
    if change == "text":
        source.candidates[7] = dataclasses.replace(source.candidates[7], item=Item.of(text="new"))
    elif change == "candidate":
        source.candidates.pop()
    elif change == "answer":
        source.queries[3] = dataclasses.replace(source.queries[3], positives=("90:5",))
    elif change == "query":
        source.queries.pop()
    return source


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("text", "another pool"),
        ("candidate", "another pool"),
        ("answer", "another set of queries"),
        ("query", "another set of queries"),
    ],
)
def test_another_corpus_is_refused_before_a_line_is_read(change, message, tmp_path):
    rows = mined_rows()
    with pytest.raises(MarvelError, match=message):
        with_negatives(altered(change), write(tmp_path / "x.jsonl", rows))
    with pytest.raises(MarvelError, match=message):
        read_teacher(write_teacher(tmp_path / "t.jsonl", teacher_rows()), altered(change))


def test_other_instructions_make_no_other_corpus(tmp_path):
    with_negatives(altered("nothing"), write(tmp_path / "x.jsonl", mined_rows()))


def test_another_model_is_refused_with_all_that_differs(tmp_path):
    path = write(tmp_path / "x.jsonl", mined_rows())
    with pytest.raises(MarvelError, match=r"another model .*'m0' there, 'm1' here") as error:
        with_negatives(altered("query"), path, model_hash="m1", weights_hash="w1")
    assert "weights_hash" in str(error.value) and "another set of queries" in str(error.value)


def test_a_file_without_its_manifest_changed_or_of_another_kind_is_refused(tmp_path):
    path = write(tmp_path / "x.jsonl", mined_rows())
    with pytest.raises(MarvelError, match="expected 'teacher scores'"):
        read_teacher(path, SOURCE)
    path.write_text(path.read_text().replace("90:1", "90:2", 1))
    with pytest.raises(MarvelError, match="damaged or was changed"):
        with_negatives(SOURCE, path)
    manifest_path(path).unlink()
    with pytest.raises(MarvelError, match=r"x\.manifest\.json does not exist"):
        with_negatives(SOURCE, path)


# --- the teacher -----------------------------------------------------------------------------


def teacher_rows() -> list[dict]:
    """Lists of one to four candidates."""
    rng = np.random.default_rng(0)
    return [
        teacher_line(
            id,
            [f"90:{(place + step) % 12}" for step in range(1 + place % 4)],
            **{
                name: rng.normal(0, 9, 1 + place % 4).astype(np.float32)
                for name in ("yes", "no", "recall")
            },
        )
        for place, id in enumerate(IDS)
    ]


def write_teacher(path: Path, rows: list[dict]) -> Path:
    writer = teacher_writer(path, origin())
    writer.append(rows)
    writer.finish({})
    return path


def test_a_teacher_comes_back_bit_for_bit_and_aligned_with_the_source(tmp_path):
    rows = teacher_rows()
    path = write_teacher(tmp_path / "t.jsonl", rows[::-1])
    found = read_teacher(path, SOURCE, teacher_hash="t0", model_hash="m0")
    assert found.candidates.shape == (12, 4) and found.yes.dtype == np.float32
    for place, row in enumerate(rows):
        line = found.lines[place]
        width = len(row["did"])
        assert found.valid[line].tolist() == [True] * width + [False] * (4 - width)
        assert [f"90:{n}" for n in found.candidates[line, :width]] == row["did"]
        for name in ("yes", "no", "recall"):
            np.testing.assert_array_equal(
                getattr(found, name)[line, :width], np.array(row[name], np.float32)
            )
        odds = found.yes[line].astype(float) - found.no[line]
        np.testing.assert_allclose(found.p_yes(int(line)), 1 / (1 + np.exp(-odds)), rtol=1e-12)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_a_float32_survives_being_written_in_its_shortest_digits(values):
    exact = np.array(values, np.float32)
    ids = [f"90:{place}" for place in range(len(values))]
    row = json.loads(json.dumps(teacher_line("90:0", ids, yes=exact, no=exact, recall=exact)))
    np.testing.assert_array_equal(np.array(row["yes"], np.float32), exact)
    third = teacher_line("90:0", ["90:1"], yes=[0.3], no=[0.3], recall=[0.3])
    assert third["yes"] == [0.3]


WRONG = {
    "1 queries without a list: 90:4": lambda rows: rows.pop(4),
    "1 lists for no query of the source: 90:77": lambda rows: rows.append(
        rows[0] | {"qid": "90:77"}
    ),
    "1 queries with several lists: 90:2": lambda rows: rows.append(rows[2]),
    "1 lines with an empty list: 90:0": lambda rows: rows[0].update(
        did=[], yes=[], no=[], recall=[]
    ),
    "1 lines with another number of yes than of ids: 90:3": lambda rows: rows[3]["yes"].pop(),
    "1 lines with an id twice": lambda rows: rows[3].update(did=["90:1"] * 4),
    "1 ids that are no candidate of the pool: 90:4 -> 90:99": lambda rows: rows[4].update(
        did=["90:99"]
    ),
    "1 lines with no that is no number: 90:4": lambda rows: rows[4].update(no=["much"]),
}  # fmt: skip


@pytest.mark.parametrize("message", WRONG)
def test_a_teacher_that_does_not_fit_is_refused(message, tmp_path):
    rows = teacher_rows()
    WRONG[message](rows)
    path = write_teacher(tmp_path / "t.jsonl", rows)
    with pytest.raises(MarvelError) as error:
        read_teacher(path, SOURCE)
    assert message in str(error.value)


def test_a_line_that_cannot_be_is_refused_when_it_is_made():
    one = np.ones(2, np.float32)
    for change in ({"yes": np.array([1, np.nan])}, {"no": np.ones(3)}):
        with pytest.raises(MarvelError, match="query 90:0"):
            teacher_line(
                "90:0", ["90:1", "90:2"], **{"yes": one, "no": one, "recall": one} | change
            )
    with pytest.raises(MarvelError, match="twice"):
        teacher_line("90:0", ["90:1"] * 2, yes=one, no=one, recall=one)
