"""What is trained, what is frozen, in what type, and where it lies."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models import names
from marvel_jax.models.lora import LoraConfig
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from marvel_jax.training.config import (
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ParameterGroup,
    TrainConfig,
)
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.state import (
    create_state,
    initial_values,
    model_weights,
    parameter_count,
    storage_dtype,
    weight_sharding,
)
from tests.training import tiny_steps
from tests.training.tiny_steps import ARCHITECTURE, LORA, config_for

WEIGHTS = names.flatten(tiny_steps.start(config_for())[0]["model"])


def model(**changes: object) -> ModelConfig:
    return ModelConfig(scratch=ARCHITECTURE, **changes)  # type: ignore[arg-type]


def values_of(config: TrainConfig, temperature: float | None = None):
    weights = names.nest(WEIGHTS)
    return initial_values(config, ARCHITECTURE, weights=weights, temperature=temperature)


CASES = {
    "everything": (model(), lambda path: True),
    "adapters": (model(adapters=LORA, dtype="bfloat16"), lambda path: False),
    "frozen tower": (
        model(frozen="vision/.*", dtype="bfloat16"),
        lambda path: not path.startswith("vision/"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_weight_is_trained_in_float32_or_frozen_in_the_type_of_the_matmuls(case):
    config = config_for(model=CASES[case][0])
    params, frozen = values_of(config)
    trained, kept = names.flatten(params["model"]), names.flatten(frozen["model"])
    assert not trained.keys() & kept.keys() and trained.keys() | kept.keys() == WEIGHTS.keys()
    assert set(trained) == {path for path in WEIGHTS if CASES[case][1](path)}
    for path, leaf in (trained | kept).items():
        assert leaf.dtype == (np.float32 if path in trained else config.model.dtype)
        assert leaf.dtype == storage_dtype(path, config)
        np.testing.assert_array_equal(leaf, WEIGHTS[path].astype(leaf.dtype))
    assert jax.tree.structure(model_weights(params, frozen)) == jax.tree.structure(
        names.nest(WEIGHTS)
    )


def test_weights_of_the_right_type_are_passed_on_and_not_copied():
    params, _ = values_of(config_for())
    assert names.flatten(params["model"])["language/norm/scale"] is WEIGHTS["language/norm/scale"]


def test_from_scratch_the_seed_alone_decides():
    config = config_for(adapters=True)
    first = tiny_steps.start(config)
    again, other = (
        initial_values(
            dataclasses.replace(config, seed=seed), ARCHITECTURE, weights=None, temperature=None
        )
        for seed in (0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    for part, path in (
        (0, "adapters/language/blocks/query/a"),
        (1, "model/vision/merger/up/kernel"),
    ):
        assert np.any(names.flatten(first[part])[path] != names.flatten(other[part])[path])


@pytest.mark.parametrize("learned", [True, False])
def test_a_temperature_that_is_not_learned_is_frozen(learned):
    config = config_for(optimizer=OptimizerConfig(learn_temperature=learned))
    params, frozen = values_of(config, temperature=0.07)
    assert ("log_temperature" in params) == learned != ("log_temperature" in frozen)
    value = (params | frozen)["log_temperature"]
    assert value.dtype == jnp.float32 and float(jnp.exp(value)) == pytest.approx(0.07)


def test_only_the_sigmoid_form_has_a_bias():
    assert "sigmoid_bias" not in values_of(config_for())[0]
    params, _ = values_of(config_for(loss=LossConfig(form="sigmoid")))
    assert float(params["sigmoid_bias"]) == -10 and params["sigmoid_bias"].dtype == jnp.float32


@pytest.mark.parametrize(("pattern", "number"), [("visoin/.*", "0"), (".*", len(WEIGHTS))])
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(pattern, number):
    with pytest.raises(MarvelError, match=rf"frozen=.* matches {number} of {len(WEIGHTS)} weights"):
        values_of(config_for(model=model(frozen=pattern)))


def place(config: TrainConfig):
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    return create_state(*values_of(config), optimizer, config, ARCHITECTURE, mesh), mesh


@pytest.mark.parametrize("case", CASES)
def test_weights_and_moments_lie_as_the_rules_say_and_frozen_ones_have_no_moments(case):
    config = config_for(MeshConfig(1, 4, 2), model=CASES[case][0])
    placed, mesh = place(config)
    jax.tree.map(
        lambda leaf, sharding: _same(leaf.sharding, sharding), placed.state, placed.shardings
    )
    jax.tree.map(
        lambda leaf, sharding: _same(leaf.sharding, sharding),
        placed.frozen,
        placed.frozen_shardings,
    )
    adam = placed.state.opt_state[1]
    for moment in (adam.mu, adam.nu):
        assert jax.tree.structure(moment) == jax.tree.structure(placed.state.params)
        jax.tree.map(
            lambda one, parameter: _same(one.sharding, parameter.sharding),
            moment,
            placed.state.params,
        )
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(moment))
    # Weights that are streamed go where the state wants them.
    weights = model_weights(placed.state.params, placed.frozen)
    where = weight_sharding(config, ARCHITECTURE, mesh)
    for path, leaf in names.flatten(weights).items():
        _same(leaf.sharding, where(path, leaf.shape))
    gate = weights["language"]["blocks"]["gate"]["kernel"]
    assert gate.addressable_shards[0].data.size == gate.size // 8


def _same(found, expected) -> None:
    assert found.spec == expected.spec and found.mesh == expected.mesh


def test_what_does_not_fit_is_refused_before_the_first_step():
    groups = (ParameterGroup("languge/.*", learning_rate=1.0),)
    with pytest.raises(MarvelError, match=r"groups: 'languge/\.\*'"):
        place(config_for(MeshConfig(8), optimizer=OptimizerConfig(groups=groups)))
    config = config_for(model=model(adapters=LoraConfig(rank=4)))
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    params, frozen = values_of(config_for(adapters=True))
    with pytest.raises(MarvelError, match="wrong shape: language/blocks/query/a"):
        create_state(
            params, frozen, make_optimizer(config.optimizer, steps=2), config, ARCHITECTURE, mesh
        )


def test_parameters_are_counted():
    assert parameter_count({"a": np.zeros((2, 3)), "b": {"c": np.zeros(4)}}) == 10
