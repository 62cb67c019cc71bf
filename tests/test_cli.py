"""`marvel ...` as a person and a program meet it: results, exit codes, and what is wrong."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import safetensors.numpy

from marvel_jax import cli
from marvel_jax.data import emoji
from marvel_jax.models import hub, names
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.recipes import commands
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.store import VectorStore
from tests import tiny
from tests import tiny_corpus as tiny_corpora

ROOT = Path(__file__).parents[1]
COMMANDS = ("quickstart", "data emoji", "train", "encode", "index", "search", "evaluate")
COMMANDS += ("import", "export")


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict:
        """The one object of `--json`: the last line, and the only one of its kind."""
        *before, last = self.out.splitlines()
        assert not any(line.startswith("{") for line in before)
        return json.loads(last, parse_constant=pytest.fail)


Marvel = Callable[..., Ran]


@pytest.fixture
def marvel(capsys) -> Marvel:
    def run(*args: object) -> Ran:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.main([str(arg) for arg in args])
        return Ran(int(stop.value.code or 0), *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_model, tiny_corpus) -> Path:
    """A folder with the store of the corpus's pool and its index; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    commands.encode_pool(str(tiny_model), pool=tiny_corpus, out=folder / "store")
    commands.build_index(folder / "store", out=folder / "index")
    return folder


# --- what each command does ------------------------------------------------------------------


def test_data_emoji(marvel, tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "build", partial(emoji.build, limit=30, vocabulary=1000))
    ran = marvel("data", "emoji", "--out", tmp_path / "emoji", "--seed", 2, "--json")
    assert ran.code == 0
    assert ran.json["emoji"] > 20 and ran.json["training_queries"] > 100
    assert emoji.read_manifest(tmp_path / "emoji")["seed"] == 2


def test_train_leaves_a_model_that_loads(marvel, tiny_config, tiny_run, tiny_model, tmp_path):
    # A finished run, so that nothing is left but to write the model.
    shutil.copytree(tiny_run, tmp_path / "run")
    ran = marvel("train", tiny_config, "--workdir", tmp_path / "run", "--json")
    assert ran.code == 0
    assert ran.json == {
        "workdir": str(tmp_path / "run"),
        "steps": 8,
        "interrupted": False,
        "model": str(tmp_path / "run/model"),
    }
    for file in tiny_model.iterdir():
        assert (tmp_path / "run/model" / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    "given", [("--set", "seed=3", "steps=9"), ("--set", "seed=3", "--set", "steps=9")]
)
def test_every_set_reaches_the_config(marvel, tiny_config, tiny_run, given):
    ran = marvel("train", tiny_config, "--workdir", tiny_run, *given)
    assert ran.code == 1
    assert "other settings (config.seed, config.steps)" in ran.err


def test_encode_index_and_search(marvel, tiny_model, tiny_corpus, tmp_path):
    store, index = tmp_path / "store", tmp_path / "index"
    ran = marvel("encode", tiny_model, "--pool", tiny_corpus, "--out", store, "--json")
    count = 2 * tiny_corpora.PAIRS
    assert ran.code == 0 and ran.json["count"] == count and ran.json["dimension"] == 32
    ran = marvel("index", store, "--out", index, "--json")
    assert ran.code == 0 and ran.json["count"] == count
    asked = ("search", tiny_model, "--store", store, "--k", 5, "--json")
    picture = tiny_corpus / "mbeir_images/7.png"
    exact = marvel(*asked, "--image", picture)
    assert exact.code == 0
    hits = exact.json["hits"]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    # The picture itself is in the pool.
    assert hits[0]["id"] == "90:7" and hits[0]["score"] == pytest.approx(1, abs=1e-5)
    assert [line.split()[2] for line in exact.out.splitlines()[:-1]] == [h["id"] for h in hits]
    approximate = marvel(*asked, "--image", picture, "--index", index)
    assert approximate.json["hits"] == hits
    words = ("--text", "red cat", "--instruction", "find the picture")
    for query in (words, (*words, "--image", picture), ("--text", "red cat")):
        found = marvel(*asked, *query).json["hits"]
        assert len(found) == 5 and found != hits


def test_encode_reads_a_plain_list_of_items(marvel, tiny_model, tmp_path):
    (tmp_path / "a.png").write_bytes(tiny.picture(0))
    pool = tmp_path / "pool.jsonl"
    pool.write_text('{"id": "x", "image": "a.png"}\n{"id": "y", "text": "red cat"}\n')
    ran = marvel("encode", tiny_model, "--pool", pool, "--out", tmp_path / "store", "--json")
    assert ran.code == 0 and ran.json["count"] == 2
    assert list(VectorStore.open(tmp_path / "store").ids) == ["x", "y"]


def test_evaluate_scores_every_test_set_and_encodes_once(
    marvel, tiny_model, tiny_corpus, tmp_path, monkeypatch
):
    asked = ("evaluate", tiny_model, "--data", tiny_corpus, "--workdir", tmp_path / "run", "--json")
    first = marvel(*asked)
    assert first.code == 0
    sets = {one["name"]: one for one in first.json["sets"]}
    assert set(sets) == {"tiny_task0", "tiny_task3", "tiny_task7"}
    assert sets["tiny_task0"]["local_pool"]["size"] == tiny_corpora.PAIRS
    assert sets["tiny_task0"]["global_pool"]["size"] == 2 * tiny_corpora.PAIRS
    assert first.json["approximate"]["recall"] == 1
    assert "ScaNN: recall@10" in first.out and "t->i" in first.out
    assert json.loads((tmp_path / "run/scores.json").read_text()) == first.json

    def fail(self, *args, **options):
        pytest.fail("something is encoded again")

    monkeypatch.setattr(Embedder, "encode", fail)
    again = marvel(*asked)
    assert again.json["sets"] == first.json["sets"]


def test_evaluate_chooses_instructions_by_seed(marvel, tiny_model, tiny_corpus, tmp_path):
    asked = ("evaluate", tiny_model, "--data", tiny_corpus, "--workdir", tmp_path, "--exact-only")
    found = [marvel(*asked, "--seed", seed, "--json") for seed in (0, 1)]
    assert [ran.code for ran in found] == [0, 0]
    for seed, ran in enumerate(found):
        assert f"seed {seed}" in ran.json["instruction_choice"]
        assert ran.json["approximate"] is None


def test_import_and_export_give_the_same_model(marvel, tiny_run, tiny_model, tmp_path):
    ran = marvel("export", tiny_run, "--out", tmp_path / "out", "--json")
    assert ran.code == 0 and ran.json == {"out": str(tmp_path / "out"), "step": 8}
    ran = marvel("import", tmp_path / "out", "--out", tmp_path / "in", "--json")
    assert ran.code == 0 and ran.json["parameters"] > 10_000
    for file in tiny_model.iterdir():
        assert (tmp_path / "in" / file.name).read_bytes() == file.read_bytes(), file.name


# --- exit codes, --json and --help -----------------------------------------------------------


def test_an_error_is_one_message_and_no_traceback(marvel, tmp_path):
    ran = marvel("index", tmp_path / "nothing", "--out", tmp_path / "index")
    assert ran.code == 1 and ran.out == ""
    assert ran.err.startswith("marvel: ") and "Traceback" not in ran.err
    as_json = marvel("index", tmp_path / "nothing", "--out", tmp_path / "index", "--json")
    assert as_json.code == 1
    assert f"marvel: {as_json.json['error']}" == ran.err.strip()


def test_ctrl_c_is_130_and_can_go_on(marvel, tiny_model, tiny_corpus, tmp_path, monkeypatch):
    asked = ("encode", tiny_model, "--pool", tiny_corpus, "--out", tmp_path / "store", "--json")

    def interrupt(self, *args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "encode", interrupt)
        ran = marvel(*asked)
    assert ran.code == 130 and "interrupted" in ran.json["error"] and "run the same" in ran.err
    assert marvel(*asked).code == 0


def test_wrong_arguments_are_2(marvel):
    ran = marvel("search", "model", "--store", "store", "--k", "many", "--json")
    assert ran.code == 2 and "--k" in ran.err
    assert "arguments do not fit" in ran.json["error"]
    assert marvel("serch").code == 2


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch, tmp_path):
    def fault(*args, **options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(commands, "build_index", fault)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["index", str(tmp_path), "--out", str(tmp_path / "index")])


def test_every_command_has_a_help_that_loads_nothing_heavy():
    code = f"""
import sys
from marvel_jax import cli
for command in {("", "data", *COMMANDS)!r}:
    try:
        cli.main([*command.split(), "--help"])
    except SystemExit as stop:
        assert not stop.code, (command, stop.code)
    print("=" * 8)
heavy = {{"jax", "torch", "tensorflow", "transformers", "flax", "grain", "scann"}}
print("loaded:", *sorted(heavy & set(sys.modules)))
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert process.returncode == 0, process.stderr
    *helps, loaded = process.stdout.split("=" * 8)
    assert loaded.strip() == "loaded:"
    assert len(helps) == len(COMMANDS) + 2
    for command, text in zip(("", "data", *COMMANDS), helps, strict=True):
        assert f"usage: marvel {command}".strip() in text
    for command in COMMANDS:
        assert command.split()[0] in helps[0]


# --- bad input -------------------------------------------------------------------------------


@pytest.fixture
def failing(marvel) -> Callable[..., str]:
    """Runs a command that must fail for a reason that a person can mend; returns the message."""

    def run(*args: object) -> str:
        ran = marvel(*args, "--json")
        assert ran.code == 1, ran
        assert "Traceback" not in ran.err
        return ran.json["error"]

    return run


def test_a_missing_corpus(failing, tiny_config, tiny_model, tmp_path):
    for reader in ("mbeir", "tfds"):
        settings = (f"data.path={tmp_path / 'none'}", f"data.reader={reader}")
        said = failing("train", tiny_config, "--workdir", tmp_path / "run", "--set", *settings)
        assert "none does not exist" in said and "marvel data emoji" in said
    said = failing("encode", tiny_model, "--pool", tmp_path / "none", "--out", tmp_path / "store")
    assert "none does not exist" in said
    (tmp_path / "empty").mkdir()
    said = failing("evaluate", tiny_model, "--data", tmp_path / "empty", "--workdir", tmp_path)
    assert "not a folder in the M-BEIR layout" in said
    settings = (f"data.path={tmp_path / 'empty'}", "data.reader=tfds")
    said = failing("train", tiny_config, "--workdir", tmp_path / "run", "--set", *settings)
    assert "holds no TFDS data set" in said


def test_a_broken_config(failing, tiny_config, tmp_path):
    (tmp_path / "config.py").write_text("config = TrainConfig()")
    said = failing("train", tmp_path / "config.py", "--workdir", tmp_path / "run")
    assert "config.py fails: NameError" in said
    said = failing("train", tiny_config, "--workdir", tmp_path / "run", "--set", "data.batch=3")
    assert "--set data.batch: no such field; there are path, reader" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("k", [0, 97, 1000])
@pytest.mark.parametrize("indexed", [False, True], ids=["exact", "scann"])
def test_k_outside_of_the_pool(failing, tiny_model, made, k, indexed):
    index = ("--index", made / "index") if indexed else ()
    said = failing(
        "search", tiny_model, "--store", made / "store", "--text", "cat", "--k", k, *index
    )
    assert f"k={k}" in said and ("96" in said or k == 0)


def test_nothing_to_search_for(failing, tiny_model, made):
    said = failing("search", tiny_model, "--store", made / "store")
    assert "give --text, --image or both" in said
    said = failing("search", tiny_model, "--store", made / "store", "--text", " ")
    assert "query is empty" in said
    said = failing("search", tiny_model, "--store", made / "store", "--image", "no.png")
    assert "image no.png cannot be read" in said


def test_an_index_of_another_store(failing, tiny_model, made, tmp_path):
    pool = tmp_path / "pool.jsonl"
    lines = [json.dumps({"id": f"{i}", "text": f"cat {i}"}) for i in range(12)]
    pool.write_text("\n".join(lines))
    commands.encode_pool(str(tiny_model), pool=pool, out=tmp_path / "store")
    said = failing(
        "search", tiny_model, "--store", tmp_path / "store", "--text", "cat", "--index",
        made / "index",
    )  # fmt: skip
    assert "count=96" in said and "count=12" in said and "Build the index" in said


def test_a_store_of_another_model(failing, tiny_model, tiny_corpus, made, tmp_path):
    wider = tmp_path / "wider"
    save_model(wider, tiny_model, hidden_size=64, mrope_section=(4, 2, 2))
    said = failing("search", wider, "--store", made / "store", "--text", "cat")
    assert "dimension=32" in said and "dimension=64" in said
    other = tmp_path / "other"
    save_model(other, tiny_model)
    said = failing("search", other, "--store", made / "store", "--text", "cat")
    assert said.count("model_hash=") == 2
    said = failing("encode", other, "--pool", tiny_corpus, "--out", made / "store")
    assert said.count("model_hash=") == 2
    said = failing("encode", other, "--pool", tmp_path, "--out", tmp_path / "store")
    assert "M-BEIR" in said


def test_a_file_where_a_folder_should_be(failing, tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    said = failing("import", tiny_model, "--out", out)
    assert str(tmp_path / "file") in said


def save_model(folder: Path, like: Path, **text: object) -> None:
    """A model folder of random weights with another's tokenizer."""
    ids = Qwen2VLConfig.from_folder(like)
    config = dataclasses.replace(
        tiny.architecture(vocab_size=ids.text.vocab_size, **text),
        image_token_id=ids.image_token_id,
    )
    rng = np.random.default_rng(5)
    params = {
        row.path: rng.normal(size=row.shape(config)).astype(np.float32)
        for row in names.table(config)
        if not row.optional
    }
    hub.save(folder, config=config, params=names.nest(params), tokenizer_from=like)


def test_a_broken_line_of_a_pool(failing, tiny_model, tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    pool = tmp_path / "corpus/cand_pool/global/mbeir_union_test_cand_pool.jsonl"
    lines = pool.read_text().splitlines()
    pool.write_text("\n".join([*lines[:4], lines[4][:-5], *lines[5:]]))
    for command in (
        ("encode", tiny_model, "--pool", tmp_path / "corpus", "--out", tmp_path / "store"),
        ("evaluate", tiny_model, "--data", tmp_path / "corpus", "--workdir", tmp_path / "run"),
    ):
        said = failing(*command)
        assert f"{pool.name}" in said and "line 5" in said
    assert not (tmp_path / "store").exists()


def test_a_missing_picture(failing, tiny_model, tiny_corpus, tiny_config, tmp_path):
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    (tmp_path / "corpus/mbeir_images/3.png").unlink()
    said = failing("encode", tiny_model, "--pool", tmp_path / "corpus", "--out", tmp_path / "store")
    assert "Item 90:3: image" in said and "mbeir_images/3.png cannot be read" in said
    settings = ("--set", f"data.path={tmp_path / 'corpus'}")
    said = failing("train", tiny_config, "--workdir", tmp_path / "run", *settings)
    assert "mbeir_images/3.png cannot be read" in said


@pytest.mark.parametrize("command", ["import", "search"])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("missing", ("model.norm.weight", "missing")),
        ("unknown", ("model.layers.0.adapter", "unknown")),
        ("shape", ("model.norm.weight is [5], expected [32]",)),
        ("corrupt", ("model.safetensors is not a whole safetensors file",)),
        ("absent", ("has no model.safetensors",)),
        ("config", ("config.json",)),
        ("tokenizer", ("tokenizer.json does not exist",)),
    ],
)
def test_a_damaged_model(failing, tiny_model, made, tmp_path, command, change, expected):
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    file = model / "model.safetensors"
    weights = safetensors.numpy.load_file(file)
    match change:
        case "missing":
            del weights["model.norm.weight"]
        case "unknown":
            weights["model.layers.0.adapter"] = np.zeros(3, np.float32)
        case "shape":
            weights["model.norm.weight"] = np.zeros(5, np.float32)
        case "config" | "tokenizer":
            (model / f"{change}.json").unlink()
    if change in ("missing", "unknown", "shape"):
        safetensors.numpy.save_file(weights, file, metadata={"format": "pt"})
    elif change == "corrupt":
        file.write_bytes(file.read_bytes()[:-100])
    elif change == "absent":
        file.unlink()
    if command == "import":
        said = failing("import", model, "--out", tmp_path / "out")
    else:
        said = failing("search", model, "--store", made / "store", "--text", "cat")
    assert str(model) in said
    assert all(words in said for words in expected), said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["data", "index", "import", "export"])
def test_what_exists_is_not_written_over(
    failing, tiny_run, tiny_model, made, tmp_path, monkeypatch, command
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "work.txt").write_text("precious")
    arguments = {
        "data": ("data", "emoji"),
        "index": ("index", made / "store"),
        "import": ("import", tiny_model),
        "export": ("export", tiny_run),
    }[command]
    said = failing(*arguments, "--out", tmp_path / "mine")
    assert f"{tmp_path / 'mine'} exists already" in said
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["work.txt"]
