"""What is wrong with a person's files and arguments is one message that says how to mend it."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from marvel_jax.models import hub, names
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.recipes.encoding import encode_pool
from tests import tiny


def test_a_missing_corpus(failing, tiny_config, tiny_model, tmp_path):
    for reader in ("mbeir", "tfds"):
        settings = (f"data.path={tmp_path / 'none'}", f"data.reader={reader}")
        said = failing("train", tiny_config, "--workdir", tmp_path / "run", "--set", *settings)
        assert "none does not exist" in said and "marvel data emoji" in said
        assert ("marvel data make-mbeir" in said) == (reader == "mbeir")
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


def test_a_mesh_that_cuts_heads_is_told_before_weights_are_drawn(
    failing, tiny_config, tmp_path, monkeypatch
):
    def draw_nothing(*args, **options):
        pytest.fail("weights are drawn")

    monkeypatch.setattr("marvel_jax.training.prepare.place_state", draw_nothing)
    said = failing("train", tiny_config, "--workdir", tmp_path / "run", "--set", "mesh.tensor=8")
    assert "mesh.tensor=8 does not divide the model's 4 query heads" in said
    assert "use mesh.tensor=1, 2." in said and not (tmp_path / "run/recipe.json").exists()


def test_batches_without_a_search(failing, tiny_config):
    said = failing("plan", tiny_config, "--topology", "cpu:8", "--batches", 8, 16)
    assert "--batches are tried by --search" in said


def test_nothing_to_search_for(failing, tiny_model, made):
    said = failing("search", tiny_model, "--store", made / "store")
    assert "give --text, --image, --video or several" in said
    said = failing("search", tiny_model, "--store", made / "store", "--text", " ")
    assert "query is empty" in said
    said = failing("search", tiny_model, "--store", made / "store", "--image", "no.png")
    assert "image no.png cannot be read" in said


def test_an_index_of_another_store(failing, tiny_model, made, tmp_path):
    pool = tmp_path / "pool.jsonl"
    lines = [json.dumps({"id": f"{i}", "text": f"cat {i}"}) for i in range(12)]
    pool.write_text("\n".join(lines))
    encode_pool(str(tiny_model), pool=pool, out=tmp_path / "store")
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
    assert "90:3 (" in said and "mbeir_images/3.png" in said and "tolerate 1" in said
    assert "store.failures.jsonl" in said and not (tmp_path / "store").exists()
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
