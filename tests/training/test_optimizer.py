"""The schedule's values, each parameter's rate and decay, and how the temperature moves."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models import names
from marvel_jax.training.config import OptimizerConfig, ParameterGroup
from marvel_jax.training.optimizer import (
    check_groups,
    clamp_temperature,
    initial_log_temperature,
    learning_rate_schedule,
    make_optimizer,
    weight_decay,
)
from tests.training import tiny_steps


@pytest.fixture(scope="module")
def params():
    """Of the whole model."""
    return tiny_steps.start(tiny_steps.config_for())[0]


@pytest.fixture(scope="module")
def adapters():
    """Of adapters over a frozen base."""
    return tiny_steps.start(tiny_steps.config_for(adapters=True))[0]


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
    np.testing.assert_allclose([rate(s) for s in (0, 1, 4, 9)], [0.2, 0.4, 1, 2], rtol=1e-6)
    for s in (9, 24, 54, 99):
        expected = 1 + np.cos(np.pi * (s - 9) / 91)
        assert float(rate(s)) == pytest.approx(expected, abs=1e-6)
    assert float(rate(100)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("steps", [1, 2, 3, 100])
@pytest.mark.parametrize("warmup", [0.0, 0.03, 0.99])
def test_every_step_learns(steps, warmup):
    rate = learning_rate_schedule(OptimizerConfig(warmup_fraction=warmup), steps=steps)
    assert all(0 < float(rate(s)) <= 1.000001e-4 for s in range(steps))
    assert max(float(rate(s)) for s in range(steps)) == pytest.approx(1e-4, rel=1e-6)


def test_matrices_decay_and_nothing_else(params, adapters):
    config = OptimizerConfig(weight_decay=0.1)
    for path in names.flatten(params) | names.flatten(adapters):
        vector = path.endswith(("bias", "scale", "log_temperature"))
        assert weight_decay(path, config) == (0.0 if vector else 0.1), path
    assert {path.rsplit("/", 1)[1] for path in names.flatten(adapters["adapters"])} == {"a", "b"}
    # An untied head takes no part in an embedding: it has no gradient, and must not fade either.
    assert weight_decay("model/lm_head/kernel", config) == 0.0


def test_decay_shrinks_only_what_decays(params):
    zero = jax.tree.map(np.zeros_like, params)
    config = OptimizerConfig(weight_decay=0.1, learning_rate=0.1)
    after = names.flatten(step(config, params, zero))
    for path, before in names.flatten(params).items():
        if weight_decay(path, config):
            assert np.abs(after[path]).sum() < np.abs(before).sum(), path
        else:
            np.testing.assert_array_equal(before, after[path])


def moved(config: OptimizerConfig, params: dict) -> dict[str, float]:
    """How far each parameter goes, on average, with a gradient of ones."""
    after = names.flatten(step(config, params, jax.tree.map(np.ones_like, params), steps=1))
    return {path: np.mean(before - after[path]) for path, before in names.flatten(params).items()}


def test_a_group_has_its_own_rate_and_the_first_match_wins(params):
    groups = (
        ParameterGroup("vision/merger/.*", learning_rate=1e-3),
        ParameterGroup("vision/.*", learning_rate=5e-5),
    )
    plain = moved(OptimizerConfig(), params)
    grouped = moved(OptimizerConfig(groups=groups), params)
    for path, distance in plain.items():
        ratio = 10 if "vision/merger" in path else 0.5 if "vision" in path else 1
        assert grouped[path] == pytest.approx(ratio * distance, rel=2e-3), path


def test_a_group_of_adapters_is_named_by_their_paths(adapters):
    groups = (ParameterGroup("adapters/.*/b", learning_rate=1.6e-3, weight_decay=0.5),)
    config = OptimizerConfig(groups=groups)
    plain, grouped = moved(OptimizerConfig(), adapters), moved(config, adapters)
    for path, distance in plain.items():
        ratio = 16 if path.endswith("/b") else 1
        assert grouped[path] == pytest.approx(ratio * distance, rel=2e-3), path
        assert weight_decay(path, config) == (0.5 if path.endswith("/b") else 0.0)


def test_a_groups_decay_leaves_out_what_never_decays(params):
    config = OptimizerConfig(groups=(ParameterGroup("vision/.*", weight_decay=0.2),))
    for path in names.flatten(params):
        decays = "vision" in path and path.endswith("kernel")
        assert weight_decay(path, config) == (0.2 if decays else 0.0), path


@pytest.mark.parametrize(
    "patterns",
    [("language/block/.*",), ("vision/.*", "vision/merger/.*"), ("log_temperature",), ("visio",)],
    ids=["a misspelt path", "behind a wider one", "a scalar of the loss", "half a path"],
)
def test_a_group_without_a_parameter_is_refused(params, patterns):
    groups = tuple(ParameterGroup(pattern, learning_rate=1e-3) for pattern in patterns)
    with pytest.raises(MarvelError, match=f"groups: {patterns[-1]!r} is no parameter's first"):
        check_groups(params, OptimizerConfig(groups=groups))


def test_groups_that_share_the_parameters_are_accepted(params):
    groups = (ParameterGroup("vision/merger/.*", 1e-3), ParameterGroup("vision/.*", 1e-3))
    check_groups(params, OptimizerConfig(groups=groups))


def test_the_clip_is_by_the_norm_of_what_is_trained(adapters):
    # Clipping scales all gradients alike, so Adam's first moment shows the norm after it.
    grads = jax.tree.map(np.ones_like, adapters)
    optimizer = make_optimizer(OptimizerConfig(clip_norm=0.5), steps=10)
    init, update = jax.jit(optimizer.init), jax.jit(optimizer.update)
    _, state = update(grads, init(adapters), adapters)
    assert float(optax.tree.norm(state[1].mu)) == pytest.approx(0.5 * (1 - 0.9), rel=1e-5)


@pytest.mark.parametrize(("gradient", "bound"), [(1.0, 0.02), (-1.0, 0.3)])
def test_the_temperature_stays_within_its_bounds(params, gradient, bound):
    config = OptimizerConfig(learning_rate=10.0, temperature_min=0.02, temperature_max=0.3)
    grads = {**jax.tree.map(np.zeros_like, params), "log_temperature": np.float32(gradient)}
    after = step(config, params, grads)
    assert np.exp(after["log_temperature"]) == pytest.approx(bound, rel=1e-6)


def test_the_temperature_can_have_a_rate_of_its_own(params):
    grads = jax.tree.map(np.ones_like, params)
    plain = step(OptimizerConfig(learning_rate=1e-3), params, grads)
    own = step(OptimizerConfig(learning_rate=1e-3, temperature_learning_rate=5e-3), params, grads)
    change = [float(after["log_temperature"] - params["log_temperature"]) for after in (plain, own)]
    assert change[0] < 0 and change[1] == pytest.approx(5 * change[0], rel=1e-3)
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


@pytest.mark.parametrize("bound", [0.01, 0.02, 0.03, 0.07])
def test_a_stage_goes_on_from_a_temperature_that_was_held_at_a_bound(bound):
    held = float(jnp.exp(jnp.log(jnp.float32(bound))))  # as a model folder keeps it
    for config in (OptimizerConfig(temperature_min=bound), OptimizerConfig(temperature_max=bound)):
        start = initial_log_temperature(config, loaded=held)
        assert float(jnp.exp(start)) == pytest.approx(bound, rel=1e-6)
