"""A reranker's run from its config to a folder that scores: resumed, exported, merged or not."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from marvel_jax.data.items import Item
from marvel_jax.data.keyed_lines import KeyedWriter, pool_hash, queries_hash
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mined import KIND, VERSION, MinedLine
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub
from marvel_jax.models.lora import LoraConfig
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.overrides import override
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.export import export_adapters, export_checkpoint
from marvel_jax.training.loop import train
from marvel_jax.training.rerank_config import RerankConfig
from tests import tiny
from tests.training import runs

PAIRS = [
    (Item.of(text="red cat", instruction="find it"), Item.of(image=tiny.picture(3))),
    (Item.of(image=tiny.picture(4)), Item.of(text="a small bird")),
]


@pytest.fixture(scope="module")
def mined(tiny_corpus, tmp_path_factory) -> Path:
    """What a retriever might have found for the corpus: the answer third, others around it."""
    source = MbeirFolder(tiny_corpus).source("train")
    path = tmp_path_factory.mktemp("mined") / "mined.jsonl"
    manifest = {
        "kind": KIND,
        "version": VERSION,
        "source_fingerprint": source.fingerprint,
        "queries_hash": queries_hash(source),
        "pool_hash": pool_hash(source),
        "settings": {"record": "all"},
    }
    rows = []
    for query in source.queries:
        answer = source.candidate_index(query.positives[0])
        start = answer // 48 * 48
        places = [start + (answer + step) % 48 for step in (1, 2, 0, 3)]
        names = tuple(source.candidates[place].id for place in places)
        similarities, ranks = (0.9, 0.8, 0.7, 0.6), (1, 2, 3, 4)
        line = MinedLine(
            query.id, "90:0", names[:1], 0.7, 3, names, similarities, ranks, ("text",) * 4,
            ("left", "left", "positive", "left"),
        )  # fmt: skip
        rows.append(line.to_dict())
    writer = KeyedWriter(path, manifest)
    writer.append(rows)
    writer.finish({})
    return path


@pytest.fixture(scope="module")
def base(tiny_model, tmp_path_factory) -> Path:
    """The tiny model without a word on what it is: as an instruct model of others is."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("models") / "base")
    (folder / "marvel.json").unlink()
    return folder


@pytest.fixture(scope="module")
def config(tiny_config, base, mined) -> TrainConfig:
    """Of adapters on that model."""
    changes = ("data.global_batch=8", "data.row.tokens=512", "data.row.items=2", "steps=4")
    rest = override(load_config(tiny_config), changes)
    lora = LoraConfig(rank=4, alpha=8.0)
    return dataclasses.replace(
        rest,
        objective="rerank",
        rerank=RerankConfig(max_text_tokens=24, listed=2),
        data=dataclasses.replace(rest.data, mined=str(mined)),
        model=dataclasses.replace(rest.model, source=str(base), scratch=None, adapters=lora),
        optimizer=dataclasses.replace(rest.optimizer, learning_rate=0.05),
    )


@pytest.fixture(scope="module")
def run(config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "reranker"
    train(config, workdir)
    return workdir


@pytest.fixture(scope="module")
def model(run, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reranker"
    export_checkpoint(run, folder)
    return folder


def test_every_step_is_written_down_with_its_answers(run):
    rows = runs.rows(run)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert 0 <= row["accuracy"] <= 1
        assert np.isfinite([row["loss"], row["logit_gap"], row["gradient_norm"]]).all()
    (start,) = runs.events(run, "start")
    assert start["objective"] == "rerank"


def test_an_interrupted_run_ends_with_the_same_weights(config, run, tmp_path):
    """All that came behind the checkpoint of step 3 is lost, and comes again."""
    workdir = shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / "4")
    assert train(config, workdir).steps == 4
    runs.assert_same_run(workdir, run)


def test_the_folder_says_that_it_is_a_reranker(model):
    settings = json.loads((model / "marvel.json").read_text())
    assert settings == {
        "model": "reranker",
        "prompt": "marvel",
        "min_pixels": 196,
        "max_pixels": 784,
        "max_text_tokens": 24,
    }
    text = json.loads((model / "config.json").read_text())["text_config"]
    assert text["is_causal"] is True
    assert hub.load(model).temperature is None


def test_adapters_of_a_reranker_score_alike_merged_or_alone(base, run, model, tmp_path):
    export_adapters(run, tmp_path / "adapters")
    merged = Reranker.from_pretrained(model)
    as_trained = {"min_pixels": 196, "max_pixels": 784, "max_text_tokens": 24}
    alone = Reranker.from_pretrained(base, adapters=tmp_path / "adapters", **as_trained)
    plain = Reranker.from_pretrained(base, **as_trained)
    scores = [one.score(PAIRS) for one in (merged, alone, plain)]
    np.testing.assert_allclose(scores[0].yes, scores[1].yes, rtol=0, atol=1e-4)
    np.testing.assert_allclose(scores[0].no, scores[1].no, rtol=0, atol=1e-4)
    assert np.abs(scores[0].yes - scores[2].yes).max() > 1e-2


@pytest.mark.peer
def test_transformers_loads_the_folder_without_a_word(model):
    pytest.importorskip("torch")
    from transformers import Qwen2VLForConditionalGeneration

    loaded, told = Qwen2VLForConditionalGeneration.from_pretrained(model, output_loading_info=True)
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ours = hub.load(model).params["language"]["token_embedding"]
    head = loaded.get_output_embeddings().weight.detach().numpy()
    np.testing.assert_array_equal(head, jax.device_get(ours))


def test_a_mined_file_of_another_corpus_or_model_is_refused_before_any_step(
    config, mined, tmp_path
):
    manifest = json.loads(mined.with_name("mined.manifest.json").read_text())
    other = tmp_path / "mined.jsonl"
    other.write_bytes(mined.read_bytes())
    changed = manifest | {"source_fingerprint": "x", "pool_hash": "y", "model_hash": "m0"}
    other.with_name("mined.manifest.json").write_text(json.dumps(changed))
    data = dataclasses.replace(config.data, mined=str(other), retrieved_by="m1")
    with pytest.raises(MarvelError, match="another pool") as refused:
        train(dataclasses.replace(config, data=data), tmp_path / "run")
    assert "another model (model_hash 'm0' there, 'm1' here)" in str(refused.value)
    assert not (tmp_path / "run" / "recipe.json").exists()
