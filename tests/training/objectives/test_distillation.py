"""Distillation: the numbers of its loss, on any mesh and in any chunks, and what learns from it."""

import dataclasses
from functools import cache

import jax
import numpy as np
import pytest

from marvel_jax.parallel.collectives import KINDS, executed_collectives
from marvel_jax.parallel.mesh import MeshConfig
from marvel_jax.training.config import DataConfig, LossConfig, TrainConfig
from marvel_jax.training.objective_config import DistillationConfig
from tests import plain_step, tiny
from tests.training import tiny_steps
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


@cache
def on_one_device(adapters: bool) -> Run:
    return tiny_steps.run(distilling(adapters=adapters), num_steps=STEPS)


def numpy_kl(config: TrainConfig) -> tuple[float, float, int]:
    """KL, agreement and number of lists of the first batch, in float64."""
    batch = next(tiny_steps.batches(config, 1, num_steps=1))
    params = tiny_steps.start(config)[0]
    vectors = np.asarray(
        plain_step.embed(params["model"], batch.rows, ARCHITECTURE, tiny.ROW.items), np.float64
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
    first = tiny_steps.run(config, num_steps=1).history[0]
    assert first["kl"] == pytest.approx(expected, abs=1e-5)
    assert first["loss"] == first["kl"]
    assert first["agreement"] == pytest.approx(agreement, abs=1e-6)
    assert first["lists"] == lists < 16  # those without a list do not count
    assert "accuracy" not in first


def test_both_terms_are_added_with_their_weights():
    first = on_one_device(False).history[0]
    assert first["loss"] == pytest.approx(first["kl"] + 0.5 * first["contrastive"], abs=1e-5)


@pytest.mark.parametrize(
    ("mesh", "adapters", "chunk_rows", "implementation"),
    [
        (MeshConfig(8), False, None, "auto"),
        (MeshConfig(2, 2, 2), True, 2, "auto"),
        (ONE, True, 2, "auto"),
        (MeshConfig(2, 4, groups=2), False, 2, "ring"),
    ],
)
def test_any_mesh_and_any_chunks_give_the_same(mesh, adapters, chunk_rows, implementation):
    loss = LossConfig(implementation=implementation, tile=4)
    config = distilling(mesh, adapters=adapters, chunk_rows=chunk_rows, loss=loss)
    found, expected = tiny_steps.run(config, num_steps=STEPS), on_one_device(adapters)
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


def test_the_lists_send_nothing_but_sums():
    """Vectors of lists stay on their shard: without InfoNCE no candidate travels."""
    config = distilling(
        MeshConfig(8), distillation=DistillationConfig(depth=4), data=KL_ONLY
    )
    found = executed_collectives(tiny_steps.run(config, num_steps=1).program.as_text())
    assert all(found[kind] == 0 for kind in KINDS if kind != "all-reduce"), found


def test_the_temperature_learns_from_the_student_alone():
    """A teacher temperature of its own, however far off, leaves the student's gradient finite."""
    shared = tiny_steps.run(
        distilling(distillation=DistillationConfig(depth=4), data=KL_ONLY), num_steps=2
    )
    own = DistillationConfig(depth=4, teacher="logit_diff", teacher_temperature=2.0)
    apart = tiny_steps.run(distilling(distillation=own, data=KL_ONLY), num_steps=2)
    assert shared.history[1]["temperature"] != shared.history[0]["temperature"]
    assert apart.history[0]["temperature"] == shared.history[0]["temperature"]
    assert apart.history[0]["kl"] != shared.history[0]["kl"]


def test_a_student_comes_to_agree_with_its_teacher():
    # The same batch order, so an epoch of twelve steps twice.
    config = distilling(
        distillation=DistillationConfig(depth=4), data=KL_ONLY, steps=24, adapters=False
    )
    history = tiny_steps.run(config, num_steps=24).history
    first, last = ([row["kl"] for row in part] for part in (history[:6], history[-6:]))
    assert np.mean(last) < 0.5 * np.mean(first)
