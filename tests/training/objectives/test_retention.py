"""The next-token loss beside another: its value, where its gradient goes, and nothing of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.losses.next_token import next_token_targets
from marvel_jax.models.qwen2_vl import hidden_states
from marvel_jax.parallel.sharding import put_batch
from marvel_jax.training.objectives.retention import retention_loss
from marvel_jax.training.step import batch_loss
from tests.training import tiny_steps
from tests.training.objectives.talk import RETENTION
from tests.training.tiny_steps import ARCHITECTURE, config_for

ARGUMENTS = ("config", "architecture", "mesh")


@pytest.fixture(scope="module")
def ours():
    """(config, mesh, params, frozen, batch) of a run with texts."""
    config = config_for(retention=RETENTION)
    mesh = tiny_steps.mesh_for(config.mesh)
    batch = put_batch(next(tiny_steps.batches(config, 1, num_steps=1)), mesh)
    return config, mesh, *tiny_steps.start(config), batch


def test_it_is_the_mean_over_the_supervised_tokens(ours):
    """Against the logits of a causal forward pass as a whole, in float64."""
    config, mesh, params, frozen, batch = ours
    found = jax.jit(retention_loss, static_argnames=ARGUMENTS)(
        params, frozen, batch.texts, 0, config=config, architecture=ARCHITECTURE, mesh=mesh
    )
    rows = batch.texts.rows
    states = hidden_states(params["model"], rows, ARCHITECTURE, attention="causal")
    table = np.asarray(params["model"]["language"]["token_embedding"], np.float64)
    logits = np.asarray(states, np.float64) @ table.T
    logits -= logits.max(axis=-1, keepdims=True)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    targets, mask = map(np.asarray, next_token_targets(rows.tokens, rows.segments, rows.pooled))
    terms = -np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0][mask]
    assert float(found.loss) == pytest.approx(terms.mean(), abs=1e-5)
    assert int(found.tokens) == mask.sum() > 20
    right = (log_p.argmax(axis=-1) == targets)[mask].mean()
    assert float(found.accuracy) == pytest.approx(right, abs=1e-6)


def test_the_gradient_reaches_the_language_model_and_no_picture(ours):
    config, mesh, params, frozen, batch = ours

    def loss(model):
        return retention_loss(
            params | {"model": model},
            frozen,
            batch.texts,
            jnp.int32(0),
            config,
            ARCHITECTURE,
            mesh=mesh,
        ).loss

    grads = jax.jit(jax.grad(loss))(params["model"])
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads["language"]))
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(grads["vision"]))


def test_it_is_added_with_its_weight_and_a_weight_of_zero_is_off(ours):
    config, mesh, params, frozen, batch = ours

    def traced(config, batch):
        def loss(params, frozen, batch):
            return batch_loss(params, frozen, batch, jnp.int32(0), config, ARCHITECTURE, mesh=mesh)

        return jax.jit(loss), (params, frozen, batch)

    loss, arguments = traced(config, batch)
    metrics = loss(*arguments)[1]
    off = dataclasses.replace(config, retention=dataclasses.replace(RETENTION, weight=0.0))
    none = dataclasses.replace(config, retention=None)
    bare = [next(tiny_steps.batches(one, 1, num_steps=1)) for one in (off, none)]
    assert all(one.texts is None for one in bare)
    texts = []
    for one, own in zip((off, none), bare, strict=True):
        loss, arguments = traced(one, own)
        texts.append(loss.lower(*arguments).as_text())
    # The same program of the same batch: the same bits.
    assert texts[0] == texts[1]
    plain = loss(*arguments)[1]
    assert "next_token" not in plain
    expected = float(plain["loss"]) + 0.25 * float(metrics["next_token"])
    assert float(metrics["loss"]) == pytest.approx(expected, abs=1e-5)
