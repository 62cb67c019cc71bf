"""What each command of `marvel` does."""

import json
import shutil
from functools import partial

import pytest

from marvel_jax.data import emoji
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.store import VectorStore
from tests import tiny
from tests import tiny_corpus as tiny_corpora


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
