"""Pairs from csv, JSON and JSON lines: what is read, by place, and what is refused."""

import csv
import io
import json
import pickle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import pairs as pairs_module
from marvel_jax.data.items import TASKS
from marvel_jax.data.pair_captions import CaptionPairs
from marvel_jax.data.pair_csv import NliTriplets
from marvel_jax.data.pair_jsonl import JsonPairs
from marvel_jax.data.pairs import PairSource
from marvel_jax.errors import MarvelError

NLI = (
    "sent0,sent1,hard_neg\r\n"
    'A man plays.,"Someone, somewhere, plays.",Nobody plays.\r\n'
    '"He said ""two\nlines"".",He spoke.,\r\n'
    "A dog runs.,He spoke.,A cat sleeps.\r\n"
)
CAPTIONS = {
    "GCC_1": {"h5v": "images/1.jpg", "h5a": "", "text": "", "instruct_ans": ["a red bus"]},
    "GCC_2": {"h5v": "/elsewhere/images/2.jpg", "text": "x", "instruct_ans": ["zwei Hünde"]},
}
PAIRS = [
    {"query": "a bus", "positives": {"image": "bus.jpg"}, "instruction": "Find it."},
    {
        "query": {"text": "bigger", "image": ["a.jpg", "b.jpg"]},
        "positives": [{"image": "bus.jpg"}, {"image": "c.jpg"}],
        "negatives": [{"image": "d.jpg"}],
        "instruction": ["Find it.", "Look."],
        "meta": {"from": 3},
    },
    {"query": {"image": "c.jpg"}, "positives": [{"text": "a lorry"}]},
]


def nli(tmp_path, text=NLI, name="nli.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def captions(tmp_path, entries=CAPTIONS):
    path = tmp_path / "train_anno.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries, indent=1))
    return path


def jsonl(tmp_path, *records):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records or PAIRS))
    return path


def texts(items):
    return ["|".join(str(part) for part in item.parts) for item in items]


def test_sentence_triplets(tmp_path):
    source = PairSource(NliTriplets(nli(tmp_path)))
    assert texts(one.item for one in source.queries) == [
        "A man plays.",
        'He said "two\nlines".',
        "A dog runs.",
    ]
    assert {one.task for one in source.queries} == {TASKS[1]} and not source.instructions
    # "He spoke." answers twice and is one candidate, so that neither counts as a negative.
    assert texts(one.item for one in source.candidates) == [
        "Someone, somewhere, plays.",
        "Nobody plays.",
        "He spoke.",
        "A cat sleeps.",
    ]
    assert [one.positives for one in source.queries] == [("0:0",), ("0:2",), ("0:2",)]
    assert [one.negatives for one in source.queries] == [("0:1",), (), ("0:3",)]
    assert [source.candidate_index(one.id) for one in source.candidates] == [0, 1, 2, 3]
    with pytest.raises(MarvelError, match=r"0:4 is not among the 4 of .*nli.csv: .* 0:3"):
        source.candidate_index("0:4")
    columns = nli(tmp_path, "\ufeffid,sent1,sent0\n7,b,a\n\n8,d,c\n", "two.csv")
    found = PairSource(NliTriplets(columns))
    assert texts(one.item for one in found.queries) == ["a", "c"]
    assert found.queries[0].negatives == ()


FIELD = st.text(st.sampled_from('ab ,"\n\r;é'), min_size=1, max_size=8).filter(str.strip)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(FIELD, FIELD, FIELD), min_size=1, max_size=8), end=st.booleans())
def test_any_csv_row_is_read_by_its_place(tmp_path_factory, rows, end):
    text = io.StringIO(newline="")
    # Python's writer leaves a lone \r without quotes where lines end with \n alone.
    options = {"lineterminator": "\n", "quoting": csv.QUOTE_ALL} if end else {}
    writer = csv.writer(text, **options)
    writer.writerows([("sent0", "sent1", "hard_neg"), *rows])
    read = NliTriplets(nli(tmp_path_factory.getbasetemp(), text.getvalue()))
    read = pickle.loads(pickle.dumps(read))
    assert len(read) == len(rows)
    for index in reversed(range(len(rows))):
        query, positives, negatives, _ = read[index]
        assert (query.parts[0], positives[0].parts[0], negatives[0].parts[0]) == rows[index]
    assert [pair.query for pair in read] == [read[index].query for index in range(len(rows))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: expected a header sent0,sent1,hard_neg"),
        ("a,b\n1,2\n", "the header lacks sent0 and sent1; .* found a,b"),
        ("sent0,sent1\nx,y,z\n", "line 2: expected 2 fields .* found 3"),
        ('sent0,sent1\n"a\nb",c\n ,d\n', "line 4: sent0 is empty"),
        ('sent0,sent1\na,b\n"c,d\n', r"line 3: not csv \(unexpected end"),
        (b"sent0,sent1\na,\xff\n", "line 2: not UTF-8"),
        ("sent0,sent1\n", "there is no pair"),
    ],
)
def test_broken_triplets_are_named(tmp_path, text, message):
    with pytest.raises(MarvelError, match=message):
        PairSource(NliTriplets(nli(tmp_path, text)))


def test_captions_of_pictures(tmp_path):
    path = captions(tmp_path)
    source = PairSource(CaptionPairs(path))
    assert texts(one.item for one in source.queries) == ["a red bus", "zwei Hünde"]
    assert {one.task for one in source.queries} == {TASKS[0]}
    shown = [str(one.item.images[0].source) for one in source.candidates]
    assert shown == [str(tmp_path / "images/1.jpg"), "/elsewhere/images/2.jpg"]
    moved = PairSource(CaptionPairs(path, images=tmp_path / "here"))
    shown = [str(one.item.images[0].source) for one in moved.candidates]
    assert shown == [str(tmp_path / "here/images/1.jpg"), str(tmp_path / "here/2.jpg")]
    assert moved.fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ("", r"line 1, character 0: .*\(expected '\{'"),
        ("[]", r"expected '\{', found '\['"),
        ('{\n"a": {"h5v": "x.jpg"', "line 2, character"),
        ('{"a": 3} ', "id 'a': expected an object, found int"),
        ({"a": {"instruct_ans": ["x"]}}, "id 'a': expected h5v as the picture's path, found None"),
        ({"a": {"h5v": "x.jpg", "instruct_ans": []}}, r"id 'a': expected instruct_ans as \[cap"),
        ('{"a": {"h5v": "x", "instruct_ans": ["y"]} "b": 1}', "expected ','"),
        ('{"a": {"h5v": "x", "instruct_ans": ["y"]}, "a": {}}', "the id 'a' comes twice"),
        ('{"a": {"h5v": "x", "instruct_ans": ["y"]}}\n{"b": 1}', "line 2, .*more behind its end"),
        ("{} 3", "more behind its end: '3'"),
        ("{}", "there is no pair"),
    ],
)
def test_broken_captions_are_named(tmp_path, entries, message):
    with pytest.raises(MarvelError, match=message):
        PairSource(CaptionPairs(captions(tmp_path, entries)))


def test_pairs_of_any_kind(tmp_path):
    source = PairSource(JsonPairs(jsonl(tmp_path)))
    assert [one.id for one in source.queries] == ["0:0", "1:1", "2:2"]
    assert [one.task.id for one in source.queries] == [0, 7, 3]
    assert [one.positives for one in source.queries] == [("0:0",), ("0:0", "0:1"), ("0:3",)]
    assert source.queries[1].negatives == ("0:2",)
    assert source.instructions == {
        (0, "text", "image"): ("Find it.",),
        (1, "image,text", "image"): ("Find it.", "Look."),
        (2, "image", "text"): (),
    }
    assert {one.instruction_key for one in source.queries} == set(source.instructions)
    assert source.candidates[1].item.images[0].source == tmp_path / "c.jpg"
    assert [one.modality for one in source.candidates] == ["image"] * 3 + ["text"]
    elsewhere = PairSource(JsonPairs(jsonl(tmp_path), images="/pictures"))
    assert str(elsewhere.candidates[0].item.images[0].source) == "/pictures/bus.jpg"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"positives": ["x"]}, "line 1: query is missing"),
        ({"query": "x"}, "line 1: positives is missing"),
        ({"query": "x", "positives": []}, "line 1: there is no positive"),
        ({"query": "x", "positives": "y", "positive": "z"}, "unknown field 'positive'; there are"),
        ({"query": {"txt": "x"}, "positives": "y"}, "query: unknown field 'txt'"),
        ({"query": {"text": " "}, "positives": "y"}, "query: an item has neither text nor image"),
        ({"query": 3, "positives": "y"}, "query: expected a text or an object, found 3"),
        ({"query": "x", "positives": [{"image": 3}]}, "positives: expected image as a path"),
        ({"query": "x", "positives": ["y", {"image": "z"}]}, "positives are of several modalit"),
        (
            {"query": {"image": "x"}, "positives": {"image": "x", "text": "y"}},
            "the query is image and the positive image,text, which is none of the tasks",
        ),
        ({"query": "x", "positives": "y", "instruction": ""}, "expected instruction as a text"),
    ],
)
def test_broken_pairs_are_named(tmp_path, record, message):
    with pytest.raises(MarvelError, match=message):
        PairSource(JsonPairs(jsonl(tmp_path, record)))


def test_an_instruction_for_each_query_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_module, "MOST_INSTRUCTIONS", 3)
    records = [{"query": "x", "positives": "y", "instruction": f"Do {n}."} for n in range(4)]
    with pytest.raises(MarvelError, match="line 4: there are more than 3 different instructions"):
        PairSource(JsonPairs(jsonl(tmp_path, *records)))


def test_the_fingerprint_is_the_contents(tmp_path):
    first = PairSource(NliTriplets(nli(tmp_path))).fingerprint
    assert first == PairSource(NliTriplets(nli(tmp_path, NLI, "same.csv"))).fingerprint
    assert first != PairSource(NliTriplets(nli(tmp_path, NLI.replace("dog", "fox")))).fingerprint
