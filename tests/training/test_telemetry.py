"""The figures of a step are those of its work and its time, and are looked at a step late."""

import json

import jax
import numpy as np
import pytest

from marvel_jax.data.batch import Rows
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from marvel_jax.recipes.config_file import load_config
from marvel_jax.training import telemetry
from marvel_jax.training.flops import Work, count_work, step_flops
from marvel_jax.training.inputs import open_inputs
from marvel_jax.training.loop import train
from marvel_jax.training.reporting import Reporter
from marvel_jax.training.telemetry import Dispatched, Meter
from marvel_jax.training.trackers import CLOCK_FIELDS
from tests import tiny


def meter(tiny_config, devices: int = 8, **options) -> Meter:
    config = load_config(tiny_config)
    mesh = make_mesh(MeshConfig(data=devices), devices=jax.devices()[:devices])
    return Meter(config, tiny.architecture(), mesh, **options)


class TheirBatch:
    """Random segments in so many rows."""

    def __init__(self, rows: int) -> None:
        rng = np.random.default_rng(rows)
        segments = np.sort(rng.integers(0, 4, (rows, 64)), axis=1)
        patches = np.sort(rng.integers(0, 3, (rows, 64)), axis=1)
        empty = dict.fromkeys(Rows._fields)
        shaped = {"tokens": segments, "segments": segments, "patch_segments": patches}
        self.rows = Rows(**(empty | shaped))


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_work_is_counted_over_the_global_batch_on_any_mesh(tiny_config, devices):
    batch = TheirBatch(16)
    counted, rows = meter(tiny_config, devices).count(batch)
    assert rows == 16
    expected = count_work(batch.rows.segments, batch.rows.patch_segments)
    assert Work(*map(int, counted)) == expected and expected.tokens < expected.token_pairs


def test_time_is_told_apart(tiny_config, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(telemetry.time, "perf_counter", lambda: now[0])
    measured = meter(tiny_config, peak=0.5)

    def batches():
        now[0] += 3
        yield "batch"

    assert list(measured.timed(batches())) == ["batch"]
    now[0] += 1  # the step
    with measured.saving():
        now[0] += 4
    work = jax.numpy.array([1e9, 2e9, 0, 0], "float32")
    row = measured.finish(Dispatched(7, {"loss": jax.numpy.float32(2), "finite": True}, work, 16))
    assert (row["step"], row["loss"], row["rows"]) == (7, 2.0, 16) and "finite" not in row
    times = [row[f"{name}seconds"] for name in ("", "wait_", "step_", "checkpoint_")]
    assert times == [8.0, 3.0, 1.0, 4.0]
    assert row["pairs_per_second"] == 16 / 8 and row["tokens_per_second"] == 1e9 / 8
    work_done = Work(10**9, 2 * 10**9, 0, 0)
    flops = step_flops(tiny.architecture(), work_done, queries=16, candidates=16)
    assert (row["tokens"], row["flops"]) == (10**9, flops)
    assert row["tflops_per_second"] == pytest.approx(flops / 8 / 1e12, abs=1e-6)
    # Eight devices of half a TFLOP/s each.
    assert row["mfu"] == pytest.approx(flops / 8 / 4e12, abs=1e-4)
    now[0] += 2
    second = measured.finish(Dispatched(8, {"loss": jax.numpy.float32(2)}, work, 16))
    assert (second["seconds"], second["wait_seconds"]) == (2.0, 0.0)


def test_an_unknown_device_has_no_mfu(tiny_config):
    assert meter(tiny_config).peak is None


def test_every_row_has_every_figure(tiny_run):
    rows = [json.loads(line) for line in (tiny_run / "metrics.jsonl").read_text().splitlines()]
    names = {"step", "loss", "accuracy", "temperature", "positive_similarity", "gradient_norm"}
    names |= {"update_norm", "learning_rate", "rows", "token_fill", "patch_fill"} | CLOCK_FIELDS
    names |= {"tokens", "flops"}
    for row in rows:
        assert set(row) == names
        assert 0 < row["token_fill"] <= 1 and row["memory_bytes"] > 50 << 20
        assert row["mfu"] is None and row["tflops_per_second"] > 0
        parts = row["step_seconds"] + row["wait_seconds"] + row["checkpoint_seconds"]
        assert parts == pytest.approx(row["seconds"], abs=1e-3)
        tokens = row["token_fill"] * row["rows"] * 64
        assert row["tokens"] == pytest.approx(tokens, rel=1e-3)
        spent = row["tokens_per_second"] * row["seconds"]
        assert spent == pytest.approx(tokens, rel=2e-2, abs=1)


def test_the_devices_have_the_next_step_before_the_last_one_is_looked_at(
    tiny_config, tmp_path, monkeypatch
):
    seen = []
    finish, dispatching = Meter.finish, Reporter.dispatching

    def recorded_finish(self, dispatched):
        seen.append(("look", dispatched.step))
        return finish(self, dispatched)

    def recorded_dispatching(self, step, batch):
        seen.append(("give", step))
        return dispatching(self, step, batch)

    monkeypatch.setattr(Meter, "finish", recorded_finish)
    monkeypatch.setattr(Reporter, "dispatching", recorded_dispatching)
    train(load_config(tiny_config, ("checkpoint.every=4", "steps=5")), tmp_path / "run")
    order = [f"{what} {step}" for what, step in seen]
    # Before it saves, and at the end, it looks at once.
    expected = "give 0, give 1, look 0, give 2, look 1, give 3, look 2, look 3, give 4, look 4"
    assert ", ".join(order) == expected


def test_adapters_have_their_rank(tiny_config):
    settings = ("model.adapters.rank=3", r"model.adapters.targets=language/blocks/(query|up)")
    config = load_config(tiny_config, settings)
    found = telemetry.adapter_ranks(config, open_inputs(config).architecture)
    assert found == {"language/blocks/query": 3, "language/blocks/up": 3}
