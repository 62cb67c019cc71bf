"""Several real processes are one run: the same batches and losses, and they stop together."""

import json
import signal
import time

import numpy as np
import pytest
import safetensors.numpy

from tests.training import runs

STEPS = 8  # of the tiny run
# Parameters and moments are split over devices of both processes.
SHARDED = ("--set", "mesh.data=1", "mesh.fsdp=8")


def start_two(*args: object, kill_at: int | None = None) -> list:
    """Two processes of four devices each; the first may kill itself when it writes a step down."""
    port = runs.free_port()
    started = []
    for number in range(2):
        together = ("--coordinator", f"localhost:{port}", "--num-processes", 2)
        options = {"devices": 4}
        before: tuple[object, ...] = ()
        if kill_at is not None and number == 0:
            options["module"], before = "tests.training.self_signal", ("SIGKILL", kill_at)
        command = (*before, *args, *together, "--process-id", number)
        started.append(runs.start(*command, **options))
    return started


def assert_same_losses(found: list[dict], expected: list[dict]) -> None:
    assert [row["step"] for row in found] == [row["step"] for row in expected]
    for ours, theirs in zip(found, expected, strict=True):
        for name in ("loss", "temperature", "positive_similarity"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5), ours["step"]
        assert ours["accuracy"] == theirs["accuracy"], ours["step"]


@pytest.mark.slow
def test_two_processes_finish_what_one_began(tiny_config, tiny_run, tiny_model, tmp_path):
    command = ("train", tiny_config, "--workdir", tmp_path / "run")
    begun = runs.signalled("SIGINT", 2, *command)
    assert begun.returncode == 130, begun.stderr
    main, other = [runs.finish(one) for one in start_two(*command, "--json", *SHARDED)]
    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    assert_same_losses(runs.rows(tmp_path / "run"), runs.rows(tiny_run))
    # The first process wrote a model of which it held a half.
    found = safetensors.numpy.load_file(tmp_path / "run/model/model.safetensors")
    for name, value in safetensors.numpy.load_file(tiny_model / "model.safetensors").items():
        np.testing.assert_allclose(found[name], value, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_one_process_finishes_what_two_began_and_lost(tiny_config, tiny_run, tmp_path):
    command = ("train", tiny_config, "--workdir", tmp_path / "run")
    main, other = start_two(*command, *SHARDED, kill_at=4)
    assert runs.finish(main).returncode == -signal.SIGKILL
    other.kill()  # or it would wait for the first a while
    runs.finish(other)
    assert runs.steps_saved(tmp_path / "run") == [3]
    last = runs.marvel(*command, "--set", "mesh.fsdp=2", "mesh.tensor=2", devices=4)
    assert last.returncode == 0, last.stderr
    assert_same_losses(runs.rows(tmp_path / "run"), runs.rows(tiny_run))


@pytest.mark.slow
def test_a_notice_to_one_process_saves_and_stops_all_at_one_step(tiny_config, tmp_path):
    workdir = tmp_path / "run"
    started = start_two("train", tiny_config, "--workdir", workdir, "--json", "--set", "steps=9999")
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_bytes()):
        assert all(one.poll() is None for one in started)
        time.sleep(0.05)
    started[1].send_signal(signal.SIGTERM)
    ended = [runs.finish(one) for one in started]
    assert [one.returncode for one in ended] == [143, 143], ended[0].stderr + ended[1].stderr
    steps = {json.loads(one.stdout.splitlines()[-1])["steps"] for one in ended}
    assert len(steps) == 1 and steps.pop() == runs.steps_saved(workdir)[-1]
    assert len(runs.rows(workdir)) == runs.steps_saved(workdir)[-1]
