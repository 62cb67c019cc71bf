"""`launch/accelerator_check`: whatever a device does, what was measured is told, and in time."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from marvel_jax.bench import accelerator
from marvel_jax.bench.accelerator import Given
from marvel_jax.bench.accelerator_steps import STEPS, Step

ROOT = Path(__file__).parents[2]


def nothing(given):
    return iter(())


def steps(*names: str, seconds: float = 20.0, check: bool = True) -> list[Step]:
    """The machine, then fake steps of `tests/bench/fake_steps.py`."""
    return [Step(name, seconds, check, nothing) for name in ("machine", *names)]


@pytest.fixture
def check(monkeypatch, tmp_path):
    """Runs fake steps; returns the result and what was written."""
    monkeypatch.setattr(accelerator, "_CHILD", "tests.bench.fake_steps")
    monkeypatch.setattr(accelerator, "_GRACE", 0.5)

    def run(given_steps, *, minutes=1.0, quick=None):
        out = tmp_path / "found.json"
        given = Given(out, minutes, quick, ())
        result = accelerator.check(given, command="test", steps=given_steps)
        written = json.loads(out.read_text(), parse_constant=pytest.fail)
        assert written == json.loads(json.dumps(result))
        return {one["step"]: one for one in result["steps"]}, result

    return run


def test_one_step_that_fails_does_not_stop_the_others(check):
    found, result = check(steps("wrong", "crash", "error", "skipped", "unfit", "late", "told"))
    states = {name: one["state"] for name, one in found.items()}
    assert states == {
        "machine": "ok",
        "wrong": "failed",
        "crash": "error",
        "error": "error",
        "skipped": "skipped",
        "unfit": "unfit",
        "late": "late",
        "told": "ok",
    }
    assert found["crash"]["rows"] == [{"before": 1}] and "code 7" in found["crash"]["error"]
    assert len(found["wrong"]["rows"]) == 3
    assert result["passed"] is False
    said = "\n".join(accelerator.lines(result))
    for words in ("Fake 9000", "not installed: PIL", "skipped", "the reason", "NO", "NOT ALL"):
        assert words in said
    # What a step is told of the machine, and that the memory is left to torch.
    first, second = found["told"]["rows"]
    assert first == {"platform": "gpu", "kind": "Fake 9000", "quick": False}
    assert 0 < second["seconds"] <= 20


@pytest.mark.parametrize(
    ("name", "is_check", "passed"),
    [
        ("wrong", True, False),
        ("wrong", False, False),
        ("error", False, False),
        ("late", True, False),
        ("late", False, True),
        ("skipped", True, False),
        ("skipped", False, True),
        ("unfit", False, True),
    ],
)
def test_it_passes_if_no_check_is_left_open_and_nothing_broke(check, name, is_check, passed):
    assert check(steps(name, check=is_check))[1]["passed"] is passed


def test_a_step_that_hangs_is_ended_and_the_next_one_runs(check):
    found, result = check(steps("hang", "told", seconds=0.5))
    assert found["hang"]["state"] == "out of time" and found["told"]["state"] == "ok"
    assert not result["passed"] and result["seconds"] < 20
    (row,) = found["hang"]["rows"]
    with pytest.raises(ProcessLookupError):
        os.kill(row["pid"], 0)


def test_the_end_of_all_time_is_kept(check, monkeypatch):
    monkeypatch.setattr(accelerator, "_LEAST_SECONDS", 1.0)
    found, result = check(steps("hang", "told"), minutes=6 / 60)
    assert found["hang"]["state"] == "out of time"
    assert found["told"]["state"] == "no time left" and result["passed"] is False


def test_without_a_machine_nothing_else_is_tried(check, monkeypatch):
    monkeypatch.setenv("BLIND", "")
    found, result = check(steps("told"))
    assert set(found) == {"machine"} and found["machine"]["state"] == "error"
    assert result["passed"] is False and accelerator.lines(result)


def test_ours_is_compared_with_torch_of_the_same_run(check):
    found, result = check(steps("rate", "rate, torch", "told", check=False))
    assert result["ratios"] == {"rate": 2.5}
    assert "rate: 2.5 times torch, a device" in accelerator.lines(result)
    assert found["told"]["rows"][1]["jax_platforms"] == os.environ["JAX_PLATFORMS"]


def test_packages_of_another_folder_are_found(check, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/where/jax/is")
    path = check(steps("told"))[0]["told"]["rows"][1]["path"]
    assert path.index(str(ROOT)) < path.index("/where/jax/is")


def test_torch_gets_the_whole_device(check, monkeypatch):
    monkeypatch.delenv("JAX_PLATFORMS")
    monkeypatch.setattr(accelerator, "_TORCH", "ld")  # the end of "told"
    found, _ = check(steps("told"))
    assert found["told"]["rows"][1]["jax_platforms"] == "cpu"


def test_a_kill_leaves_what_was_measured_and_no_process(tmp_path):
    out = tmp_path / "found.json"
    code = f"""
from marvel_jax.bench import accelerator
from tests.bench.test_accelerator import steps
accelerator._CHILD = "tests.bench.fake_steps"
accelerator.STEPS = steps("rate", "hang")
accelerator.check.__kwdefaults__["steps"] = accelerator.STEPS
accelerator.main(["--out", {str(out)!r}])
"""
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        pid = None
        while pid is None and time.monotonic() < deadline:
            time.sleep(0.1)
            if out.exists():
                found = {one["step"]: one for one in json.loads(out.read_text())["steps"]}
                rows = found.get("hang", {}).get("rows")
                pid = rows[0]["pid"] if rows else None
        assert pid is not None
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
        process.wait()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    found = {one["step"]: one for one in json.loads(out.read_text())["steps"]}
    assert found["rate"]["rows"] == [{"pairs/s": 50.0, "devices": 2}, {"pairs/s": 4.0}]
    assert found["hang"]["rows"] == [{"pid": pid}]


@pytest.mark.parametrize("wrong", [["--minutes", "0"], ["--only", "kernel"]])
def test_wrong_arguments_are_2(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        accelerator.main(wrong)
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err


def test_the_steps_of_greatest_value_fit_into_ten_minutes():
    names = [step.name for step in STEPS]
    needed = names[: names.index("LoRA step 2B, torch") + 1]
    assert sum(step.seconds for step in STEPS if step.name in needed) < 595
    assert [step.name for step in STEPS if step.check] == names[:4]


def test_the_command_runs_from_anywhere_and_says_what_it_does(tmp_path):
    command = [ROOT / "launch" / "accelerator_check", "--help"]
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--minutes" in done.stdout and "LoRA step 2B" in done.stdout
    environment["PYTHON"] = "no-such-python"
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "no-such-python" in done.stderr
