"""The train state: what is trained, what is frozen, the moments, and where each of them lies."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding

from marvel_jax.errors import MarvelError
from marvel_jax.models import lora, names
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.parallel.sharding import check_sharded, parameter_shardings, replicated
from marvel_jax.training.optimizer import check_groups, initial_log_temperature

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig

# Zhai et al. 2023 (SigLIP): at the start nearly every pair is a negative, and the bias says so.
SIGMOID_BIAS = -10.0


class TrainState(NamedTuple):
    """All that a step changes.

    `params` holds what is trained, float32: "model" (the trained weights, nested, perhaps none),
    "adapters" if there are any, "log_temperature" if it is learned, "sigmoid_bias" if the loss is
    the sigmoid's.
    """

    step: Any  # int32 scalar
    params: dict[str, Any]
    opt_state: Any


class Placed(NamedTuple):
    """A state and the frozen values on the mesh, and where they lie."""

    state: TrainState
    frozen: dict[str, Any]  # "model", and "log_temperature" if it is not learned
    shardings: TrainState
    frozen_shardings: dict[str, Any]


def is_frozen(path: str, config: "TrainConfig") -> bool:
    """Whether the weight at a path of `models.names` stays as it is."""
    if config.model.adapters is not None:
        return True
    pattern = config.model.frozen
    return pattern is not None and re.fullmatch(pattern, path) is not None


def storage_dtype(path: str, config: "TrainConfig") -> Any:
    """The type a weight is stored in: float32 if it is trained, else that of the matmuls."""
    return jnp.dtype(config.model.dtype if is_frozen(path, config) else "float32")


def weight_sharding(
    config: "TrainConfig", architecture: Qwen2VLConfig, mesh: Mesh
) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Where each weight goes, by its path and shape: for loading straight into shards."""
    axes = {row.path: row.axes for row in names.table(architecture)}

    def place(path: str, shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, config.sharding.spec(axes[path], shape, mesh))

    return place


def initial_values(
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    *,
    weights: dict[str, Any] | None,
    temperature: float | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is trained and what is frozen at the start, as `TrainState` and `Placed` describe them.

    `weights` are loaded ones, None initialises them from the seed; leaves that already have their
    storage type are passed on, not copied. `temperature` is the one loaded with them.

    Raises:
      MarvelError: `model.frozen` matches no weight or every one.
    """
    key = jax.random.key(config.seed)
    if weights is None:
        weights = init_params(architecture, key=key)
    flat = {
        path: _cast(leaf, storage_dtype(path, config))
        for path, leaf in names.flatten(weights).items()
    }
    _check_frozen(flat, config)
    params: dict[str, Any] = {"model": _part(flat, config, frozen=False)}
    frozen: dict[str, Any] = {"model": _part(flat, config, frozen=True)}
    if config.model.adapters is not None:
        params["adapters"] = lora.init_adapters(
            architecture, config.model.adapters, key=jax.random.fold_in(key, 1)
        )
    log_temperature = initial_log_temperature(config.optimizer, loaded=temperature)
    (params if config.optimizer.learn_temperature else frozen)["log_temperature"] = log_temperature
    if config.loss.form == "sigmoid":
        params["sigmoid_bias"] = jnp.float32(SIGMOID_BIAS)
    return params, frozen


def model_weights(params: dict[str, Any], frozen: dict[str, Any]) -> dict[str, Any]:
    """The network's weights as `models.qwen2_vl` takes them: trained and frozen ones together."""
    return names.nest(names.flatten(frozen["model"]) | names.flatten(params["model"]))


def create_state(
    params: dict[str, Any],
    frozen: dict[str, Any],
    optimizer: optax.GradientTransformation,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    mesh: Mesh,
) -> Placed:
    """Places the values of `initial_values` on the mesh, with fresh moments beside them.

    The arrays are handed over: those that lie in their place already are not copied, and the first
    step uses their memory again.

    Raises:
      MarvelError: a large array is not split as the rules ask, the adapters do not fit, or a
        group of the optimiser matches nothing.
    """
    shardings, frozen_shardings = value_shardings(params, frozen, config, architecture, mesh)
    check_groups(params, config.optimizer)
    if config.model.adapters is not None:
        lora.check_adapters(params["adapters"], architecture, config.model.adapters)
    opt_shapes = jax.eval_shape(optimizer.init, params)
    opt_shardings = optax.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        opt_shapes,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
    )
    params = jax.device_put(params, shardings)
    state = TrainState(
        step=jax.device_put(jnp.zeros((), jnp.int32), replicated(mesh)),
        params=params,
        opt_state=jax.jit(optimizer.init, out_shardings=opt_shardings)(params),
    )
    return Placed(
        state=state,
        frozen=jax.device_put(frozen, frozen_shardings),
        shardings=TrainState(replicated(mesh), shardings, opt_shardings),
        frozen_shardings=frozen_shardings,
    )


def value_shardings(
    params: dict[str, Any],
    frozen: dict[str, Any],
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    mesh: Mesh,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Trees of shardings beside the two of `initial_values` (arrays or shapes).

    Raises:
      MarvelError: a large array is not split over a mesh axis that a rule wants it split over.
    """
    axes: dict[str, Any] = {
        f"model/{path}": leaf
        for path, leaf in names.flatten(names.logical_axes(architecture)).items()
    }
    if config.model.adapters is not None:
        adapter_axes = lora.logical_axes(architecture, config.model.adapters)
        axes |= {f"adapters/{path}": leaf for path, leaf in names.flatten(adapter_axes).items()}

    def place(values: dict[str, Any]) -> dict[str, Any]:
        flat = names.flatten(values)
        own = {path: axes.get(path, (None,) * len(leaf.shape)) for path, leaf in flat.items()}
        check_sharded(flat, own, mesh, config.sharding)
        found = names.nest(parameter_shardings(own, flat, mesh, rules=config.sharding))
        # An empty part has no leaf to be made from.
        return {name: found.get(name, {}) for name in values}

    return place(params), place(frozen)


def parameter_count(params: Any) -> int:
    """How many numbers the tree holds."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _part(flat: dict[str, Any], config: "TrainConfig", *, frozen: bool) -> dict[str, Any]:
    chosen = {path: leaf for path, leaf in flat.items() if is_frozen(path, config) == frozen}
    return names.nest(chosen)


def _cast(leaf: Any, dtype: Any) -> Any:
    return leaf if leaf.dtype == dtype else leaf.astype(dtype)


def _check_frozen(flat: dict[str, Any], config: "TrainConfig") -> None:
    if config.model.frozen is None:
        return
    matched = sum(is_frozen(path, config) for path in flat)
    if matched in (0, len(flat)):
        raise MarvelError(
            f"model.frozen={config.model.frozen!r} matches {matched} of {len(flat)} weights: match "
            f"some of them, in full, by paths such as {', '.join(list(flat)[:3])}; 'vision/.*' is "
            "the vision tower."
        )
