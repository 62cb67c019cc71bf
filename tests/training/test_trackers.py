"""What a run writes down is one row a step; what it shows is readable in a log, too."""

import json

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.training.trackers import MetricsFile, TrainProgress


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


def test_without_a_terminal_a_line_tells_the_state(capsys):
    with TrainProgress(total=40, done=10) as progress:
        progress.update(40, loss=1.23456, temperature=0.05, pairs_per_second=321.4)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "train 40/40  loss 1.235  temperature 0.0500  321 pairs/s  0 s left" in shown.err
