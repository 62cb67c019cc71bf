"""A run is whole whatever happens to it: stopped, killed, finished, moved to other devices."""

import dataclasses
import json
import os
import shutil
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from marvel_jax.data.sources import SourceConfig
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.config_file import load_config
from marvel_jax.training import run_folder
from marvel_jax.training.checkpoints import Checkpoints, read_params
from marvel_jax.training.inputs import open_inputs
from marvel_jax.training.loop import train
from tests.training import runs

STEPS = 8  # of the tiny run; it saves after 3, 6 and 8


def test_a_run_leaves_what_others_need(tiny_run):
    left = {path.name for path in tiny_run.iterdir()}
    assert {"recipe.json", "base.json", "metrics.jsonl", "checkpoints", "blueprint"} <= left
    rows = runs.rows(tiny_run)
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert {"loss", "accuracy", "temperature", "gradient_norm", "token_fill"} <= set(rows[0])
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    recipe = json.loads((tiny_run / "recipe.json").read_text())
    assert recipe["config"]["optimizer"]["learning_rate"] == 1e-3
    # The newest two, so that a damaged one has a whole one before it.
    assert runs.steps_saved(tiny_run) == [6, 8]


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_leaves_a_run_that_goes_on_to_the_same_weights(
    tiny_config, tiny_run, tmp_path, name, code
):
    workdir = tmp_path / "run"
    stopped = runs.signalled(name, 3, "train", tiny_config, "--workdir", workdir, "--json")
    assert stopped.returncode == code, stopped.stderr
    facts = json.loads(stopped.stdout.splitlines()[-1])
    # The step that was under way is finished, seen and saved.
    assert facts["interrupted"] is True and facts["steps"] == 5
    assert "Traceback" not in stopped.stderr
    assert len(runs.rows(workdir)) == 5 == runs.steps_saved(workdir)[-1]
    result = train(load_config(tiny_config), workdir)
    assert (result.steps, result.interrupted) == (STEPS, False)
    runs.assert_same_run(workdir, tiny_run)


def test_a_second_sigterm_does_not_cut_the_last_save_short(
    tiny_config, tiny_run, tmp_path, monkeypatch
):
    workdir = tmp_path / "run"
    close = Checkpoints.close

    def close_under_fire(self):
        # Schedulers send several, and the save of the first is still in the background.
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.05)
        close(self)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "close", close_under_fire)
        train(load_config(tiny_config), workdir)
    runs.assert_same_run(workdir, tiny_run)


def test_half_a_line_of_a_killed_process_is_dropped(tiny_config, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    killed = runs.signalled("SIGKILL", 4, "train", tiny_config, "--workdir", workdir)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with (workdir / "metrics.jsonl").open("a") as stream:
        stream.write('{"accuracy": 0.5, "gradie')
    train(load_config(tiny_config), workdir)
    runs.assert_same_run(workdir, tiny_run)


def test_a_finished_run_is_left_alone(tiny_config, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("checkpoints/**/*")}
    result = train(load_config(tiny_config), workdir)
    assert (result.steps, result.interrupted) == (STEPS, False)
    runs.assert_same_run(workdir, tiny_run)
    _, weights = read_params(tiny_run / "checkpoints")
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(result.state.params), weights)
    assert before == {path: path.stat().st_mtime_ns for path in workdir.glob("checkpoints/**/*")}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.learning_rate=2e-3", r"optimizer\.learning_rate was 0\.001 and is now 0\.002"),
        ("seed=5", "config.seed was 0 and is now 5"),
        ("data.task_weights={0: 1}", r"task_weights\.0 was None and is now 1\.0"),
    ],
)
def test_a_folder_of_another_run_is_refused(tiny_config, tiny_run, override, message):
    with pytest.raises(MarvelError, match=message):
        train(load_config(tiny_config, (override,)), tiny_run)


def test_other_data_in_the_same_place_is_refused(tiny_config, tiny_run, tiny_corpus, tmp_path):
    shutil.copytree(tiny_corpus, tmp_path / "corpus")
    moved = load_config(tiny_config, (f"data.path={tmp_path / 'corpus'}",))
    inputs = open_inputs(moved)
    run_folder.require_same_run(tiny_run, run_folder.describe(moved, inputs))  # the same
    pool = tmp_path / "corpus/cand_pool/global/mbeir_union_train_cand_pool.jsonl"
    pool.write_text(pool.read_text().replace("red", "dog"))
    with pytest.raises(MarvelError, match=r"other settings .*data was '.*' and is now '"):
        train(moved, tiny_run)


def test_what_does_not_change_the_result_may_change(tiny_config, tiny_run):
    paces = ("checkpoint.every=100", "data.prefetch=1", "mesh.fsdp=2", "sharding.embed=None")
    memory = ("chunk_rows=2", "model.remat=full", "loss.implementation=ring", "loss.tile=8")
    other = ("model.kernel=xla", "tracking.tensorboard=True")
    config = load_config(tiny_config, (*paces, *memory, *other))
    run_folder.require_same_run(tiny_run, run_folder.describe(config, open_inputs(config)))


def test_a_mixture_that_moved_is_the_same_run(tiny_config, tiny_corpus, tmp_path):
    config = load_config(tiny_config)

    def described(path):
        parts = (SourceConfig(path=str(path), name="a"), SourceConfig(path=str(path), name="b"))
        tokenizer = str(path / "tokenizer")
        data = dataclasses.replace(config.data, path=None, mixture=parts, tokenizer=tokenizer)
        mixed = dataclasses.replace(config, data=data)
        return run_folder.describe(mixed, open_inputs(mixed))

    shutil.copytree(tiny_corpus, tmp_path / "moved")
    assert described(tmp_path / "moved") == described(tiny_corpus)


def test_a_batch_that_does_not_divide_among_the_devices_is_told_and_can_be_mended(
    tiny_config, tmp_path
):
    with pytest.raises(MarvelError, match=r"global_batch=12 .* the 8 data shards .* use 16"):
        train(load_config(tiny_config, ("data.global_batch=12",)), tmp_path / "run")
    # The folder has not become the failed run's.
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_one_device_and_eight_have_the_same_losses(tiny_config, tiny_run, tmp_path):
    alone = runs.marvel("train", tiny_config, "--workdir", tmp_path / "run", devices=1)
    assert alone.returncode == 0, alone.stderr
    rows = runs.rows(tmp_path / "run")
    assert len(rows) == STEPS
    for found, expected in zip(rows, runs.rows(tiny_run), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert found["temperature"] == pytest.approx(expected["temperature"], abs=1e-5)


def test_what_happened_besides_the_steps_is_written_down(tiny_run):
    (start,) = runs.events(tiny_run, "start")
    assert start["step"] == 0 and start["devices"].startswith("8 x ")
    compiled = runs.events(tiny_run, "compile")
    rows = runs.rows(tiny_run)
    # Each size of a batch is compiled once, where it is first met.
    assert {one["rows"] for one in compiled} == {row["rows"] for row in rows}
    for one in compiled:
        assert [row["rows"] for row in rows].index(one["rows"]) == one["step"]
        assert one["seconds"] > 0
    assert len(start["row_counts"]) <= 6
    assert [one["step"] for one in runs.events(tiny_run, "checkpoint")] == [3, 6, 8]


def test_hard_negatives_chunks_and_several_positives_train(tiny_config, tmp_path):
    settings = ("data.hard_negatives=2", "chunk_rows=2", "loss.symmetric=True", "steps=3")
    result = train(load_config(tiny_config, settings), tmp_path / "run")
    assert result.steps == 3 and len(runs.rows(tmp_path / "run")) == 3
    assert Path(tmp_path / "run/checkpoints/3").is_dir()
