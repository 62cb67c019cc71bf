"""The M-BEIR layout: read as written, lazily, and every fault named with its line."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import mbeir_write
from marvel_jax.data.items import TASKS
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError

HEADER = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\n"
QUERY = {
    "qid": "9:1",
    "query_txt": "a red bus",
    "query_img_path": None,
    "query_modality": "text",
    "query_src_content": None,
    "pos_cand_list": ["9:11"],
    "neg_cand_list": [],
    "task_id": 0,
}
NO_POSITIVE = {**QUERY, "qid": "9:2", "pos_cand_list": []}
IMAGE = {"did": "9:11", "txt": None, "img_path": "mbeir_images/bus.jpg", "modality": "image"}
OTHER = {"did": "9:12", "txt": None, "img_path": "mbeir_images/cat.jpg", "modality": "image"}


def lines(path: Path, *rows: dict | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole layout with one query and two candidates."""
    for split in ("train", "test"):
        lines(tmp_path / f"query/{split}/mbeir_visualnews_task0_{split}.jsonl", QUERY)
        lines(tmp_path / f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl", IMAGE, OTHER)
    lines(tmp_path / "cand_pool/local/mbeir_visualnews_task0_cand_pool.jsonl", IMAGE, OTHER)
    lines(tmp_path / "qrels/test/mbeir_visualnews_task0_test_qrels.txt", "9:1 0 9:11 1 0")
    table = tmp_path / "instructions/query_instructions.tsv"
    lines(table, HEADER + "text\timage\tMSCOCO\t9\tFind it.\t\tShow it.")
    return tmp_path


def test_a_layout_is_read_as_it_stands(root):
    source = MbeirFolder(root).source("train")
    (query,) = source.queries
    assert (query.id, query.dataset, query.task) == ("9:1", 9, TASKS[0])
    assert query.item.parts == ("a red bus",) and query.positives == ("9:11",)
    assert source.instructions == {(9, "text", "image"): ("Find it.", "Show it.")}
    assert source.candidate_index("9:12") == 1
    assert source.candidates[0].item.images[0].source == root / "mbeir_images/bus.jpg"
    (one,) = MbeirFolder(root).test_sets()
    assert (one.name, one.dataset, one.k) == ("visualnews_task0", "visualnews", 5)
    assert one.qrels == {"9:1": frozenset({"9:11"})} and len(one.pool) == 2


def test_positives_may_be_objects_and_a_text_null(root):
    query = {
        **QUERY,
        "query_txt": None,
        "query_img_path": "mbeir_images/q.jpg",
        "pos_cand_list": [{"did": "9:12"}, {"did": "9:11"}],
        "neg_cand_list": ["9:11"],
        "task_id": 4,
    }
    lines(root / "query/train/mbeir_visualnews_task0_train.jsonl", query)
    found = MbeirFolder(root).source("train").queries[0]
    assert found.positives == ("9:12", "9:11") and found.negatives == ("9:11",)
    assert found.item.modality == "image"


def test_the_union_file_is_preferred_and_files_are_joined_in_order(root):
    second = {**QUERY, "qid": "9:2"}
    lines(root / "query/train/mbeir_mscoco_task0_train.jsonl", second)
    assert [q.id for q in MbeirFolder(root).source("train").queries] == ["9:2", "9:1"]
    up = root / "query/union_train/mbeir_union_up_train.jsonl"
    lines(up, QUERY, second, {**QUERY, "qid": "9:3"})
    assert [q.id for q in MbeirFolder(root).source("train").queries] == ["9:1", "9:2", "9:3"]


def test_mscoco_has_a_pool_of_its_own_for_each_split(root):
    for split, did in (("val", "9:11"), ("test", "9:12")):
        query = {**QUERY, "pos_cand_list": [did]}
        lines(root / f"query/{split}/mbeir_mscoco_task0_{split}.jsonl", query)
        pool = root / f"cand_pool/local/mbeir_mscoco_task0_{split}_cand_pool.jsonl"
        lines(pool, {**IMAGE, "did": did})
        lines(root / f"qrels/{split}/mbeir_mscoco_task0_{split}_qrels.txt", f"9:1 0 {did} 1 0")
    (val,) = MbeirFolder(root).test_sets("val")
    assert [candidate.id for candidate in val.pool] == ["9:11"]
    coco, _ = MbeirFolder(root).test_sets("test")
    assert [candidate.id for candidate in coco.pool] == ["9:12"]


@pytest.mark.parametrize(("dataset", "k"), [(0, 5), (1, 10), (7, 10), (8, 5), (10, 5)])
def test_fashion_is_judged_at_ten(root, dataset, k):
    query = {**QUERY, "qid": f"{dataset}:1"}
    lines(root / "query/test/mbeir_visualnews_task0_test.jsonl", query)
    qrels = root / "qrels/test/mbeir_visualnews_task0_test_qrels.txt"
    lines(qrels, f"{dataset}:1 0 9:11 1 0", f"{dataset}:1 0 9:12 0 0")
    (one,) = MbeirFolder(root).test_sets()
    assert one.k == k
    assert one.qrels[f"{dataset}:1"] == {"9:11"}  # a relevance of 0 does not count


def test_an_answer_may_be_in_the_union_pool_alone_but_not_the_only_one(root):
    """Of OVEN's judgements most lines name candidates of InfoSeek."""
    union = root / "cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    lines(union, IMAGE, OTHER, {**OTHER, "did": "6:1"})
    qrels = root / "qrels/test/mbeir_visualnews_task0_test_qrels.txt"
    lines(qrels, "9:1 0 6:1 1 0", "9:1 0 9:11 1 0")
    (one,) = MbeirFolder(root).test_sets()
    assert one.qrels == {"9:1": {"6:1", "9:11"}}
    assert "6:1" not in [candidate.id for candidate in one.pool]
    lines(qrels, "9:1 0 6:1 1 0", "9:1 0 9:11 0 0")
    with pytest.raises(MarvelError, match=r"none of the relevant.*9:1 is in .*task0_cand_pool"):
        MbeirFolder(root).test_sets()


def test_the_fingerprint_follows_the_content(root):
    def fingerprint():
        return MbeirFolder(root).source("train").fingerprint

    before = fingerprint()
    assert fingerprint() == before
    pool = root / "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
    lines(pool, IMAGE, {**OTHER, "img_path": "mbeir_images/dog.jpg"})
    assert fingerprint() != before


def test_a_source_can_be_sent_to_another_process(root):
    source = MbeirFolder(root).source("train")
    sent = pickle.loads(pickle.dumps(source))
    assert list(sent.queries) == list(source.queries)
    assert sent.candidate_index("9:12") == 1


record = st.dictionaries(st.text(max_size=4), st.text(max_size=8), max_size=3)


@given(st.lists(st.one_of(record, st.sampled_from(["", "  ", "\t" * 40]))), st.booleans())
@settings(max_examples=100, deadline=None)
def test_lines_are_found_whatever_lies_between_them(tmp_path_factory, rows, last_break):
    path = tmp_path_factory.mktemp("lines") / "x.jsonl"
    ascii_only = len(rows) % 2 == 0
    text = "\n".join(
        row if isinstance(row, str) else json.dumps(row, ensure_ascii=ascii_only) for row in rows
    )
    path.write_bytes((text + "\n" * last_break).encode("utf-8", "surrogatepass"))
    found = JsonLines(path)
    expected = [(n, row) for n, row in enumerate(rows, start=1) if not isinstance(row, str)]
    assert len(found) == len(expected)
    assert list(found) == [row for _, row in expected]
    for index, (number, row) in enumerate(expected):
        assert found[index] == row and found.line_number(index) == number


def test_lines_are_closed_in_silence_when_the_module_is_gone(tmp_path):
    """As at the interpreter's end, where a module's names are taken away before its objects."""
    path = tmp_path / "x.jsonl"
    lines(path, {"a": 1})
    program = (
        "import sys; import marvel_jax.data.json_lines as module\n"
        "found = module.JsonLines(sys.argv[1]); found[0]; module.os = None"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


def broken(root: Path, part: str, *rows: dict | str) -> None:
    """Replaces one file of the layout for train and test alike."""
    for path in root.rglob(part):
        lines(path, *rows)


FAULTS = [
    ("broken json", "mbeir_visualnews_task0_*.jsonl", [QUERY, '{"qid": "9:2",'],
     r"task0_\w+\.jsonl, line 2: not valid JSON"),
    ("not an object", "mbeir_visualnews_task0_*.jsonl", [QUERY, "", "[1]"],
     r"line 3: expected a JSON object, found list"),
    ("no id", "mbeir_visualnews_task0_*.jsonl", [{**QUERY, "qid": None}],
     r'line 1: expected qid as "dataset:number", found None'),
    ("no positive", "mbeir_visualnews_task0_*.jsonl", [QUERY, NO_POSITIVE],
     r"line 2: query 9:2 has no positive"),
    ("positives no list", "mbeir_visualnews_task0_*.jsonl", [{**QUERY, "pos_cand_list": "9:11"}],
     r"line 1: expected pos_cand_list as a list"),
    ("positive no id", "mbeir_visualnews_task0_*.jsonl", [{**QUERY, "pos_cand_list": [7]}],
     r"line 1: expected candidate ids in pos_cand_list, found 7"),
    ("unknown task", "mbeir_visualnews_task0_*.jsonl", [{**QUERY, "task_id": 5}],
     r"line 1: query 9:1 has task_id 5"),
    ("empty query", "mbeir_visualnews_task0_*.jsonl", [{**QUERY, "query_txt": " "}],
     r"line 1: 9:1 has neither query_txt nor query_img_path"),
    ("text no text", "mbeir_visualnews_task0_*.jsonl", [{**QUERY, "query_txt": 3}],
     r"line 1: 9:1 has query_txt 3; expected text or null"),
    ("broken pool", "mbeir_union_train_cand_pool.jsonl", [IMAGE, "{]"],
     r"mbeir_union_train_cand_pool.jsonl, line 2: not valid JSON"),
    ("bad candidate id", "mbeir_union_train_cand_pool.jsonl", [{**IMAGE, "did": "bus"}],
     r"line 1: expected did as \"dataset:number\", found 'bus'"),
    ("id twice", "mbeir_union_train_cand_pool.jsonl", [IMAGE, OTHER, IMAGE],
     r"line 3: did 9:11 was used before, at .*line 1"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("part", "rows", "message"), [f[1:] for f in FAULTS], ids=[f[0] for f in FAULTS]
)
def test_a_fault_is_named_with_file_and_line(root, part, rows, message):
    broken(root, part, *rows)
    with pytest.raises(MarvelError, match=message):
        source = MbeirFolder(root).source("train")
        list(source.candidates)


def test_a_positive_that_no_pool_has_is_named(root):
    query = {**QUERY, "pos_cand_list": ["9:11", "9:999"]}
    lines(root / "query/train/mbeir_visualnews_task0_train.jsonl", query)
    with pytest.raises(MarvelError, match=r"line 1: query 9:1 has the positive 9:999.*union_train"):
        MbeirFolder(root).source("train")
    source = MbeirFolder(root).source("train", verify=False)
    with pytest.raises(MarvelError, match="Candidate 9:999 is in none of the pools"):
        source.candidate_index("9:999")


QRELS = "mbeir_visualnews_task0_test_qrels.txt"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("9:1 0 9:11 1", r"qrels.txt, line 1: expected `qid 0 did relevance task`"),
        ("9:1 0 9:11 yes 0", r"qrels.txt, line 1: expected"),
        ("9:7 0 9:11 1 0", r"qrels.txt, line 1: 9:7 is not in .*task0_test.jsonl"),
        ("9:1 0 9:77 1 0", r"qrels.txt, line 1: 9:77 is not in .*union_test_cand_pool.jsonl"),
        ("9:1 0 9:11 0 0", r"task0_test.jsonl, line 1: query 9:1 has no relevant candidate"),
    ],
)
def test_a_fault_of_the_qrels_is_named(root, row, message):
    lines(root / "qrels/test" / QRELS, row)
    with pytest.raises(MarvelError, match=message):
        MbeirFolder(root).test_sets()


@pytest.mark.parametrize(
    "row",
    [
        "text image MSCOCO 9 Find it.",
        "text\timage\tMSCOCO\tnine\tFind it.",
        "text\timage\tMSCOCO\t9\t",
    ],
)
def test_an_unreadable_instruction_is_named(root, row):
    lines(root / "instructions/query_instructions.tsv", HEADER + row)
    with pytest.raises(
        MarvelError, match=r"query_instructions.tsv, line 2: expected tab-separated"
    ):
        MbeirFolder(root).source("train")


@pytest.mark.parametrize(
    "missing",
    [
        "query/test/mbeir_visualnews_task0_test.jsonl",
        "cand_pool/local/mbeir_visualnews_task0_cand_pool.jsonl",
        f"qrels/test/{QRELS}",
    ],
)
def test_a_missing_file_is_named(root, missing):
    (root / missing).unlink()
    name = str(Path(missing).parent) if missing.startswith("query") else missing
    with pytest.raises(MarvelError, match=name):
        MbeirFolder(root).test_sets()


def test_a_missing_folder_table_or_split_is_named(root, tmp_path):
    with pytest.raises(MarvelError, match="not a folder in the M-BEIR layout"):
        MbeirFolder(tmp_path / "nowhere")
    with pytest.raises(MarvelError, match=r"query/val holds no \.jsonl"):
        MbeirFolder(root).source("val")
    (root / "instructions/query_instructions.tsv").unlink()
    with pytest.raises(MarvelError, match=r"query_instructions.tsv does not exist"):
        MbeirFolder(root).source("train")


def test_a_query_file_with_a_strange_name_is_refused(root):
    lines(root / "query/test/queries.jsonl", QUERY)
    with pytest.raises(MarvelError, match="expected a name like mbeir_DATASET_taskN_test"):
        MbeirFolder(root).test_sets()


@given(st.integers(0, 10), st.integers(0, 499_999), st.integers(0, 9_999_999))
def test_hashed_ids_are_mbeirs_and_come_back(dataset, query, candidate):
    qid, did = f"{dataset}:{query}", f"{dataset}:{candidate}"
    assert mbeir_write.hash_query_id(qid) == dataset * 500_000 + query
    assert mbeir_write.hash_candidate_id(did) == dataset * 10_000_000 + candidate
    assert mbeir_write.unhash_query_id(mbeir_write.hash_query_id(qid)) == qid
    assert mbeir_write.unhash_candidate_id(mbeir_write.hash_candidate_id(did)) == did


@pytest.mark.parametrize("id", ["1:500000", "bus", "1:", ":1"])
def test_an_id_that_cannot_be_hashed_is_refused(id):
    with pytest.raises(MarvelError, match="Expected an id"):
        mbeir_write.hash_query_id(id)


def test_what_is_written_is_read_back(tmp_path):
    queries = [
        mbeir_write.query_record("10:1", task=0, text="ünï", image=None, positives=["10:5"]),
        mbeir_write.query_record(
            "10:2", task=0, text="b", image=None, positives=["10:6", "10:5"], source={"a": 1}
        ),
    ]
    pool = [
        mbeir_write.candidate_record("10:5", text=None, image="mbeir_images/a.png"),
        mbeir_write.candidate_record("10:6", text="card", image="mbeir_images/b.png"),
    ]
    mbeir_write.write_queries(tmp_path, "toy", task=0, split="test", records=queries)
    mbeir_write.write_local_pool(tmp_path, "toy", task=0, records=pool)
    mbeir_write.write_union_pool(tmp_path, split="test", records=pool)
    instructions = {("text", "image"): ["Find.", "Show."], ("text", "text"): ["Say."]}
    mbeir_write.write_instructions(tmp_path, dataset=10, name="Toy", instructions=instructions)
    layout = MbeirFolder(tmp_path)
    (one,) = layout.test_sets()
    assert [(q.id, q.item.parts[0], q.positives) for q in one.queries] == [
        ("10:1", "ünï", ("10:5",)),
        ("10:2", "b", ("10:6", "10:5")),
    ]
    assert one.qrels == {"10:1": {"10:5"}, "10:2": {"10:5", "10:6"}}
    assert [candidate.modality for candidate in one.pool] == ["image", "image,text"]
    assert layout.instructions[10, "text", "text"] == ("Say.",)
    assert len(layout.source("test").queries) == 2
