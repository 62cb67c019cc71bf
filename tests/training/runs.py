"""What the tests of whole runs share: child processes, and what a run has written."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from marvel_jax.training.trackers import reproducible

ROOT = Path(__file__).parents[2]


def start(*args: object, devices: int = 8, module: str = "marvel_jax.cli") -> subprocess.Popen:
    """Starts `marvel ...` on so many CPU devices."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    out, err = process.communicate()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def marvel(*args: object, **options: Any) -> subprocess.CompletedProcess:
    """`marvel ...` in a child process, to its end."""
    return finish(start(*args, **options))


def signalled(name: str, step: int, *args: object, **options: Any) -> subprocess.CompletedProcess:
    """`marvel ...` that gets a signal when it writes down a step."""
    return marvel(name, step, *args, module="tests.training.self_signal", **options)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def rows(workdir: Path) -> list[dict]:
    """metrics.jsonl without what depends on the clock; it must be strict JSON."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [reproducible(json.loads(line, parse_constant=pytest.fail)) for line in lines]


def events(workdir: Path, name: str) -> list[dict]:
    lines = (workdir / "events.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["event"] == name]


def steps_saved(workdir: Path) -> list[int]:
    names = [path.name for path in (workdir / "checkpoints").iterdir()]
    return sorted(int(name) for name in names if name.isdigit())


def stored(folder: Path) -> dict[str, np.ndarray]:
    """Every array of an Orbax checkpoint, read by Orbax alone: {"['step']": ...}."""
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(folder).tree
    kind = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    arguments = ocp.args.PyTreeRestore(item=tree, restore_args=kind)
    found = ocp.Checkpointer(handler).restore(folder, args=arguments)
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(found)
    }


def newest(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of a run's newest checkpoint: parameters, moments, counters."""
    return stored(workdir / "checkpoints" / str(steps_saved(workdir)[-1]) / "default")


def assert_same_run(found: Path, expected: Path) -> None:
    """The same parameters, moments and metrics bit for bit, and every step written down once."""
    assert rows(found) == rows(expected)
    assert [row["step"] for row in rows(found)] == list(range(len(rows(expected))))
    ours, theirs = newest(found), newest(expected)
    assert ours.keys() == theirs.keys()
    assert any("mu" in name for name in ours)
    for name, value in theirs.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)
