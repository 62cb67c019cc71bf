"""What goes wrong in the middle of a run is told once, and leaves whole checkpoints behind."""

import json
import re

import jax
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.config_file import load_config
from marvel_jax.training.loop import train
from marvel_jax.training.prepare import make_plan
from tests.training import runs

# So large a step that the model overflows a step or two later.
BURST = ("optimizer.learning_rate=1e16", "optimizer.warmup_fraction=0.0")


@pytest.fixture(scope="module")
def failed(tiny_config, tmp_path_factory):
    """(folder, message) of a run whose loss or gradient stopped being a number."""
    workdir = tmp_path_factory.mktemp("runs") / "failed"
    with pytest.raises(MarvelError) as error:
        train(load_config(tiny_config, (*BURST, "checkpoint.every=1")), workdir)
    return workdir, str(error.value)


def failed_step(message: str) -> int:
    found = re.search(r"the (loss|gradient norm) is (nan|inf) at step (\d+), at a rate of", message)
    assert found, message
    return int(found[3])


def test_the_checkpoints_stay_clean_and_the_state_before_the_step_is_kept(failed):
    workdir, message = failed
    step = failed_step(message)
    assert step > 0 and runs.steps_saved(workdir)[-1] == step
    before = runs.newest(workdir)
    assert all(np.isfinite(value).all() for value in before.values())
    kept = runs.stored(workdir / f"failed/step-{step}/state")
    assert kept.keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_array_equal(kept[name], value, err_msg=name)
    # Nothing that is no number was written down.
    assert [row["step"] for row in runs.rows(workdir)] == list(range(step))


def test_the_items_of_the_batch_are_named(failed, tiny_config):
    workdir, message = failed
    step = failed_step(message)
    report = json.loads(
        (workdir / f"failed/step-{step}/batch.json").read_text(), parse_constant=pytest.fail
    )
    assert report["metrics"]["step"] == step and report["metrics"]["learning_rate"] > 1e10
    config = load_config(tiny_config)
    from marvel_jax.training.inputs import open_inputs

    plan = make_plan(config, open_inputs(config), shards=8, cache=None)
    assert report["batch"] == plan.describe(step)
    first = report["batch"]["pairs"][0]["query"]
    assert f"the 16 queries {first}, " in message and f"failed/step-{step}" in message


def test_a_failure_seen_a_step_late_finds_the_same_state(failed, tiny_config, tmp_path):
    workdir, message = failed
    with pytest.raises(MarvelError) as error:
        train(load_config(tiny_config, BURST), tmp_path / "run")
    step = failed_step(str(error.value))
    assert step == failed_step(message)
    ours = runs.stored(tmp_path / f"run/failed/step-{step}/state")
    for name, value in runs.stored(workdir / f"failed/step-{step}/state").items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def test_the_next_run_in_the_folder_tells_what_is_there(failed, tiny_config, capsys):
    workdir, message = failed
    with pytest.raises(MarvelError, match="at step"):
        train(load_config(tiny_config, (*BURST, "checkpoint.every=1")), workdir)
    told = " ".join(capsys.readouterr().err.split())
    assert f"failed/step-{failed_step(message)} is of a step that was not finite" in told
    assert "lower optimizer.learning_rate" in told


def test_a_full_disk_is_one_error_and_the_run_goes_on_later(tiny_config, tiny_run, tmp_path):
    command = ("train", tiny_config, "--workdir", tmp_path / "run")
    # From step 4 on no file can have more than 16 KiB; the first checkpoint is there already.
    full = runs.signalled("16384", 4, *command)
    assert full.returncode == 1
    told = [line for line in full.stderr.splitlines() if line.startswith("marvel: ")]
    assert len(told) == 1 and "Traceback" not in full.stderr, full.stderr
    assert re.search(
        r"marvel: the checkpoint of step 6 could not be written to .*/checkpoints, and that of "
        r"step 3 is whole: File too large\. Free some space",
        told[0],
    )
    assert runs.steps_saved(tmp_path / "run") == [3]
    again = runs.marvel(*command)
    assert again.returncode == 0, again.stderr
    runs.assert_same_run(tmp_path / "run", tiny_run)


def test_a_disk_too_full_for_a_line_of_metrics_is_told(tiny_config, tiny_run, tmp_path):
    command = ("train", tiny_config, "--workdir", tmp_path / "run")
    size = (tiny_run / "metrics.jsonl").stat().st_size
    full = runs.signalled(str(int(size * 0.7)), 4, *command)
    assert full.returncode == 1 and "Traceback" not in full.stderr
    assert re.search(r"marvel: .*metrics\.jsonl cannot be written to: ", full.stderr)
    again = runs.marvel(*command)
    assert again.returncode == 0, again.stderr
    runs.assert_same_run(tmp_path / "run", tiny_run)


def test_jax_sees_what_the_tests_assume():
    assert len(jax.devices()) == 8
