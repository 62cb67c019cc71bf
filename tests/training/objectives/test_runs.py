"""Whole runs of distillation: from files to weights, killed in between, and after another stage."""

import dataclasses
import json
import math
import shutil

import jax
import numpy as np
import pytest

from marvel_jax.data.keyed_lines import KeyedWriter, pool_hash, queries_hash
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mined import KIND, VERSION, MinedLine
from marvel_jax.data.teacher import teacher_line, teacher_writer
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub, lora
from marvel_jax.plan import batch as plan_batch
from marvel_jax.recipes.config_file import load_config
from marvel_jax.training.checkpoints import read_params
from marvel_jax.training.export import export_checkpoint
from marvel_jax.training.inputs import open_inputs, place_state
from marvel_jax.training.loop import train
from marvel_jax.training.objective_config import DistillationConfig
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.prepare import make_build, make_plan
from tests.training import runs, tiny_steps
from tests.training.objectives.talk import RETENTION


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_corpus):
    """A teacher's file and one of mined negatives for the corpus's training queries."""
    source = MbeirFolder(tiny_corpus).source("train")
    folder = tmp_path_factory.mktemp("files")
    manifest = {
        "model_hash": "m0",
        "teacher_hash": "t0",
        "source_fingerprint": source.fingerprint,
        "queries_hash": queries_hash(source),
        "pool_hash": pool_hash(source),
    }
    rng = np.random.default_rng(0)
    ids = [one.id for one in source.candidates]
    scores, mined = [], []
    for query in source.queries:
        chosen = [ids[place] for place in rng.permutation(len(ids))[:4]]
        yes, no, recall = rng.normal(size=(3, 4)).astype(np.float32)
        scores.append(teacher_line(query.id, chosen, yes=yes, no=no, recall=recall))
        wrong = tuple(one for one in chosen if one not in query.positives)
        none: tuple = ()
        line = MinedLine(query.id, "90:0", wrong, 0.5, None, none, none, none, none, none)
        mined.append(json.loads(json.dumps(line.to_dict())))
    teacher = teacher_writer(folder / "teacher.jsonl", manifest)
    teacher.append(scores)
    teacher.finish({})
    negatives = KeyedWriter(folder / "mined.jsonl", {"kind": KIND, "version": VERSION, **manifest})
    negatives.append(mined)
    negatives.finish({})
    return folder


def distilling(tiny_config, files, model, *settings):
    config = load_config(tiny_config, ("steps=4", "checkpoint.every=2", *settings))
    data = dataclasses.replace(
        config.data,
        teacher=str(files / "teacher.jsonl"),
        mined=str(files / "mined.jsonl"),
        hard_negatives=1,
        retrieved_by="m0",
        taught_by="t0",
    )
    return dataclasses.replace(
        config,
        data=data,
        model=dataclasses.replace(config.model, source=str(model), scratch=None),
        objective="distillation",
        distillation=DistillationConfig(depth=4, contrastive_weight=0.5),
        retention=RETENTION,
    )


@pytest.fixture(scope="module")
def adapted(tmp_path_factory, tiny_config, tiny_model):
    """A first stage: adapters on top of a model, and what it left, merged."""
    config = load_config(
        tiny_config, ("steps=2", "model.adapters.rank=4", "optimizer.temperature=0.08")
    )
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, source=str(tiny_model), scratch=None)
    )
    folder = tmp_path_factory.mktemp("adapted")
    train(config, folder / "run")
    export_checkpoint(folder / "run", folder / "model")
    return config, folder


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, tiny_config, files, adapted):
    """The stage after it, to its end."""
    config = distilling(tiny_config, files, adapted[1] / "model")
    workdir = tmp_path_factory.mktemp("distilled") / "run"
    train(config, workdir)
    return config, workdir


def test_a_stage_starts_from_the_merged_weights_and_the_temperature(adapted, distilled, tiny_model):
    first, folder = adapted
    params = read_params(folder / "run" / "checkpoints", step=None)[1]
    merged = lora.merge(hub.load(tiny_model).params, params["adapters"], first.model.adapters)
    config, workdir = distilled
    inputs = open_inputs(config)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    placed = place_state(config, inputs, optimizer, tiny_steps.mesh_for(tiny_steps.ONE))
    jax.tree.map(np.testing.assert_array_equal, placed.state.params["model"], merged)
    learned = math.exp(float(params["log_temperature"]))
    assert learned != pytest.approx(0.08, abs=1e-7)
    assert runs.rows(workdir)[0]["temperature"] == pytest.approx(learned, abs=1e-7)


def test_every_row_has_the_figures_of_its_objective(distilled):
    names = {"loss", "kl", "agreement", "lists", "temperature", "contrastive", "accuracy"}
    names |= {"next_token", "next_token_accuracy", "next_tokens"}
    for row in runs.rows(distilled[1]):
        assert names <= row.keys() and row["lists"] == 16
    (start,) = runs.events(distilled[1], "start")
    assert start["objective"] == "distillation"


def test_a_killed_run_ends_with_the_same_weights_wherever_its_files_are_now(
    distilled, files, tmp_path
):
    """The folder as a process left it that died behind the checkpoint of step 2.

    Since then the teacher, the mined negatives and the texts have moved: what they hold counts.
    """
    config, workdir = distilled
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "4")
    there = shutil.copytree(files, tmp_path / "files")
    texts = shutil.copy(config.retention.path, tmp_path / "texts.jsonl")
    moved = dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, teacher=str(there / "teacher.jsonl"), mined=str(there / "mined.jsonl")
        ),
        retention=dataclasses.replace(config.retention, path=str(texts)),
    )
    train(moved, again)
    runs.assert_same_run(again, workdir)
    other = dataclasses.replace(moved.retention, weight=0.5)
    with pytest.raises(MarvelError, match=r"config\.retention\.weight was 0\.25 and is now 0\.5"):
        train(dataclasses.replace(moved, retention=other), again)


def test_files_of_other_models_are_told_before_anything_is_written(
    tiny_config, files, tiny_model, tmp_path
):
    config = distilling(tiny_config, files, tiny_model)
    data = dataclasses.replace(config.data, retrieved_by="m9", taught_by="t9")
    with pytest.raises(MarvelError) as refused:
        train(dataclasses.replace(config, data=data), tmp_path / "run")
    told = str(refused.value)
    assert "mined.jsonl was made for another model (model_hash 'm0' there, 'm9' here)" in told
    assert "teacher.jsonl was made for another model (teacher_hash 't0' there" in told
    assert not (tmp_path / "run").exists()


def test_marvel_plan_compiles_for_the_batch_that_comes(distilled):
    config, _ = distilled
    inputs = open_inputs(config)
    epoch = make_plan(config, inputs, shards=2, cache=None)
    step = max((epoch.step(number) for number in range(4)), key=lambda one: one.num_rows)
    build = make_build(config, inputs, shards=2)
    batch = build(inputs.source, inputs.processor, step, range(2))
    sizes = plan_batch.train_sizes(config, inputs, shards=2)
    planned = plan_batch.train_batch(config, inputs.architecture, sizes, shards=2)
    # A text has no patches; how wide they are does not matter.
    texts = planned.texts._replace(
        rows=planned.texts.rows._replace(patches=batch.texts.rows.patches)
    )
    found, expected = (jax.tree.leaves(one) for one in (planned._replace(texts=texts), batch))
    assert [leaf.shape for leaf in found] == [leaf.shape for leaf in expected]
    assert [leaf.dtype for leaf in found] == [leaf.dtype for leaf in expected]
