"""Distillation: the numbers of its loss, on any mesh and in any chunks, and what learns from it."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from marvel_jax.parallel.collectives import KINDS, executed_collectives
from marvel_jax.parallel.mesh import MeshConfig
from marvel_jax.parallel.sharding import put_batch
from marvel_jax.training.config import DataConfig, TrainConfig
from marvel_jax.training.objective_config import DistillationConfig
from marvel_jax.training.state import model_weights
from tests import plain_step, tiny
from tests.training import tiny_steps
from tests.training.objectives.talk import RETENTION
from tests.training.tiny_steps import ARCHITECTURE, ONE, Run, config_for

STEPS = 4
DATA = DataConfig(path=".", teacher="x", global_batch=16, row=tiny.ROW, hard_negatives=1)
KL_ONLY = dataclasses.replace(DATA, hard_negatives=0)
BOTH = DistillationConfig(depth=4, contrastive_weight=0.5)


def distilling(
    mesh: MeshConfig = ONE, distillation: DistillationConfig = BOTH, **changes
) -> TrainConfig:
    fields = {"data": DATA, "objective": "distillation", "distillation": distillation}
    return config_for(mesh, **(fields | changes))


def with_all(mesh: MeshConfig = ONE, **changes) -> TrainConfig:
    return distilling(mesh, adapters=True, retention=RETENTION, **changes)


@cache
def on_one_device() -> Run:
    return tiny_steps.run(with_all(), num_steps=STEPS)


@cache
def lists_alone() -> Run:
    config = distilling(distillation=DistillationConfig(depth=4), data=KL_ONLY, steps=24)
    return tiny_steps.run(config, num_steps=24)


def numpy_kl(config: TrainConfig) -> tuple[float, float, int]:
    """KL, agreement and number of lists of the first batch, in float64."""
    batch = next(tiny_steps.batches(config, 1, num_steps=1))
    params, frozen = tiny_steps.start(config)
    weights = model_weights(params, frozen)
    vectors = np.asarray(
        plain_step.embed(weights, batch.rows, ARCHITECTURE, tiny.ROW.items), np.float64
    ).reshape(-1, ARCHITECTURE.text.hidden_size)
    candidates = vectors[batch.candidate_slot].reshape(16, -1, vectors.shape[1])
    assert config.distillation is not None
    tau, terms, hits = float(np.exp(params["log_temperature"])), [], []
    lists = batch.lists
    for row, query in enumerate(batch.query_slot):
        valid = lists.valid[row]
        if not valid.any():
            continue
        student = candidates[row, -config.distillation.depth :][valid] @ vectors[query] / tau
        odds = (lists.yes[row] - lists.no[row])[valid].astype(np.float64)
        fused = (lists.recall[row][valid] + 1 / (1 + np.exp(-odds))) / 2
        target = fused / tau
        p = np.exp(target - target.max())
        p /= p.sum()
        q = student - np.log(np.exp(student).sum())
        terms.append(float((p * (np.log(p) - q)).sum()))
        hits.append(student.argmax() == target.argmax())
    return float(np.mean(terms)), float(np.mean(hits)), len(terms)


def test_the_first_loss_is_that_of_numpy():
    config = distilling(distillation=DistillationConfig(depth=4), data=KL_ONLY)
    expected, agreement, lists = numpy_kl(config)
    first = lists_alone().history[0]
    assert first["kl"] == pytest.approx(expected, abs=1e-5)
    assert first["loss"] == first["kl"]
    assert first["agreement"] == pytest.approx(agreement, abs=1e-6)
    assert first["lists"] == lists < 16  # those without a list do not count
    assert "accuracy" not in first


def test_a_list_stands_behind_what_else_a_query_brings():
    """Positives and hard negatives come first; adapters add nothing to the base at the start."""
    first = on_one_device().history[0]
    expected, agreement, _ = numpy_kl(with_all())
    assert first["kl"] == pytest.approx(expected, abs=1e-5)
    assert first["agreement"] == pytest.approx(agreement, abs=1e-6)


def test_a_student_comes_to_agree_with_its_teacher():
    history = lists_alone().history
    first, last = ([row["kl"] for row in part] for part in (history[:6], history[-6:]))
    assert np.mean(last) < 0.5 * np.mean(first)


def test_a_teacher_that_is_not_asked_cannot_spoil_the_loss():
    """kl_weight=0 trains the published control: the list as negatives of its own query."""
    control = DistillationConfig(depth=4, kl_weight=0.0, contrastive_weight=1.0)
    config = distilling(distillation=control)
    mesh, placed, step = tiny_steps.build(config)
    batch = next(tiny_steps.batches(config, 1, num_steps=1))
    spoilt = batch._replace(lists=batch.lists._replace(yes=batch.lists.yes * np.nan))
    put = put_batch(batch, mesh)
    program = tiny_steps.compiled(step, placed.state, placed.frozen, put, np.True_)
    # The step gives its state away.
    state = jax.tree.map(jax.numpy.copy, placed.state)
    good, metrics = program(state, placed.frozen, put, np.True_)
    found, of_spoilt = program(placed.state, placed.frozen, put_batch(spoilt, mesh), np.True_)
    assert np.isnan(of_spoilt["kl"]) and np.isfinite(metrics["kl"])
    assert of_spoilt["loss"] == metrics["loss"] == metrics["contrastive"]
    jax.tree.map(np.testing.assert_array_equal, found.params, good.params)


def test_all_terms_are_added_with_their_weights():
    first = on_one_device().history[0]
    expected = first["kl"] + 0.5 * first["contrastive"] + 0.25 * first["next_token"]
    assert first["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("mesh", "chunk_rows"), [(MeshConfig(8), None), (MeshConfig(2, 2, 2), 2)])
def test_any_mesh_and_any_chunks_give_the_same(mesh, chunk_rows):
    """Of adapters with dropout, of both terms, and of the next-token loss beside them."""
    found = tiny_steps.run(with_all(mesh, chunk_rows=chunk_rows), num_steps=STEPS)
    expected = on_one_device()
    for one, other in zip(found.history, expected.history, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            tolerance = 1e-5 * max(1.0, abs(value)) if name == "gradient_norm" else 1e-5
            assert abs(one[name] - value) <= tolerance, (name, one[name], value)
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, rtol=0, atol=1e-5),
        found.params,
        expected.params,
    )


def test_lists_send_nothing_but_sums():
    """Without InfoNCE no vector leaves its shard, whatever the teacher."""
    other = DistillationConfig(depth=4, teacher="logit_diff", teacher_temperature=2.0)
    config = distilling(MeshConfig(8), distillation=other, data=KL_ONLY)
    mesh, placed, step = tiny_steps.build(config)
    batch = put_batch(next(tiny_steps.batches(config, 8, num_steps=1)), mesh)
    program = tiny_steps.compiled(step, placed.state, placed.frozen, batch, np.True_)
    found = executed_collectives(program.as_text())
    assert all(found[kind] == 0 for kind in KINDS if kind != "all-reduce"), found
