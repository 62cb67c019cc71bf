"""The step that is timed is the train step, and torch's is the same one."""

import dataclasses
import functools
import importlib.util

import jax
import pytest

from marvel_jax.bench import lora_step, shapes, torch_peers
from marvel_jax.bench.accelerator_steps import step_options
from marvel_jax.parallel import mesh

OPTIONS = step_options(quick=True, devices=1)


@pytest.mark.peer
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_takes_the_same_step(monkeypatch):
    """From the same weights both find the same loss, in chunks and in mini-batches."""
    alone = functools.partial(mesh.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(mesh, "make_mesh", alone)
    (row,) = lora_step.cases(OPTIONS)
    weights = jax.device_get(shapes.random_weights(shapes.TINY, dtype="float32"))
    theirs = torch_peers.step(OPTIONS, weights=weights)
    assert row["first_loss"] > 1
    assert theirs["first_loss"] == pytest.approx(row["first_loss"], rel=1e-5)
    for one in (row, theirs):
        assert one["pairs"] == 8 and one["pairs/s"] > 0 and 0 < one["token_fill"] <= 1
    assert theirs["tokens/s"] * theirs["seconds"] == pytest.approx(
        row["tokens/s"] * row["seconds"], rel=1e-2
    )
    assert row["temporary_mib"] > 0 and row["kernel"] == "xla"


def fake(monkeypatch, rows_by_chunk, *, limit=10_000 * 2**20):
    """The chunk sizes that `cases` tries, where `_measure` gives these rows."""
    tried = []

    def measure(options, *_):
        tried.append((options.chunk_rows, options.remat))
        return rows_by_chunk(options)

    monkeypatch.setattr(lora_step, "_measure", measure)
    monkeypatch.setattr(lora_step, "_memory", lambda: limit)
    found = list(lora_step.cases(dataclasses.replace(OPTIONS, chunk_rows=4)))
    return tried, found


def test_the_largest_chunks_that_fit_come_second(monkeypatch):
    def grows(options):
        return {"argument_mib": 500.0, "temporary_mib": 300.0 * options.chunk_rows, "rows": 108}

    tried, _ = fake(monkeypatch, grows)
    # 8,000 MiB are left for temporaries: 26 rows at most, and 18 leave no chunk half empty.
    assert tried == [(4, "attention"), (18, "attention")]
    tried, _ = fake(monkeypatch, grows, limit=2_500 * 2**20)
    assert tried == [(4, "attention")]
    tried, _ = fake(monkeypatch, grows, limit=None)
    assert tried == [(4, "attention")]


def test_what_does_not_fit_is_tried_smaller_and_told(monkeypatch):
    def refuses(options):
        planned = {"argument_mib": 9_000.0, "temporary_mib": 700.0, "rows": 6}
        if options.remat == "full":
            return planned
        return planned | {"failed": "does not fit"}

    tried, found = fake(monkeypatch, refuses)
    assert tried == [(4, "attention"), (1, "attention"), (1, "full")]
    assert [row.get("failed") for row in found] == ["does not fit", "does not fit", None]
