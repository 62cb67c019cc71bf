"""AdamW, its schedule, and which parameters decay."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from marvel_jax.errors import MarvelError

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import OptimizerConfig


PUBLISHED_TEMPERATURE = 0.05


def learning_rate_schedule(config: "OptimizerConfig", *, steps: int) -> optax.Schedule:
    """Linear warm-up over `warmup_fraction` of the steps, then a cosine to zero."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=min(max(1, round(config.warmup_fraction * steps)), max(1, steps - 1)),
        decay_steps=max(2, steps),
    )


def make_optimizer(config: "OptimizerConfig", *, steps: int) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; the temperature has its own rate and no decay."""
    schedule = learning_rate_schedule(config, steps=steps)
    scale = 1.0
    if config.temperature_learning_rate is not None:
        scale = config.temperature_learning_rate / config.learning_rate
    if not config.learn_temperature:
        scale = 0.0
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decays),
        optax.scale_by_learning_rate(schedule),
        optax.masked(optax.scale(scale), _is_temperature),
    )


def decays(params: Any) -> Any:
    """A tree of bools: matrices decay; biases, gains, temperature and the unused head do not."""

    def decide(path: tuple[Any, ...], _: Any) -> bool:
        names = [_name(key) for key in path]
        return names[-1] in ("kernel", "token_embedding") and "lm_head" not in names

    return jax.tree_util.tree_map_with_path(decide, params)


def initial_log_temperature(config: "OptimizerConfig", *, loaded: float | None) -> jax.Array:
    """The learned scalar at the start, float32: the config's, else the loaded model's, else ours.

    Raises:
      MarvelError: the loaded temperature lies outside of the config's bounds.
    """
    start = config.temperature
    if start is None:
        start = PUBLISHED_TEMPERATURE if loaded is None else loaded
        if not config.temperature_min <= start <= config.temperature_max:
            raise MarvelError(
                f"the model's temperature is {start:g}, outside of optimizer.temperature_min="
                f"{config.temperature_min} and temperature_max={config.temperature_max}: widen "
                "them, or give optimizer.temperature."
            )
    return jnp.log(jnp.float32(start))


def clamp_temperature(params: dict[str, Any], config: "OptimizerConfig") -> dict[str, Any]:
    """The parameters with the temperature put back within its stated bounds."""
    low, high = jnp.log(config.temperature_min), jnp.log(config.temperature_max)
    return params | {"log_temperature": jnp.clip(params["log_temperature"], low, high)}


def _is_temperature(params: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: _name(path[-1]) == "log_temperature", params
    )


def _name(key: Any) -> str:
    return str(getattr(key, "key", key))
