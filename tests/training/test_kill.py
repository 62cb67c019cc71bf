"""`kill -9` at any moment, in the middle of a save too, loses nothing and changes nothing."""

import random
import signal
import time
from pathlib import Path

import pytest

from tests.training import runs

KILLS = 10
SETTINGS = ("--set", "checkpoint.every=1", "steps=32", "data.global_batch=8")


@pytest.fixture(scope="module")
def uninterrupted(tiny_config, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "uninterrupted"
    whole = runs.marvel("train", tiny_config, "--workdir", workdir, *SETTINGS, devices=2)
    assert whole.returncode == 0, whole.stderr
    return workdir


def unfinished_saves(workdir: Path) -> list[Path]:
    return list((workdir / "checkpoints").glob("*orbax-checkpoint-tmp*"))


def kill_at_a_moment(process, workdir: Path, rng: random.Random) -> bool:
    """Kills the run when it has gone some steps further; returns whether it was saving."""
    metrics = workdir / "metrics.jsonl"
    begun = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
    further = begun + rng.randint(1, 2)
    while_saving = rng.random() < 0.6
    while process.poll() is None:
        # The file is cut back when the run resumes, and grows with each step.
        written = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
        if written >= further and (not while_saving or unfinished_saves(workdir)):
            time.sleep(rng.random() * 0.02)
            break
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    killed = runs.finish(process)
    assert killed.returncode == -signal.SIGKILL, f"it ended before it was killed: {killed.stderr}"
    return bool(unfinished_saves(workdir))


@pytest.mark.slow
def test_a_run_killed_at_ten_random_moments_is_the_run_that_was_not(
    tiny_config, uninterrupted, tmp_path
):
    workdir, rng = tmp_path / "run", random.Random(20)
    command = ("train", tiny_config, "--workdir", workdir, *SETTINGS)
    saving = sum(
        kill_at_a_moment(runs.start(*command, devices=2), workdir, rng) for _ in range(KILLS)
    )
    # Or the test has not seen what it is for.
    assert saving >= 3
    last = runs.marvel(*command, devices=2)
    assert last.returncode == 0, last.stderr
    assert runs.rows(workdir)[-1]["step"] == 31
    runs.assert_same_run(workdir, uninterrupted)
    # Nothing of the saves that were cut short is left.
    assert not unfinished_saves(workdir) and len(runs.steps_saved(workdir)) == 2
