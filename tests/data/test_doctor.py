"""The data doctor: silent on good corpora, and each defect is found, alone and at its line."""

import functools
import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.data import doctor, emoji, mbeir_counts, mbeir_synthetic
from marvel_jax.data.doctor import Checked, CheckOptions, check
from marvel_jax.data.doctor_images import examine
from marvel_jax.data.doctor_problems import Findings, Kind, Problem
from marvel_jax.data.mbeir_synthetic import Size

QUERIES = "query/test/mbeir_{}_test.jsonl"
LOCAL = "cand_pool/local/mbeir_{}_cand_pool.jsonl"
UNION = "cand_pool/global/mbeir_union_{}_cand_pool.jsonl"
QRELS = "qrels/test/mbeir_{}_test_qrels.txt"
TABLE = "instructions/query_instructions.tsv"
SIZE = Size(train=32, test=32, distractors=1, short_side=16, text=0.25)


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("good") / "mbeir"
    return mbeir_synthetic.build(out, size=SIZE).folder


@pytest.fixture
def corpus(good, tmp_path) -> Path:
    """A copy to be spoiled; pictures are shared until one is replaced."""
    link = functools.partial(shutil.copytree, copy_function=_link, dirs_exist_ok=True)
    return Path(link(good, tmp_path / "mbeir"))


def _link(source: str, target: str) -> None:
    if source.endswith(".jpg"):
        Path(target).hardlink_to(source)
    else:
        shutil.copy(source, target)


def problems(root: Path, **options: Any) -> list[Problem]:
    return found(root, **options)[0]


def found(root: Path, **options: Any) -> tuple[list[Problem], Checked]:
    settings = CheckOptions(**{"jobs": 1, **options})
    with Findings(keep_all=True) as findings:
        checked = check(root, findings, options=settings)
        read = []
        for line in findings.lines():
            fields = json.loads(line)
            severity = fields.pop("severity")
            problem = Problem(**fields | {"kind": Kind(fields["kind"])})
            assert problem.kind.severity == severity
            read.append(problem)
    assert sum(findings.counts.values()) == len(read)
    return read, checked


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def put_lines(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def edit(path: Path, line: int, change: Callable[[dict], dict | str]) -> dict:
    """Changes one line's record; returns it as it was."""
    lines = lines_of(path)
    record = json.loads(lines[line - 1])
    new = change(dict(record))
    lines[line - 1] = new if isinstance(new, str) else json.dumps(new)
    put_lines(path, lines)
    return record


@pytest.mark.parametrize("images", ["headers", "decode", "none"])
def test_a_synthetic_corpus_is_clean_and_its_manifest_says_what_to_expect(good, images):
    read, checked = found(good, images=images)
    assert read == []
    assert checked.complete and checked.counts_from == "manifest.json"
    pictures = len(list(good.rglob("*.jpg")))
    assert checked.looked_at == (0 if images == "none" else pictures)
    names = {path.relative_to(good).as_posix() for path in good.rglob("*.jsonl")}
    assert names <= set(checked.records)


def test_the_emoji_corpus_is_clean(tmp_path):
    emoji.build(tmp_path / "emoji", limit=30, vocabulary=1000)
    read, checked = found(tmp_path / "emoji", images="decode")
    assert read == [] and checked.counts_from == "manifest.json" and checked.looked_at > 30


def test_a_corpus_of_other_sets_has_no_expected_counts(tiny_corpus):
    read, checked = found(tiny_corpus)
    assert read == [] and checked.counts_from is None


def test_the_published_counts_are_held_against_a_corpus(good):
    wanted = mbeir_counts.published_counts()
    assert sum(n for name, n in wanted.records.items() if "/local/" in name) == 5_609_079
    assert sum(n for name, n in wanted.records.items() if "query/test/" in name) == 190_573
    assert sum(wanted.pictured[UNION.format("test")]) == 5_609_079
    read = [one for one in problems(good, counts="published") if one.kind is Kind.WRONG_COUNT]
    # Every file of the real one is there under the same name.
    assert {one.file for one in read} == set(wanted.records)
    nights = next(one for one in read if "query/test/mbeir_nights" in one.file)
    assert nights.message.endswith("M-BEIR as published has 2,120")


def test_an_absent_set_is_a_note_and_an_absent_file_an_error(corpus):
    for path in corpus.rglob("mbeir_nights_task4*"):
        path.unlink()
    read = problems(corpus, counts="published")
    assert [one.file for one in read if one.kind is Kind.MISSING_SET] == [
        QUERIES.format("nights_task4")
    ]
    assert not [one for one in read if one.kind is Kind.MISSING_FILE]
    # Its own manifest knows them all.
    missing = {one.file for one in problems(corpus) if one.kind is Kind.MISSING_FILE}
    assert missing == {f"query/{s}/mbeir_nights_task4_{s}.jsonl" for s in ("train", "val", "test")}


# --- one defect at a time ------------------------------------------------------------------------

Defect = Callable[[Path], tuple[str, int | None]]


def _append(name: str, line: str | Callable[[str], str]) -> Defect:
    """Adds a line, perhaps one made from the first."""

    def spoil(root: Path) -> tuple[str, int]:
        lines = lines_of(root / name)
        put_lines(root / name, [*lines, line if isinstance(line, str) else line(lines[0])])
        return name, len(lines) + 1

    return spoil


def _item(name: str, text: str) -> Defect:
    record = {"did": "4:999999", "txt": text, "img_path": None, "modality": "text"}
    return _append(name, json.dumps(record))


def _change(name: str, line: int, **fields: Any) -> Defect:
    def spoil(root: Path) -> tuple[str, int]:
        edit(root / name, line, lambda record: record | fields)
        return name, line

    return spoil


def _unlink(name: str) -> Defect:
    def spoil(root: Path) -> tuple[str, None]:
        (root / name).unlink()
        return name, None

    return spoil


def _drop_prompt(root: Path) -> tuple[str, None]:
    put_lines(root / TABLE, [one for one in lines_of(root / TABLE) if "\tnights\t" not in one])
    return TABLE, None


def _lost_relevance(root: Path) -> tuple[str, int]:
    path = root / QRELS.format("cirr_task7")
    first = lines_of(path)[0].split()[0]
    lines = [
        line if line.split()[0] != first else line.replace(" 1 7", " 0 7")
        for line in lines_of(path)
    ]
    put_lines(path, lines)
    return QUERIES.format("cirr_task7"), 1


def _lost_reach(root: Path) -> tuple[str, int]:
    """A query keeps those answers alone that the other data set has."""
    path = root / QRELS.format("infoseek_task6")
    crossed = {line.split()[0] for line in lines_of(path) if line.split()[2].startswith("5:")}
    qid = min(crossed)
    rows = [line.split() for line in lines_of(path)]
    put_lines(path, [" ".join(row) for row in rows if row[0] != qid or row[2].startswith("5:")])
    queries = QUERIES.format("infoseek_task6")
    ids = [json.loads(line)["qid"] for line in lines_of(root / queries)]
    return queries, ids.index(qid) + 1


def _picture(content: Callable[[bytes], bytes | None]) -> Defect:
    """Spoils the picture of the third candidate of the test split's union pool."""

    def spoil(root: Path) -> tuple[str, int]:
        name = UNION.format("test")
        lines = [json.loads(line) for line in lines_of(root / name)]
        place = [place for place, one in enumerate(lines) if one["img_path"]][2]
        path = root / lines[place]["img_path"]
        old = path.read_bytes()
        path.unlink()
        new = content(old)
        if new is not None:
            path.write_bytes(new)
        return name, place + 1

    return spoil


def picture(width: int, height: int) -> bytes:
    out = io.BytesIO()
    PIL.Image.new("RGB", (width, height)).save(out, "PNG")
    return out.getvalue()


def bomb() -> bytes:
    """A small file whose header promises 12,000 x 9,000 pixels."""
    small = picture(16, 16)
    header = b"IHDR" + struct.pack(">II", 12_000, 9_000) + small[24:29]
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


DEFECTS: dict[str, tuple[Kind, Defect]] = {
    "no qrels": (Kind.MISSING_FILE, _unlink(QRELS.format("cirr_task7"))),
    "no instructions": (Kind.MISSING_FILE, _unlink(TABLE)),
    "cut line": (Kind.NOT_JSON, _append(UNION.format("val"), '{"did": "4:1", "tx')),
    "no object": (Kind.NOT_JSON, _append(QUERIES.format("cirr_task7"), "[1]")),
    "task": (Kind.WRONG_FIELD, _change(QUERIES.format("nights_task4"), 2, task_id="4")),
    "unknown modality": (
        Kind.WRONG_MODALITY,
        _change(QUERIES.format("nights_task4"), 2, query_modality="picture"),
    ),
    "wrong modality": (Kind.WRONG_MODALITY, _change(UNION.format("val"), 3, modality="video")),
    "not the task's": (
        Kind.WRONG_MODALITY,
        _change(QUERIES.format("nights_task4"), 2, query_txt="a", query_modality="image,text"),
    ),
    "empty query": (
        Kind.EMPTY_QUERY,
        _change(QUERIES.format("webqa_task1"), 4, query_txt=" ", query_img_path=None),
    ),
    "empty candidate": (Kind.EMPTY_CANDIDATE, _item(UNION.format("test"), " ")),
    "repeated query": (
        Kind.DUPLICATE_ID,
        _append(QUERIES.format("oven_task6"), lambda first: first),
    ),
    "repeated candidate": (Kind.DUPLICATE_ID, _append(UNION.format("train"), lambda first: first)),
    "no positive": (Kind.NO_POSITIVE, _change(QUERIES.format("oven_task6"), 3, pos_cand_list=[])),
    "unknown positive": (
        Kind.DANGLING_POSITIVE,
        _change(QUERIES.format("oven_task6"), 2, pos_cand_list=["5:999999"]),
    ),
    "unknown negative": (
        Kind.DANGLING_NEGATIVE,
        _change("query/train/mbeir_edis_task2_train.jsonl", 1, neg_cand_list=["3:999999"]),
    ),
    "four columns": (Kind.BROKEN_QRELS, _append(QRELS.format("cirr_task7"), "8:1 0 8:1 1")),
    "unknown candidate": (
        Kind.DANGLING_QRELS,
        _append(QRELS.format("cirr_task7"), lambda first: f"{first.split()[0]} 0 8:0 1 7"),
    ),
    "unknown query": (
        Kind.DANGLING_QRELS,
        _append(QRELS.format("cirr_task7"), lambda first: f"8:0 0 {first.split()[2]} 1 7"),
    ),
    "nothing relevant": (Kind.NO_RELEVANT, _lost_relevance),
    "answers of another set alone": (Kind.NO_RELEVANT, _lost_reach),
    "local alone": (Kind.NOT_IN_UNION, _item(LOCAL.format("nights_task4"), "new")),
    "short instruction": (Kind.BROKEN_INSTRUCTION, _append(TABLE, "text\timage\tnights\t4")),
    "unused instruction": (Kind.UNUSED_INSTRUCTION, _append(TABLE, "text\timage\tx\t77\tfind")),
    "no instruction": (Kind.MISSING_INSTRUCTION, _drop_prompt),
    "no picture": (Kind.IMAGE_MISSING, _picture(lambda old: None)),
    "half a picture": (Kind.IMAGE_TRUNCATED, _picture(lambda old: old[: len(old) // 2])),
    "empty picture": (Kind.IMAGE_TRUNCATED, _picture(lambda old: b"")),
    "no image": (Kind.IMAGE_UNDECODABLE, _picture(lambda old: b"not a picture")),
    "a line": (Kind.IMAGE_TOO_LONG, _picture(lambda old: picture(402, 2))),
    "a bomb": (Kind.IMAGE_TOO_LARGE, _picture(lambda old: bomb())),
    "a dot": (Kind.IMAGE_EXTREME, _picture(lambda old: picture(1, 1))),
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_found_alone_and_at_its_line(corpus, name):
    kind, spoil = DEFECTS[name]
    file, line = spoil(corpus)
    read = problems(corpus, counts="none", images="headers" if "image" in kind else "none")
    assert [(one.kind, one.file, one.line) for one in read] == [(kind, file, line)], read


def test_every_kind_has_a_defect_here_or_a_test_of_its_own():
    tested = {kind for kind, _ in DEFECTS.values()}
    elsewhere = {Kind.WRONG_COUNT, Kind.MISSING_SET, Kind.OTHER_RELEVANT, Kind.WRONG_NAME}
    assert tested | elsewhere == set(Kind)


def test_what_is_wrong_elsewhere_hides_nothing(corpus):
    chosen = ("cut line", "task", "wrong modality", "empty query", "empty candidate", "no positive")
    chosen += ("repeated candidate", "unknown positive", "four columns", "short instruction")
    placed = {(DEFECTS[name][0], *DEFECTS[name][1](corpus)) for name in chosen}
    read = {(one.kind, one.file, one.line) for one in problems(corpus, counts="none")}
    assert placed == read


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_is_found_does_not_depend_on_processes_or_stretches(corpus, jobs):
    for name in ("cut line", "repeated candidate", "unknown positive", "half a picture"):
        DEFECTS[name][1](corpus)
    whole = problems(corpus)
    assert len(whole) >= 4
    cut = problems(corpus, jobs=jobs, stretch=20_000, pictures=7)
    assert cut == whole


@given(st.data())
def test_lines_are_counted_over_any_stretches(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("lines")
    pool = root / "cand_pool" / "local" / "mbeir_x_task1_cand_pool.jsonl"
    pool.parent.mkdir(parents=True)
    (root / "query").mkdir()
    good = '{"did": "1:%d", "txt": "é", "img_path": null, "modality": "text"}'
    kinds = data.draw(st.lists(st.sampled_from(["good", "bad", "blank"]), max_size=12))
    lines = [
        {"good": good % place, "bad": "{", "blank": " "}[kind] for place, kind in enumerate(kinds)
    ]
    end = data.draw(st.sampled_from(["", "\n"]))
    pool.write_text("\n".join(lines) + end, encoding="utf-8")
    stretch = data.draw(st.integers(1, 200))
    read, checked = found(root, stretch=stretch)
    bad = [one.line for one in read if one.kind is Kind.NOT_JSON]
    assert bad == [place + 1 for place, kind in enumerate(kinds) if kind == "bad"]
    name = pool.relative_to(root).as_posix()
    assert checked.records[name] == sum(kind != "blank" for kind in kinds)


def test_pictures_that_were_never_unpacked_are_one_problem(corpus):
    shutil.rmtree(corpus / "mbeir_images")
    read, checked = found(corpus)
    assert [(one.kind, one.file) for one in read] == [(Kind.MISSING_FILE, "mbeir_images")]
    assert checked.looked_at == 0 and checked.pictures > 100


def test_a_picture_that_many_lines_name_is_told_once(corpus):
    _picture(lambda old: None)(corpus)
    (one,) = problems(corpus)
    assert one.image is not None and one.image in one.message
    named = sum(one.image in path.read_text("utf-8") for path in corpus.glob("cand_pool/*/*.jsonl"))
    assert named == 2 and "(2 lines do)" in one.message


def test_an_interrupted_check_says_how_far_it_came(corpus, monkeypatch):
    DEFECTS["cut line"][1](corpus)

    def interrupt(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "look", interrupt)
    read, checked = found(corpus, counts="none")
    assert not checked.complete and checked.stage == "pictures"
    assert [one.kind for one in read] == [Kind.NOT_JSON]


def test_a_file_of_another_name_is_told(corpus):
    (corpus / "query/test/nights.jsonl").write_text("")
    (one,) = problems(corpus)
    assert one.kind is Kind.WRONG_NAME and one.file == "query/test/nights.jsonl"


def test_the_mean_of_relevant_candidates_is_compared(good, monkeypatch):
    name = QRELS.format("mscoco_task3")
    lines = len(lines_of(good / name))
    queries = len(lines_of(good / QUERIES.format("mscoco_task3")))
    for mean, told in ((lines / queries, 0), (lines / queries + 0.1, 1)):
        wanted = mbeir_counts.Expected("here", relevant={name: round(mean, 2)})
        monkeypatch.setattr(doctor, "expected_counts", lambda *_, wanted=wanted: wanted)
        assert [one.kind for one in problems(good)] == [Kind.OTHER_RELEVANT] * told


@given(st.sampled_from(["JPEG", "PNG", "GIF", "WEBP"]), st.data())
def test_a_cut_picture_is_told_as_soon_as_decoding_fails(tmp_path_factory, form, data):
    """By its header and end alone a picture is refused only if it cannot be decoded either."""
    whole = _noise(form)
    path = tmp_path_factory.mktemp("pictures") / "picture"
    path.write_bytes(whole)
    assert examine(path, decode=False) is examine(path, decode=True) is None
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    fast, slow = examine(path, decode=False), examine(path, decode=True)
    assert fast == slow


@functools.cache
def _noise(form: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    PIL.Image.fromarray(pixels).save(out, form)
    return out.getvalue()
