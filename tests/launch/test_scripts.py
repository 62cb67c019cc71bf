"""The launch scripts parse, pass their linters, and do what they say, with stand-ins for others."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.runs import ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(
    path
    for path in LAUNCH.iterdir()
    if path.is_file() and path.read_bytes().startswith(b"#!/usr/bin/env bash")
)
CONTAINERS = sorted(LAUNCH.glob("Containerfile.*[a-z]"))


def tool(name: str) -> str:
    """A linter, from the environment that the tests run in or from PATH."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed (pip install '.[test]')")
    return found


def run(*command: object, **options) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, timeout=60, **options
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_parses_and_passes_shellcheck(script):
    assert run("bash", "-n", script).returncode == 0
    found = run(tool("shellcheck"), "-x", script.relative_to(ROOT), cwd=ROOT)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize(
    "container",
    [path for path in CONTAINERS if not path.name.endswith("ignore")],
    ids=lambda path: path.name,
)
def test_a_container_file_passes_its_linter_and_names_what_there_is(container):
    lines = container.read_text().splitlines()
    for line in lines:
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), line
                # What the builder is not sent cannot be copied.
                ignored = container.with_name(container.name + ".dockerignore").read_text()
                assert f"!{source}\n" in ignored, source
    assert "USER 1000" in lines and 'ENTRYPOINT ["marvel"]' in lines
    assert any("--constraint constraints.txt" in line for line in lines)
    found = run(tool("hadolint"), container)
    assert found.returncode == 0, found.stdout


@pytest.fixture
def stand_ins(tmp_path, monkeypatch) -> Path:
    """A folder at the head of PATH, and a home, for programs that are not here."""
    for name in ("bin", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VENV", raising=False)
    return tmp_path


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def test_slurm_starts_one_marvel_a_host(stand_ins):
    found = run("bash", LAUNCH / "slurm.sbatch", "--dry-run", "c.py", "--workdir", "/a b", cwd=ROOT)
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("srun --label --kill-on-bad-exit=0")
    assert found.stdout.strip().endswith(r"bin/marvel train c.py --workdir /a\ b")
    options = dict(
        line.removeprefix("#SBATCH --").partition("=")[::2]
        for line in (LAUNCH / "slurm.sbatch").read_text().splitlines()
        if line.startswith("#SBATCH ")
    )
    assert options["ntasks-per-node"] == "1" and options["signal"].startswith("TERM@")
    assert "requeue" in options and options["open-mode"] == "append"


@pytest.mark.parametrize(("code", "queued"), [(0, False), (1, False), (143, True)])
def test_slurm_queues_again_what_was_told_to_stop(stand_ins, monkeypatch, code, queued):
    root = stand_ins / "checkout"
    shutil.copytree(LAUNCH, root / "launch")
    write_program(root / ".venv/bin/marvel", "exit 0")
    write_program(stand_ins / "bin/srun", f'echo "$@" cores=$SRUN_CPUS_PER_TASK; exit {code}')
    write_program(stand_ins / "bin/scontrol", f'echo "$@" >{stand_ins}/scontrol')
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(root))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    # As Slurm does, from a copy elsewhere.
    shutil.copy(LAUNCH / "slurm.sbatch", stand_ins / "script")
    found = run("bash", stand_ins / "script", "c.py", "--workdir", "/runs/x")
    assert found.returncode == code
    assert f"{root}/.venv/bin/marvel train c.py --workdir /runs/x cores=64" in found.stdout
    told = stand_ins / "scontrol"
    assert told.exists() == queued
    assert not queued or told.read_text() == "requeue 77\n"


def test_slurm_says_what_is_missing(stand_ins, monkeypatch):
    script = LAUNCH / "slurm.sbatch"
    assert run("bash", script, cwd=ROOT).returncode == 2
    found = run("bash", script, "c.py", cwd=stand_ins)
    assert found.returncode == 2 and "is no checkout of marvel-jax" in found.stderr
    monkeypatch.setenv("VENV", str(stand_ins / "none"))
    found = run("bash", script, "c.py", cwd=ROOT)
    assert found.returncode == 2 and "./launch/setup cuda13" in found.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("create", "pod", "us-east5-a", "v5litepod-64", "v2-alpha-tpuv5-lite", "--spot"),
            "create pod --zone=us-east5-a --accelerator-type=v5litepod-64 --version=.* --spot",
        ),
        (("setup", "pod", "z"), "scp .* pod:marvel.tar.gz --zone=z --worker=all"),
        (("train", "pod", "z", "c.py"), "ssh pod --zone=z --worker=all --command=.*marvel"),
        (("logs", "pod", "z", "3"), "ssh pod --zone=z --worker=3 --command=tail"),
        (("stop", "pod", "z"), "ssh pod --zone=z --worker=all --command=kill"),
        (("delete", "pod", "z"), "delete pod --zone=z"),
    ],
)
def test_tpu_vm_shows_the_gcloud_commands(arguments, expected):
    found = run(LAUNCH / "tpu_vm", "--dry-run", *arguments)
    assert found.returncode == 0, found.stderr
    assert re.search(f"gcloud compute tpus tpu-vm {expected}", found.stdout), found.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("trian", "pod", "z"), "there is no command 'trian'"),
        (("train", "pod"), "'train' needs NAME and ZONE"),
        (("train", "pod", "z"), "'train' needs the arguments of marvel train"),
        (("create", "pod", "z"), "'create' needs TYPE and VERSION"),
    ],
)
def test_tpu_vm_says_what_is_missing(arguments, message):
    found = run(LAUNCH / "tpu_vm", "--dry-run", *arguments)
    assert found.returncode == 2 and message in found.stderr


def test_tpu_vm_starts_marvel_behind_the_connection_and_stops_it(stand_ins):
    home = stand_ins / "home"
    shutil.copytree(LAUNCH, home / "marvel-jax/launch")
    marvel = home / "marvel-jax/.venv/bin/marvel"
    write_program(
        marvel,
        "trap 'echo saved; exit 143' TERM\necho \"$@\"\nfor _ in $(seq 600); do sleep 0.05; done",
    )
    # A host that is this one.
    write_program(
        stand_ins / "bin/gcloud",
        'for one in "$@"; do case "$one" in --command=*) '
        'cd ~ && bash -c "${one#--command=}" ;; esac; done',
    )
    assert run(LAUNCH / "tpu_vm", "train", "pod", "z", "c.py", "--set", "a=b c").returncode == 0
    pid = int((home / "marvel.pid").read_text())
    log = home / "marvel.log"
    try:
        wait_for(log, "train c.py --set a=b c")
        assert run(LAUNCH / "tpu_vm", "stop", "pod", "z").returncode == 0
        wait_for(log, "saved")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_for(log: Path, text: str) -> None:
    until = time.monotonic() + 30
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < until, log.read_text() if log.exists() else "no log"
        time.sleep(0.05)
