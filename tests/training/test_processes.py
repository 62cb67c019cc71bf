"""Several real processes are one run: the same batches and losses, and they stop together."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from tests.training import runs

# Parameters and moments are split over devices of all processes.
SHARDED = ("--set", "mesh.data=1", "mesh.fsdp=8")
WAIT = 600.0  # a machine may be starved; a run that hangs must not stay


@contextmanager
def processes(
    count: int, *args: object, each: dict[int, dict[str, Any]] | None = None
) -> Iterator[list[subprocess.Popen]]:
    """`marvel ...` in so many processes with eight devices in all; none is left behind.

    `each` says what is different of a process: `more` arguments, `before` them, its `module`.
    """
    port = runs.free_port()
    with ExitStack() as started:
        found = []
        for number in range(count):
            own = {"more": (), "before": (), "module": "marvel_jax.cli"}
            own |= (each or {}).get(number, {})
            process = runs.start(
                *own["before"],
                *args,
                *("--coordinator", f"localhost:{port}"),
                *("--num-processes", count, "--process-id", number),
                *own["more"],
                devices=8 // count,
                module=own["module"],
            )
            started.callback(_end, process)
            found.append(process)
        yield found


def _end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        process.kill()
        process.communicate()


def ends(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate(timeout=WAIT)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def name(process: subprocess.Popen, number: int) -> str:
    return f"process {number} (host {os.uname().nodename}, pid {process.pid})"


def assert_same_losses(found: list[dict], expected: list[dict]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for field in ("loss", "temperature", "positive_similarity"):
            assert ours[field] == pytest.approx(theirs[field], abs=1e-5), ours["step"]
        assert ours["accuracy"] == theirs["accuracy"], ours["step"]


@pytest.mark.slow
def test_one_process_finishes_what_two_began_and_lost(tiny_config, tiny_run, tmp_path):
    command = ("train", tiny_config, "--workdir", tmp_path / "run")
    killing = {"module": "tests.training.self_signal", "before": ("SIGKILL", 4)}
    with processes(2, *command, *SHARDED, "--json", each={0: killing}) as started:
        assert_all_end_with(0, started)
    assert runs.steps_saved(tmp_path / "run") == [3]
    last = runs.marvel(*command, "--set", "mesh.fsdp=2", "mesh.tensor=2", devices=4)
    assert last.returncode == 0, last.stderr
    assert_same_losses(runs.rows(tmp_path / "run"), runs.rows(tiny_run))


@pytest.mark.slow
def test_four_processes_finish_what_two_began_and_lost(tiny_config, tiny_run, tiny_model, tmp_path):
    command = ("train", tiny_config, "--workdir", tmp_path / "run", "--json", *SHARDED)
    with processes(2, *command) as started:
        wait_for_step(tmp_path / "run", 4, *started)
        started[1].kill()
        assert_all_end_with(1, started)
    with processes(4, *command) as started:
        ended = [ends(one) for one in started]
    assert [one.returncode for one in ended] == [0] * 4, [one.stderr for one in ended]
    assert_same_losses(runs.rows(tmp_path / "run"), runs.rows(tiny_run))
    # The first process wrote a model of which it held a quarter.
    found = safetensors.numpy.load_file(tmp_path / "run/model/model.safetensors")
    for weight, value in safetensors.numpy.load_file(tiny_model / "model.safetensors").items():
        np.testing.assert_allclose(found[weight], value, atol=1e-5, err_msg=weight)
    # Each says its place; what is told once, the first tells.
    for number, one in enumerate(ended):
        assert f"process {number} of 4, coordinator localhost:" in one.stderr
    assert [one.stderr.count("loss ") > 0 for one in ended] == [True, False, False, False]
    assert ["trained 8 steps; model: " in one.stdout for one in ended] == [True, *[False] * 3]
    assert {json.loads(one.stdout.splitlines()[-1])["steps"] for one in ended} == {8}


def assert_all_end_with(victim: int, started: list[subprocess.Popen]) -> None:
    """The one that was killed is named by the other of two, soon, and nothing hangs."""
    dead, survivor = started[victim], started[1 - victim]
    assert ends(dead).returncode == -signal.SIGKILL
    began = time.monotonic()
    last = ends(survivor)
    assert time.monotonic() - began < 60
    told = f"marvel: {name(survivor, 1 - victim)} stops, because {name(dead, victim)}"
    assert last.stderr.splitlines()[-1].startswith(told)
    assert "Start all processes again with the same command" in last.stderr
    assert told.removeprefix("marvel: ") in json.loads(last.stdout.splitlines()[-1])["error"]
    assert last.returncode != 0


def wait_for_step(workdir, step: int, *started: subprocess.Popen) -> None:
    metrics = workdir / "metrics.jsonl"
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) <= step:
        assert all(one.poll() is None for one in started)
        time.sleep(0.02)


@pytest.mark.slow
def test_a_notice_to_one_process_saves_and_stops_all_at_one_step(tiny_config, tmp_path):
    workdir = tmp_path / "run"
    command = ("train", tiny_config, "--workdir", workdir, "--json", "--set", "steps=9999")
    with processes(2, *command) as started:
        wait_for_step(workdir, 0, *started)
        started[1].send_signal(signal.SIGTERM)
        ended = [ends(one) for one in started]
    assert [one.returncode for one in ended] == [143, 143], ended[0].stderr + ended[1].stderr
    steps = {json.loads(one.stdout.splitlines()[-1])["steps"] for one in ended}
    assert len(steps) == 1 and steps.pop() == runs.steps_saved(workdir)[-1]
    assert len(runs.rows(workdir)) == runs.steps_saved(workdir)[-1]


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_all_with_one_error(tiny_config, tmp_path):
    workdir = tmp_path / "run"
    burst = ("optimizer.learning_rate=1e16", "optimizer.warmup_fraction=0.0")
    command = ("train", tiny_config, "--workdir", workdir, "--set", "checkpoint.every=1")
    with processes(2, *command, *burst) as started:
        ended = [ends(one) for one in started]
        names = [name(one, number) for number, one in enumerate(started)]
    told = []
    for one, who in zip(ended, names, strict=True):
        assert one.returncode == 1
        message = one.stderr.splitlines()[-1]
        assert message.startswith(f"marvel: {who}: the ")
        told.append(message.removeprefix(f"marvel: {who}: "))
    assert told[0] == told[1]
    (folder,) = (workdir / "failed").iterdir()
    assert f" at step {folder.name.removeprefix('step-')}," in told[0]
    kept = runs.stored(folder / "state")
    assert kept and all(np.isfinite(value).all() for value in kept.values())


def test_a_host_with_other_versions_and_settings_is_named_by_all(tiny_config, tmp_path):
    command = ("train", tiny_config, "--workdir", tmp_path / "run", "--set", "steps=3")
    different = {"module": "tests.training.other_version", "more": ("--set", "seed=1")}
    with processes(2, *command, each={1: different}) as started:
        ended = [ends(one) for one in started]
    for one in ended:
        assert one.returncode == 1
        message = one.stderr.splitlines()[-1]
        assert "numpy is " in message and "0.0.1 on process 1 (host" in message
        assert "config.seed is 0 on process 0 (host" in message and "python is" not in message
    assert not (tmp_path / "run/recipe.json").exists()


def test_a_host_with_other_data_is_named_by_all(tiny_config, tiny_corpus, tmp_path):
    elsewhere = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, elsewhere)
    changed = sorted((elsewhere / "query").rglob("*train*.jsonl"))[0]
    changed.write_text("\n".join(changed.read_text().splitlines()[:-1]) + "\n")
    command = ("train", tiny_config, "--workdir", tmp_path / "run")
    other = {"more": ("--set", f"data.path={elsewhere}")}
    with processes(2, *command, each={1: other}) as started:
        ended = [ends(one) for one in started]
    for one in ended:
        assert one.returncode == 1
        message = one.stderr.splitlines()[-1]
        assert "the content of data.path is " in message and "config" not in message
    assert not (tmp_path / "run/recipe.json").exists()


def test_a_host_with_another_workdir_is_named_by_all(tiny_config, tmp_path):
    each = {number: {"more": ("--workdir", tmp_path / str(number))} for number in range(2)}
    with processes(2, "train", tiny_config, each=each) as started:
        ended = [ends(one) for one in started]
    for one in ended:
        assert one.returncode == 1
        message = one.stderr.splitlines()[-1]
        assert "--workdir is " in message
        assert "another folder than that of process 0 on process 1 (host" in message


def test_a_coordinator_that_is_not_there_is_an_error_in_time(tiny_config, tmp_path):
    address = f"localhost:{runs.free_port()}"
    place = ("--coordinator", address, "--num-processes", 4, "--process-id", 3)
    command = ("train", tiny_config, "--workdir", tmp_path / "run", "--json")
    found = runs.marvel(*command, *place, "--join-timeout", 1)
    assert found.returncode == 1
    assert f"to reach process 0 at {address}" in json.loads(found.stdout)["error"]
    assert found.stderr.splitlines()[-1].startswith("marvel: process 3 (host ")
