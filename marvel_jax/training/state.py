"""The train state: parameters, optimiser moments and the step, laid out over the mesh."""

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from marvel_jax.models import names
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.parallel.sharding import ShardingRules, parameter_shardings, replicated
from marvel_jax.training.optimizer import initial_log_temperature

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import OptimizerConfig


class TrainState(NamedTuple):
    """All that a step changes; `params` is {"model": ..., "log_temperature": scalar}."""

    step: Any  # int32 scalar
    params: dict[str, Any]
    opt_state: Any


def initial_params(
    config: Qwen2VLConfig,
    *,
    seed: int,
    model: dict[str, Any] | None,
    optimizer: "OptimizerConfig",
    temperature: float | None = None,
) -> dict[str, Any]:
    """Random weights from `seed`, or the loaded `model`; and the `temperature` loaded with it."""
    if model is None:
        model = init_params(config, key=jax.random.key(seed))
    log_temperature = initial_log_temperature(optimizer, loaded=temperature)
    return {"model": model, "log_temperature": log_temperature}


def state_shardings(
    state: TrainState,
    optimizer: optax.GradientTransformation,
    config: Qwen2VLConfig,
    mesh: Mesh,
    *,
    rules: ShardingRules,
) -> TrainState:
    """Shardings of a state (arrays or shapes): moments lie as their parameters do."""
    scalar = replicated(mesh)
    axes = {"model": names.logical_axes(config), "log_temperature": ()}
    params = parameter_shardings(axes, state.params, mesh, rules=rules)
    opt_state = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        state.opt_state,
        params,
        transform_non_params=lambda _: scalar,
    )
    return TrainState(step=scalar, params=params, opt_state=opt_state)


def create_state(
    params: dict[str, Any],
    optimizer: optax.GradientTransformation,
    config: Qwen2VLConfig,
    mesh: Mesh,
    *,
    rules: ShardingRules,
) -> tuple[TrainState, TrainState]:
    """Places parameters and fresh moments on the mesh. Returns (state, its shardings)."""

    def build(params: dict[str, Any]) -> TrainState:
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))

    shardings = state_shardings(jax.eval_shape(build, params), optimizer, config, mesh, rules=rules)
    return jax.jit(build, out_shardings=shardings)(params), shardings


def parameter_count(params: Any) -> int:
    """How many numbers the tree holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))
