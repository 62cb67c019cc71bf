"""Adapters, dropout and chunks come through `kill -9` too, and through a change of devices."""

import shutil
import signal
import time
from pathlib import Path

import pytest

from marvel_jax.recipes.config_file import load_config
from marvel_jax.training.loop import train
from tests.training import runs

# Eight shards of four pairs with their hard negatives, in two chunks.
ADAPTED = """
import dataclasses
from marvel_jax.models.lora import LoraConfig

config = dataclasses.replace(
    config,
    model=dataclasses.replace(config.model, adapters=LoraConfig(rank=4, alpha=8.0, dropout=0.3)),
    data=dataclasses.replace(config.data, global_batch=32, hard_negatives=1),
    chunk_rows=2,
    steps=12,
    checkpoint=dataclasses.replace(config.checkpoint, every=2),
)
"""
STEPS = 12


@pytest.fixture(scope="module")
def adapted(tiny_config, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "adapted.py"
    path.write_text(tiny_config.read_text() + ADAPTED)
    return path


@pytest.fixture(scope="module")
def uninterrupted(adapted, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    train(load_config(adapted), workdir)
    return workdir


@pytest.fixture(scope="module")
def killed(adapted, tmp_path_factory) -> Path:
    """Killed as soon as there is something to go on from."""
    workdir = tmp_path_factory.mktemp("runs") / "killed"
    process = runs.start("train", adapted, "--workdir", workdir)
    checkpoints, patience = workdir / "checkpoints", time.monotonic() + 600
    while process.poll() is None and time.monotonic() < patience:
        if checkpoints.is_dir() and runs.steps_saved(workdir):
            break
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    done = runs.finish(process)
    assert done.returncode == -signal.SIGKILL and runs.steps_saved(workdir), done.stderr
    return workdir


@pytest.mark.slow
def test_what_was_killed_ends_with_the_same_adapters_bit_for_bit(
    adapted, uninterrupted, killed, tmp_path
):
    workdir = tmp_path / "run"
    shutil.copytree(killed, workdir)
    train(load_config(adapted), workdir)
    runs.assert_same_run(workdir, uninterrupted)
    names = runs.newest(workdir)
    assert any("adapters" in name and "mu" in name for name in names)
    assert not any("token_embedding" in name for name in names)  # the frozen base is not saved


@pytest.mark.slow
def test_other_devices_go_on_with_the_same_losses(adapted, uninterrupted, killed, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(killed, workdir)
    alone = ("--set", "mesh.data=1", "chunk_rows=16")
    last = runs.marvel("train", adapted, "--workdir", workdir, *alone, devices=1)
    assert last.returncode == 0, last.stderr
    rows, expected = runs.rows(workdir), runs.rows(uninterrupted)
    assert len(rows) == len(expected) == STEPS
    for found, wanted in zip(rows, expected, strict=True):
        for name in ("loss", "temperature", "positive_similarity"):
            assert abs(found[name] - wanted[name]) <= 1e-5, (found["step"], name)
