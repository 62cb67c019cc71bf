"""A run is whole whatever happens to it: stopped, killed, finished, moved to other devices."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.commands import load_config
from marvel_jax.training import loop
from marvel_jax.training.checkpoints import Checkpoints
from marvel_jax.training.loop import train

ROOT = Path(__file__).parents[2]
STEPS = 8  # of the tiny run; it saves after 3, 6 and 8


def metrics(workdir: Path) -> list[dict]:
    """The rows without what depends on the clock."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def weights(workdir: Path) -> dict:
    checkpoints = Checkpoints(workdir / "checkpoints")
    step, params = checkpoints.restore_params()
    checkpoints.close()
    assert step == STEPS
    return params


def assert_same_run(found: Path, expected: Path) -> None:
    """The same weights bit for bit, and every step written down once."""
    assert [row["step"] for row in metrics(found)] == list(range(STEPS))
    assert metrics(found) == metrics(expected)
    jax.tree.map(np.testing.assert_array_equal, weights(found), weights(expected))


def marvel(*args: str | Path, devices: int = 8) -> subprocess.CompletedProcess:
    """A child process: `marvel ...`, or the same behind `self_signal`'s arguments."""
    module = "tests.training.self_signal" if str(args[0]).startswith("SIG") else "marvel_jax.cli"
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_run_leaves_what_others_need(tiny_run):
    left = {path.name for path in tiny_run.iterdir()}
    assert {"recipe.json", "metrics.jsonl", "checkpoints", "blueprint"} <= left
    rows = metrics(tiny_run)
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert {"loss", "accuracy", "temperature", "gradient_norm", "token_fill"} <= set(rows[0])
    assert rows[-1]["loss"] < rows[0]["loss"] / 2
    recipe = json.loads((tiny_run / "recipe.json").read_text())
    assert recipe["config"]["optimizer"]["learning_rate"] == 1e-3
    # The newest two, so that a damaged one has a whole one before it.
    assert {path.name for path in (tiny_run / "checkpoints").iterdir()} == {"6", "8"}


def test_ctrl_c_leaves_a_run_that_goes_on_to_the_same_weights(tiny_config, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    stopped = marvel("SIGINT", "3", "train", tiny_config, "--workdir", workdir, "--json")
    assert stopped.returncode == 130, stopped.stderr
    facts = json.loads(stopped.stdout.splitlines()[-1])
    assert facts["interrupted"] is True and facts["steps"] == 4
    assert "Traceback" not in stopped.stderr
    assert len(metrics(workdir)) == 4
    result = train(load_config(tiny_config), workdir)
    assert (result.steps, result.interrupted) == (STEPS, False)
    assert_same_run(workdir, tiny_run)


def test_a_second_ctrl_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with loop._stop_on_ctrl_c() as stop:
        assert not stop
        os.kill(os.getpid(), signal.SIGINT)
        assert stop
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert signal.getsignal(signal.SIGINT) == before


def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(
    tiny_config, tiny_run, tmp_path
):
    workdir = tmp_path / "run"
    # Between two checkpoints, and while one is being saved.
    for step in ("4", "6"):
        killed = marvel("SIGKILL", step, "train", tiny_config, "--workdir", workdir)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        # As if the power had failed in the middle of a line.
        with (workdir / "metrics.jsonl").open("a") as stream:
            stream.write('{"accuracy": 0.5, "gradie')
    train(load_config(tiny_config), workdir)
    assert_same_run(workdir, tiny_run)


def test_a_finished_run_is_left_alone(tiny_config, tiny_run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(tiny_run, workdir)
    before = {path: path.stat().st_mtime_ns for path in workdir.glob("checkpoints/**/*")}
    result = train(load_config(tiny_config), workdir)
    assert (result.steps, result.interrupted) == (STEPS, False)
    assert_same_run(workdir, tiny_run)
    jax.tree.map(
        np.testing.assert_array_equal, jax.device_get(result.state.params), weights(tiny_run)
    )
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
    inputs = loop.open_inputs(moved)
    loop.require_same_run(tiny_run, loop.describe(moved, inputs))  # moved, but the same
    pool = tmp_path / "corpus/cand_pool/global/mbeir_union_train_cand_pool.jsonl"
    pool.write_text(pool.read_text().replace("red", "dog"))
    with pytest.raises(MarvelError, match=r"other settings .*data was '.*' and is now '"):
        train(moved, tiny_run)


def test_what_does_not_change_the_result_may_change(tiny_config, tiny_run):
    paces = ("checkpoint_every=100", "data.prefetch=1", "mesh.fsdp=2", "sharding.embed=None")
    config = load_config(tiny_config, paces)
    loop.require_same_run(tiny_run, loop.describe(config, loop.open_inputs(config)))


def test_a_batch_that_does_not_divide_among_the_devices_is_told_and_can_be_mended(
    tiny_config, tmp_path
):
    with pytest.raises(MarvelError, match=r"global_batch=12 .* the 8 data shards .* use 16"):
        train(load_config(tiny_config, ("data.global_batch=12",)), tmp_path / "run")
    # The folder has not become the failed run's.
    assert not (tmp_path / "run" / "recipe.json").exists()


def test_one_device_and_eight_have_the_same_losses(tiny_config, tiny_run, tmp_path):
    alone = marvel("train", tiny_config, "--workdir", tmp_path / "run", devices=1)
    assert alone.returncode == 0, alone.stderr
    rows = metrics(tmp_path / "run")
    assert len(rows) == STEPS
    for found, expected in zip(rows, metrics(tiny_run), strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        assert found["temperature"] == pytest.approx(expected["temperature"], abs=1e-5)


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_what_is_no_number_stops_the_run_before_it_is_saved(
    tiny_config, tmp_path, monkeypatch, name
):
    def make_step(*args, **options):
        def step(state, batch):
            metrics = {"loss": 2.0, "gradient_norm": 1.0, "temperature": 0.05}
            metrics["learning_rate"] = 0.123
            if int(state.step) == 2:
                metrics[name] = math.nan
            return state._replace(step=state.step + 1), metrics

        return step

    monkeypatch.setattr(loop, "make_train_step", make_step)
    config = load_config(tiny_config, ("checkpoint_every=1",))
    message = rf"{name} is nan at step 2, at a rate of 0\.123: lower .*\(now 0\.001\)"
    with pytest.raises(MarvelError, match=message):
        train(config, tmp_path / "run")
    # What was written down before is whole, and strict JSON.
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1]
    assert Checkpoints(tmp_path / "run/checkpoints").latest() == 2
