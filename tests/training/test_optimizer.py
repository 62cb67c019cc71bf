"""The schedule's values, which parameters decay, and how the temperature moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.training.config import OptimizerConfig
from marvel_jax.training.optimizer import (
    clamp_temperature,
    decays,
    initial_log_temperature,
    learning_rate_schedule,
    make_optimizer,
)
from marvel_jax.training.state import initial_params
from tests import tiny


@pytest.fixture(scope="module")
def params():
    config = OptimizerConfig()
    made = initial_params(tiny.architecture(), seed=0, model=None, optimizer=config)
    return jax.device_get(made)


def step(config: OptimizerConfig, params: dict, grads: dict, *, steps: int = 3) -> dict:
    optimizer = make_optimizer(config, steps=10)

    @jax.jit
    def update(params: dict, state: optax.OptState) -> tuple[dict, optax.OptState]:
        updates, state = optimizer.update(grads, state, params)
        return clamp_temperature(optax.apply_updates(params, updates), config), state

    state = jax.jit(optimizer.init)(params)
    for _ in range(steps):
        params, state = update(params, state)
    return jax.device_get(params)


def test_the_rate_warms_up_in_a_line_and_falls_as_a_cosine():
    config = OptimizerConfig(learning_rate=2.0, warmup_fraction=0.1)
    rate = learning_rate_schedule(config, steps=100)
    np.testing.assert_allclose([rate(s) for s in (0, 1, 5, 10)], [0, 0.2, 1, 2], rtol=1e-6)
    for s in (10, 25, 55, 99):
        expected = 1 + np.cos(np.pi * (s - 10) / 90)
        assert float(rate(s)) == pytest.approx(expected, abs=1e-6)
    assert float(rate(100)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule_too(steps):
    rate = learning_rate_schedule(OptimizerConfig(), steps=steps)
    assert all(np.isfinite(float(rate(s))) for s in range(steps + 1))


def test_matrices_decay_and_nothing_else(params):
    decayed = {
        "/".join(key.key for key in path)
        for path, wanted in jax.tree_util.tree_leaves_with_path(decays(params))
        if wanted
    }
    assert "model/language/token_embedding" in decayed
    assert "model/vision/patch_embed/kernel" in decayed
    for path, _ in jax.tree_util.tree_leaves_with_path(params):
        name = "/".join(key.key for key in path)
        vector = name.endswith(("bias", "scale", "log_temperature"))
        assert vector == (name not in decayed), name
    # An untied head takes no part in an embedding: it has no gradient, and must not fade either.
    assert decays({"model": {"lm_head": {"kernel": 0}}}) == {
        "model": {"lm_head": {"kernel": False}}
    }


def test_decay_shrinks_only_what_decays(params):
    zero = jax.tree.map(np.zeros_like, params)
    after = step(OptimizerConfig(weight_decay=0.1, learning_rate=0.1), params, zero)

    def check(before, after, wanted):
        if wanted:
            assert np.abs(after).sum() < np.abs(before).sum()
        else:
            np.testing.assert_array_equal(before, after)

    jax.tree.map(check, params, after, decays(params))


@pytest.mark.parametrize(("gradient", "bound"), [(1.0, 0.02), (-1.0, 0.3)])
def test_the_temperature_stays_within_its_bounds(params, gradient, bound):
    config = OptimizerConfig(learning_rate=10.0, temperature_min=0.02, temperature_max=0.3)
    grads = {**jax.tree.map(np.zeros_like, params), "log_temperature": np.float32(gradient)}
    after = step(config, params, grads)
    assert np.exp(after["log_temperature"]) == pytest.approx(bound, rel=1e-6)


def test_a_temperature_that_is_not_learned_stays_bit_for_bit(params):
    config = OptimizerConfig(learn_temperature=False, learning_rate=1.0, weight_decay=0.1)
    after = step(config, params, jax.tree.map(np.ones_like, params))
    assert after["log_temperature"] == params["log_temperature"]
    assert np.any(after["model"]["language"]["norm"]["scale"] != 1)


def test_the_temperature_can_have_a_rate_of_its_own(params):
    grads = jax.tree.map(np.ones_like, params)
    plain = step(OptimizerConfig(learning_rate=1e-3), params, grads)
    own = step(OptimizerConfig(learning_rate=1e-3, temperature_learning_rate=5e-3), params, grads)
    moved = [float(after["log_temperature"] - params["log_temperature"]) for after in (plain, own)]
    assert moved[0] < 0 and moved[1] == pytest.approx(5 * moved[0], rel=1e-3)
    np.testing.assert_array_equal(
        plain["model"]["language"]["norm"]["scale"], own["model"]["language"]["norm"]["scale"]
    )


@pytest.mark.parametrize(
    ("given", "loaded", "expected"),
    [(None, None, 0.05), (None, 0.031, 0.031), (0.07, 0.031, 0.07)],
    ids=["published", "of the loaded model", "of the config"],
)
def test_where_the_temperature_starts(given, loaded, expected):
    config = OptimizerConfig(temperature=given)
    start = initial_log_temperature(config, loaded=loaded)
    assert start.dtype == jnp.float32
    assert float(jnp.exp(start)) == pytest.approx(expected, rel=1e-6)


def test_a_loaded_temperature_out_of_bounds_is_not_moved_in_silence():
    config = OptimizerConfig(temperature_min=0.04)
    with pytest.raises(MarvelError, match=r"temperature is 0\.031, outside of .*=0\.04"):
        initial_log_temperature(config, loaded=0.031)
