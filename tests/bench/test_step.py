"""What is timed is the same step, whoever takes it."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from marvel_jax import cli
from marvel_jax.bench import peers, step
from marvel_jax.bench.step import Contender, First, StepOptions
from marvel_jax.bench.stopwatch import Lap
from marvel_jax.data import pipeline
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.emoji import train_config
from marvel_jax.training.prepare import make_plan

ROOT = Path(__file__).parents[2]
HAS_TORCH = importlib.util.find_spec("torch") is not None


def on_one_device(*args: object) -> dict:
    """`marvel bench step ... --json` where there is one device, as the peers need it."""
    command = [sys.executable, "-m", "marvel_jax.cli", "bench", "step", *map(str, args), "--json"]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1], parse_constant=pytest.fail)


def test_all_contenders_take_the_same_step_of_a_real_corpus(tiny_config):
    """The command refuses to time them otherwise; here on pictures, packed and padded."""
    found = on_one_device("--config", tiny_config, "--items", "corpus", "--repeats", 2)
    names = {row["step"] for row in found["rows"]}
    torch = {step.TORCH, step.TORCH_CACHED} if HAS_TORCH else set()
    assert names == {step.ONE_FORWARD, step.GRADCACHE, step.PLAIN} | torch
    losses = [row["first_loss"] for row in found["rows"]]
    np.testing.assert_allclose(losses, losses[0], rtol=step.AGREEMENT)
    for row in found["rows"]:
        assert row["pairs/s"] > 0 and row["cpu_seconds"] > 0 and 0 < row["token_fill"] <= 1
    assert set(found["ratios"]) == {
        f"{step.ONE_FORWARD} / {name}" for name in names - {step.ONE_FORWARD}
    }


def test_gradcache_takes_less_memory(capsys, tiny_config):
    with pytest.raises(SystemExit) as stop:
        args = ["--config", str(tiny_config), "--chunks", "8", "--repeats", "1", "--json"]
        changes = ("data.global_batch=512", "loss.symmetric=True")
        cli.main(["bench", "step", *args, "--set", *changes])
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    whole, chunked = found["rows"]
    assert (whole["step"], chunked["step"]) == (step.ONE_FORWARD, step.GRADCACHE)
    assert chunked["temporary_mib"] < 0.5 * whole["temporary_mib"]
    assert chunked["first_loss"] == pytest.approx(whole["first_loss"], rel=1e-5)
    assert found["pairs"] == 512 and found["machine"]["devices"] == 8
    assert any("symmetric=False for all" in note for note in found["notes"])
    assert "one CPU device" in found["notes"][-1]  # why there are no peers


def contender(name: str, loss: float, norm: float | None = None) -> Contender:
    return Contender(name, lambda: Lap(1.0, 1.0), First(loss, norm), 1.0, 1.0, None)


def test_contenders_that_disagree_are_not_timed():
    ours = contender("ours", 2.0, 1.0)
    step._agree([ours, contender("a", 2.0001, None), contender("b", 2.0, 1.00005)])
    with pytest.raises(MarvelError, match=r"wrong .* first loss is 2\.01"):
        step._agree([ours, contender("wrong", 2.01)])
    with pytest.raises(MarvelError, match=r"wrong .* gradient_norm is 0\.5"):
        step._agree([ours, contender("wrong", 2.0, 0.5)])
    with pytest.raises(MarvelError, match="nan"):
        step._agree([ours, contender("wrong", float("nan"))])


def test_the_peers_get_the_items_that_the_rows_hold():
    options = StepOptions(config=train_config(""))
    config = step._comparable(options.config)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, task_weights=None))
    inputs = step.open_items(config, options)
    plan = make_plan(config, inputs, shards=1, cache=None)
    planned = plan.step(0)
    batch = pipeline.build_batch(inputs.source, inputs.processor, planned, range(1))
    merge = inputs.architecture.vision.spatial_merge_size
    flat = peers.flat_items(batch, merge_area=merge**2)
    members = planned.shards[0].members
    wanted = [inputs.source.queries[i] for i in planned.queries[members]]
    wanted += [inputs.source.candidates[i] for i in planned.candidates[members].ravel()]
    encoded = [inputs.processor(dataclasses.replace(one.item, id=one.id)) for one in wanted]
    for name in ("tokens", "positions", "pooled", "patches"):
        expected = np.concatenate([getattr(one, name) for one in encoded])
        np.testing.assert_array_equal(flat[name], expected, err_msg=name)
    grids = [one.patch_hw.max(axis=0) + 1 for one in encoded if len(one.patches)]
    np.testing.assert_array_equal(flat["grids"], grids)
    np.testing.assert_array_equal(flat["lengths"], [len(one.tokens) for one in encoded])
    np.testing.assert_array_equal(flat["image_counts"], [len(one.patches) > 0 for one in encoded])
    assert not flat["masked"][np.arange(len(flat["own"])), flat["own"]].any()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"form": "sigmoid"}, "softmax"),
        ({"in_batch_negatives": False}, "in_batch_negatives"),
    ],
)
def test_a_loss_that_the_peers_do_not_have_is_refused(change, why, tiny_config):
    config = load_config(tiny_config, ("data.hard_negatives=1",))
    config = dataclasses.replace(config, loss=dataclasses.replace(config.loss, **change))
    with pytest.raises(MarvelError, match=why):
        StepOptions(config=config)


@pytest.mark.parametrize("command", ["loss", "step", "pack", "attention", "encode"])
def test_help_of_a_benchmark_loads_nothing_heavy(command):
    code = f"""
import sys
from marvel_jax import cli
try:
    cli.main(["bench", {command!r}, "--help"])
except SystemExit as stop:
    assert not stop.code
print(*sorted({{"jax", "flax", "torch", "transformers", "grain"}} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--json" in done.stdout
    assert done.stdout.splitlines()[-1] == ""
