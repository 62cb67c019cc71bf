"""AdamW, its schedule, and which parameters have what rate and decay."""

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from marvel_jax.errors import MarvelError

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import OptimizerConfig, ParameterGroup


PUBLISHED_TEMPERATURE = 0.05

# What decays: kernels and the token embedding, and both matrices of an adapter (as the usual
# trainers do it for LoRA: all but biases and gains).
_DECAYING = ("kernel", "token_embedding", "a", "b")

# Scalars of the loss: they never decay, belong to no group and share the temperature's rate.
_SCALARS = ("log_temperature", "sigmoid_bias")


def learning_rate_schedule(config: "OptimizerConfig", *, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_fraction` of the steps, then a cosine to zero.

    Every step learns: the first has a share of the peak, and zero would come after the last.
    """
    peak = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(max(1, round(config.warmup_fraction * steps)), steps),
        decay_steps=steps + 1,
    )
    return lambda step: peak(step + 1)


def make_optimizer(config: "OptimizerConfig", *, steps: int) -> optax.GradientTransformation:
    """Clip by the global norm of what is trained, then AdamW with rates and decay by parameter."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        _each(lambda path, update, value: _plus(update, weight_decay(path, config), value)),
        optax.scale_by_learning_rate(learning_rate_schedule(config, steps=steps)),
        _each(lambda path, update, value: _times(update, rate_ratio(path, config))),
    )


def weight_decay(path: str, config: "OptimizerConfig") -> float:
    """The decay of one parameter by its path in the state ("model/...", "adapters/...").

    Matrices decay; biases, gains, the loss's scalars and the unused head do not.
    """
    *parents, name = path.split("/")
    if name not in _DECAYING or "lm_head" in parents:
        return 0.0
    group = _group(path, config)
    if group is None or group.weight_decay is None:
        return config.weight_decay
    return group.weight_decay


def rate_ratio(path: str, config: "OptimizerConfig") -> float:
    """What one parameter's rate is to the common one, by its path in the state."""
    if path in _SCALARS:
        rate = config.temperature_learning_rate
    else:
        group = _group(path, config)
        rate = None if group is None else group.learning_rate
    return 1.0 if rate is None else rate / config.learning_rate


def check_groups(params: dict[str, Any], config: "OptimizerConfig") -> None:
    """Holds the groups of the config against what is trained.

    Raises:
      MarvelError: a group has no parameter, since no path matches or earlier groups have them all.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    paths = [_spell(keys) for keys, _ in leaves]
    found = [_group(path, config) for path in paths]
    for group in config.groups:
        if not any(group is one for one in found):
            known = [path.removeprefix("model/") for path in paths if path not in _SCALARS]
            raise MarvelError(
                f"optimizer.groups: {group.pattern!r} is no parameter's first match. It must match "
                f"in full a path that is trained, such as {', '.join(known[:3])}, and stand before "
                "wider patterns."
            )


def initial_log_temperature(config: "OptimizerConfig", *, loaded: float | None) -> jax.Array:
    """The learned scalar at the start, float32: the config's, else the loaded model's, else ours.

    Raises:
      MarvelError: the loaded temperature lies outside of the config's bounds.
    """
    start = config.temperature
    if start is None:
        start = PUBLISHED_TEMPERATURE if loaded is None else loaded
        # One that was held at a bound came back through a float32 logarithm.
        low, high = config.temperature_min * (1 - 1e-6), config.temperature_max * (1 + 1e-6)
        if not low <= start <= high:
            raise MarvelError(
                f"the model's temperature is {start:g}, outside of optimizer.temperature_min="
                f"{config.temperature_min} and temperature_max={config.temperature_max}: widen "
                "them, or give optimizer.temperature."
            )
        start = min(max(start, config.temperature_min), config.temperature_max)
    return jnp.log(jnp.float32(start))


def clamp_temperature(params: dict[str, Any], config: "OptimizerConfig") -> dict[str, Any]:
    """The parameters with a learned temperature put back within its stated bounds."""
    if "log_temperature" not in params:
        return params
    low, high = jnp.log(config.temperature_min), jnp.log(config.temperature_max)
    return params | {"log_temperature": jnp.clip(params["log_temperature"], low, high)}


def _group(path: str, config: "OptimizerConfig") -> "ParameterGroup | None":
    if path in _SCALARS:
        return None
    name = path.removeprefix("model/")
    return next((one for one in config.groups if re.fullmatch(one.pattern, name)), None)


def _each(change: Callable[[str, Any, Any], Any]) -> optax.GradientTransformation:
    """A transformation without state: `change(path, update, parameter)` of every leaf."""

    def update(updates: Any, params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda keys, *leaves: change(_spell(keys), *leaves), updates, params
        )

    return optax.stateless(update)


def _plus(update: jax.Array, factor: float, value: jax.Array) -> jax.Array:
    return update + factor * value if factor else update


def _times(update: jax.Array, factor: float) -> jax.Array:
    return update if factor == 1.0 else update * factor


def _spell(keys: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", key)) for key in keys)
