"""What decides a stage's result: its settings and the content of its inputs, wherever they lie."""

import dataclasses
import re
import shutil
from dataclasses import replace

import pytest

from marvel_jax.data.sources import SourceConfig
from marvel_jax.errors import MarvelError
from marvel_jax.recipes import runner, stage_record
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import INPUTS, Train, inputs
from marvel_jax.training import run_folder
from marvel_jax.training.config import CheckpointConfig, DataConfig, ModelConfig, TrainConfig
from marvel_jax.training.objective_config import DistillationConfig, RetentionConfig
from tests import tiny


def test_what_changes_behind_a_link_is_noticed_and_a_link_to_nothing_is_told(tiny_corpus, tmp_path):
    """Large corpora are often pieced together from several disks."""
    corpus, disk = tmp_path / "corpus", tmp_path / "disk"
    shutil.copytree(tiny_corpus, corpus)
    before = stage_record.content_hash(corpus)
    queries = corpus / "query" / "train"
    queries.rename(disk)
    queries.symlink_to(disk)
    assert stage_record.content_hash(corpus) == before
    first = sorted(disk.glob("*.jsonl"))[0]
    first.write_text(first.read_text().replace("red", "blue"))
    assert stage_record.content_hash(corpus) != before
    broken = corpus / "query" / "val"
    broken.symlink_to(tmp_path / "nothing")
    with pytest.raises(MarvelError, match=r"query/val is a link to nothing"):
        stage_record.content_hash(corpus)
    broken.unlink()
    broken.symlink_to(corpus / "query")
    with pytest.raises(MarvelError, match="a link to a folder that it lies in"):
        stage_record.content_hash(corpus)
    broken.unlink()
    (tmp_path / "empty").mkdir()
    shutil.rmtree(corpus / "cand_pool")
    (corpus / "cand_pool").symlink_to(tmp_path / "empty")
    with pytest.raises(MarvelError, match="cand_pool holds no file"):
        stage_record.content_hash(corpus)


def test_of_pictures_names_and_sizes_count_and_nothing_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(stage_record, "hash_files", lambda *paths: pytest.fail("a picture is read"))
    folder = tmp_path / "images"
    (folder / "00").mkdir(parents=True)
    (folder / "00" / "a.jpg").write_bytes(b"one")
    data = DataConfig(path="data.captions", reader="captions", images="data.images", row=tiny.ROW)
    config = TrainConfig(data=data, model=ModelConfig(scratch=tiny.architecture()), steps=1)
    recipe = Recipe((Train("t", config),), {"captions": "c", "images": str(folder)})

    def hashed() -> str:
        return runner.Run(recipe, tmp_path).outside_hash("config.data.images", "data.images")

    first = hashed()
    (folder / "00" / "a.jpg").write_bytes(b"two")
    assert hashed() == first
    (folder / "00" / "a.jpg").write_bytes(b"three")
    assert hashed() != first


def test_a_pattern_of_shards_is_an_input_by_what_they_list(tmp_path):
    from tests.data.test_webdataset import FIRST, SECOND, shard

    shard(tmp_path / "train-0.tar", FIRST)
    data = DataConfig(path="data.shards", reader="webdataset", row=tiny.ROW)
    config = TrainConfig(data=data, model=ModelConfig(scratch=tiny.architecture()), steps=1)
    recipe = Recipe((Train("t", config),), {"shards": str(tmp_path / "train-*.tar")})
    run = runner.Run(recipe, tmp_path / "run")
    assert run.missing(recipe.stages[0], made=()) == []
    before = run.described(recipe.stages[0])
    shard(tmp_path / "train-1.tar", SECOND)
    assert runner.Run(recipe, tmp_path / "run").described(recipe.stages[0]) != before


def test_how_a_training_is_carried_out_may_change_and_what_it_computes_may_not(tiny_corpus):
    config = TrainConfig(
        data=DataConfig(path="data.mbeir", row=tiny.ROW),
        model=ModelConfig(scratch=tiny.architecture()),
        steps=3,
    )

    def described(config: TrainConfig) -> dict:
        return stage_record.describe(Train("t", config), {"config.data.path": "x"})

    paced = replace(config, chunk_rows=1, checkpoint=CheckpointConfig(every=1))
    assert described(paced) == described(config)
    assert described(replace(config, steps=4)) != described(config)
    assert described(replace(config, seed=4)) != described(config)


def test_pace_is_what_a_run_itself_takes_for_pace():
    # Where data and models are is told from content in both: these are a stage's inputs.
    own = {one for one in run_folder._PACE if one.rpartition(".")[2] not in INPUTS}
    assert {f"config.{one}" for one in own} | {"batch_tokens"} == set(stage_record.PACE)


def test_every_place_in_a_training_is_one_that_a_resumed_run_does_not_compare():
    """A work folder that is spelled otherwise is another path in each of them."""
    part = SourceConfig("p", "captions", images="i", mined="m", teacher=("t", "u"), name="x")
    one = DataConfig(path="p", reader="captions", images="i", mined="m", teacher="t", tokenizer="k")
    found = set()
    for data in (one, DataConfig(mixture=(part,), tokenizer="k")):
        config = TrainConfig(
            data=dataclasses.replace(data, hard_negatives=1),
            model=ModelConfig(source="s"),
            objective="distillation",
            distillation=DistillationConfig(contrastive_weight=1.0),
            retention=RetentionConfig("r"),
        )
        found |= {
            re.sub(r"\[\d+\]", "", field.removeprefix("config."))
            for field in inputs(Train("t", config))
        }
    assert found <= set(run_folder._PACE)
    assert {"data.teacher", "data.mixture.teacher", "retention.path"} <= found
