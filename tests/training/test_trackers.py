"""What a run writes down is one row a step, in every place that is asked for."""

import json
import sys
import types

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.training import trackers
from marvel_jax.training.config import TrackingConfig
from marvel_jax.training.trackers import MetricsFile, open_trackers


def steps(path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def write(path, numbers, *, resume_at=0):
    metrics = MetricsFile(path, resume_at=resume_at)
    for number in numbers:
        metrics.write({"step": number, "loss": 1.5})
    metrics.close()


def test_rows_are_on_disk_as_soon_as_they_are_written(tmp_path):
    metrics = MetricsFile(tmp_path / "runs" / "metrics.jsonl", resume_at=0)
    metrics.write({"step": 0, "loss": 2.5})
    assert json.loads((tmp_path / "runs" / "metrics.jsonl").read_text()) == {"step": 0, "loss": 2.5}
    metrics.close()


@pytest.mark.parametrize("resume_at", [0, 3, 5])
def test_a_resumed_file_is_cut_back_to_the_checkpoint(tmp_path, resume_at):
    path = tmp_path / "metrics.jsonl"
    write(path, range(5))
    write(path, range(resume_at, 7), resume_at=resume_at)
    assert steps(path) == list(range(7))


@pytest.mark.parametrize("half", ['{"step": 5, "lo', "{", '{"step": 5, "loss": 1.5}'])
def test_half_a_last_line_is_dropped(tmp_path, half):
    path = tmp_path / "metrics.jsonl"
    write(path, range(5))
    path.write_text(path.read_text() + half)
    write(path, [5], resume_at=5)
    assert steps(path) == list(range(6))


def test_a_broken_line_in_the_middle_is_told(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step":\n{"step": 2}\n')
    with pytest.raises(MarvelError, match=r"metrics\.jsonl, line 2: not valid JSON"):
        MetricsFile(path, resume_at=3)


ROW = {"step": 3, "loss": 2.5, "rows": 16, "mfu": None, "wait_seconds": 0.25}


def open_all(config, workdir, *, resume_at=0):
    return open_trackers(config, workdir, recipe={"seed": 1}, resume_at=resume_at)


def test_nothing_else_is_opened_unless_asked_for(tmp_path):
    assert open_all(TrackingConfig(), tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "module", "extra"),
    [
        (TrackingConfig(tensorboard=True), "tensorboardX", r"marvel-jax\[tensorboard\]"),
        (TrackingConfig(wandb_project="mine"), "wandb", r"marvel-jax\[wandb\]"),
    ],
)
def test_a_missing_library_is_one_error_that_names_the_extra(
    tmp_path, monkeypatch, config, module, extra
):
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(MarvelError, match=rf"tracking\..*{module}.*pip install '{extra}'"):
        open_all(config, tmp_path)


def test_tensorboard_files_hold_the_numbers(tmp_path):
    pytest.importorskip("tensorboardX")
    (tracker,) = open_all(TrackingConfig(tensorboard=True), tmp_path)
    tracker.write(ROW)
    tracker.close()
    # Read back by the format itself: records of length, checksum, content, checksum.
    from tensorboardX.proto.event_pb2 import Event

    (file,) = (tmp_path / "tensorboard").glob("events.*")
    data, found = file.read_bytes(), {}
    while data:
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        found |= {(event.step, one.tag): one.simple_value for one in event.summary.value}
        data = data[16 + length :]
    assert found == {(3, "loss"): 2.5, (3, "rows"): 16.0, (3, "wait_seconds"): 0.25}


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the library: (module, what init was given, what was logged)."""
    calls = types.SimpleNamespace(inits=[], logged=[], finished=0)

    class Run:
        def define_metric(self, name, step_metric):
            assert (name, step_metric) == ("*", "step")

        def log(self, values):
            calls.logged.append(values)

        def finish(self):
            calls.finished += 1

    def init(**options):
        calls.inits.append(options)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    return calls


def test_a_resumed_run_is_the_same_run_of_the_wandb_project(tmp_path, wandb):
    config = TrackingConfig(wandb_project="mine")
    for resume_at in (0, 2):
        (tracker,) = open_all(config, tmp_path / "run", resume_at=resume_at)
        tracker.write(ROW)
        tracker.close()
    first, second = wandb.inits
    assert first["project"] == "mine" and first["config"] == {"seed": 1}
    assert first["id"] == second["id"] and second["resume"] == "allow"
    assert wandb.logged[0] == {"step": 3, "loss": 2.5, "rows": 16.0, "wait_seconds": 0.25}
    assert wandb.finished == 2


def test_wandb_itself_takes_it_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    (tracker,) = open_all(TrackingConfig(wandb_project="mine"), tmp_path)
    tracker.write(ROW)
    tracker.close()
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_what_depends_on_the_clock_is_left_out_by_name():
    assert trackers.reproducible(ROW) == {"step": 3, "loss": 2.5, "rows": 16}
