"""`marvel mine`: from a model and a corpus to a source whose queries carry mined negatives."""

import json
from pathlib import Path

import numpy as np
import pytest

from marvel_jax import cli
from marvel_jax.data import lengths
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mined import read_mined, with_negatives
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.strategies import strategies_of
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.mining_rules import PRESETS
from marvel_jax.training.inputs import hash_weights
from tests import tiny

LOOSE = ("--set", "threshold=None", "k=3", "depth=20", "90:7.pick=random")


def marvel(*args: object) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main([str(arg) for arg in args])
    return int(stop.value.code or 0)


@pytest.fixture(scope="module")
def mined(tmp_path_factory, tiny_model, tiny_corpus) -> Path:
    out = tmp_path_factory.mktemp("mined") / "negatives.jsonl"
    assert marvel("mine", tiny_model, "--data", tiny_corpus, "--out", out, *LOOSE, "--json") == 0
    return out


def test_every_training_query_has_its_line_and_none_of_its_positives(mined, tiny_corpus):
    manifest, lines = read_mined(mined)
    queries = {query.id: query for query in MbeirFolder(tiny_corpus).source().queries}
    found = {line.qid: line for line in lines}
    assert found.keys() == queries.keys()
    for qid, line in found.items():
        assert len(line.negatives) == 3
        assert not set(line.negatives) & set(queries[qid].positives)
        assert list(line.similarities[:20]) == sorted(line.similarities[:20], reverse=True)
    counts = manifest["counts"]
    assert counts["queries"] == len(queries) and counts["negatives"] == 3 * len(queries)
    assert counts["by_task"]["90:7"]["reasons"]["random"] == 3 * 48
    assert counts["by_task"]["90:0"]["reasons"]["top"] == 3 * 48


def test_training_draws_from_the_mined_negatives(mined, tiny_corpus, tiny_model):
    source = MbeirFolder(tiny_corpus).source()
    model_hash = Embedder.from_pretrained(tiny_model).model_hash
    carrying = with_negatives(
        source, mined, model_hash=model_hash, weights_hash=hash_weights(tiny_model)
    )
    negatives = {line.qid: set(line.negatives) for line in read_mined(mined)[1]}
    index = lengths.index(carrying, tiny.processor(), cache=None, hard_negatives=True)
    config = PlanConfig(global_batch=12, seed=0, row=tiny.ROW, hard_negatives=2)
    for pair in Plan(index, config, num_shards=2).describe(1)["pairs"]:
        assert len(pair["hard_negatives"]) == 2
        assert set(pair["hard_negatives"]) <= negatives[pair["query"]]
    assert carrying.fingerprint != source.fingerprint


def test_vectors_are_used_again_and_a_finished_file_is_not_overwritten(
    mined, tiny_corpus, tiny_model, capsys, monkeypatch
):
    again = (
        "mine",
        tiny_model,
        "--data",
        tiny_corpus,
        "--workdir",
        f"{mined.parent}/negatives-vectors",
    )
    assert marvel(*again, "--out", mined, *LOOSE) == 1
    assert "exists already" in capsys.readouterr().err
    monkeypatch.setattr(Embedder, "encode", None)
    other = mined.with_name("other.jsonl")
    assert marvel(*again, "--out", other, *LOOSE, "--json") == 0
    assert other.read_bytes() == mined.read_bytes()
    *_, last = capsys.readouterr().out.splitlines()
    assert json.loads(last)["queries"] == 144


def test_settings_reach_every_strategy_or_one_kind_of_query():
    base = PRESETS["umarvel_two_strategy"]
    found = strategies_of("umarvel_two_strategy", ["k=2", "9:0.pick=random", "5:6.k=7"])
    assert found.of(9, 0).pick == "random" and found.of(9, 0).k == 2
    assert found.of(5, 6).pick == "top" and found.of(5, 6).k == 7
    assert found.of(7, 7).k == 2 and base.of(7, 7).k == 5
    assert found.of(1, 0).pick == "pool" and found.default.k == 2


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("best", [], "modality_aware"),
        ("filtered", ["treshold=0.5"], "no such field"),
        ("filtered", ["k=0"], "give 1 or more"),
        ("modality_aware", ["depth=40"], "45 of 50"),
        ("filtered", ["9:0.pick=worst"], "one of top"),
    ],
)
def test_what_cannot_be_is_refused(preset, settings, message):
    with pytest.raises(MarvelError, match=message):
        strategies_of(preset, settings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scann", "--pool", "local"), "--scann"),
        (("--set", "teacher_above=0.5"), "--teacher"),
        (("--preset", "none"), "choose one of"),
    ],
)
def test_options_that_do_not_go_together_are_told_before_anything_is_encoded(
    options, message, tiny_corpus, tmp_path, capsys
):
    out = tmp_path / "x.jsonl"
    assert marvel("mine", "no-model", "--data", tiny_corpus, "--out", out, *options) == 1
    assert message in capsys.readouterr().err
    assert np.size(list(tmp_path.iterdir())) == 0
