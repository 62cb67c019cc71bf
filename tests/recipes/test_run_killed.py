"""`kill -9` in the middle of two stages, and the run ends with the weights of one that was not."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATIENCE = 300  # seconds until a child is given up

RECIPE = """\
import dataclasses
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Mine, Train
from marvel_jax.training.config import ModelConfig

first = dataclasses.replace(load_config(__import__("pathlib").Path({config!r})), steps=6)
first = dataclasses.replace(
    first, checkpoint=dataclasses.replace(first.checkpoint, every=2)
)
second = dataclasses.replace(
    first,
    model=ModelConfig(source="first.model"),
    data=dataclasses.replace(first.data, mined="mine.negatives", hard_negatives=1),
    steps=5,
)
recipe = Recipe((
    Train("first", first),
    Mine("mine", "first.model", {corpus!r}, settings=("threshold=None", "k=2")),
    Train("second", second),
))
"""


def start(recipe: Path, workdir: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "marvel_jax.cli", "run", recipe, "--workdir", workdir]
    return subprocess.Popen(
        [*map(str, command), "--json"],
        cwd=ROOT,
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> tuple[str, str]:
    try:
        return process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise


def kill_in(process: subprocess.Popen, stage: Path, *, after: int) -> None:
    """Kills the run when the stage has written down so many steps."""
    metrics = stage / "metrics.jsonl"
    limit = time.monotonic() + PATIENCE
    while not metrics.exists() or len(metrics.read_bytes().splitlines()) < after:
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            pytest.fail(f"it ended before it could be killed: {finish(process)[1]}")
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert not (stage / "done.json").exists()


@pytest.mark.slow
def test_a_run_killed_in_two_stages_is_the_run_that_was_not(tiny_config, tiny_corpus, tmp_path):
    recipe = tmp_path / "recipe.py"
    recipe.write_text(
        textwrap.dedent(RECIPE).format(config=str(tiny_config), corpus=str(tiny_corpus))
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kill_in(start(recipe, killed), killed / "first", after=3)
    kill_in(start(recipe, killed), killed / "second", after=2)
    for workdir in (killed, whole):
        process = start(recipe, workdir)
        out, err = finish(process)
        assert process.returncode == 0, err
        if workdir == killed:
            facts = json.loads(out.splitlines()[-1])["stages"]
            assert {name: one["ran"] for name, one in facts.items()} == {
                "first": False,
                "mine": False,
                "second": True,
            }
    for name in ("first/model/model.safetensors", "mine/negatives.jsonl"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    ours = (killed / "second/model/model.safetensors").read_bytes()
    assert ours == (whole / "second/model/model.safetensors").read_bytes()
    assert ours != (whole / "first/model/model.safetensors").read_bytes()
    steps = [json.loads(line) for line in (killed / "second/metrics.jsonl").open()]
    assert [one["step"] for one in steps] == list(range(5))
