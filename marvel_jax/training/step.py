"""The train step: the objective's loss of one batch, its gradient, and what follows from it."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.parallel.sharding import batch_sharding, replicated
from marvel_jax.training.objective_config import retains
from marvel_jax.training.objectives.contrastive import contrastive_loss, loss_implementation
from marvel_jax.training.objectives.distillation import distillation_loss
from marvel_jax.training.objectives.encoding import Metrics, attention_kernels
from marvel_jax.training.objectives.rerank import rerank_loss
from marvel_jax.training.objectives.retention import retention_loss
from marvel_jax.training.optimizer import clamp_temperature, learning_rate_schedule
from marvel_jax.training.state import TrainState

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig

__all__ = ["Metrics", "Step", "attention_kernels", "loss_implementation", "make_train_step"]

Step = Callable[[TrainState, Any, Any, Any], tuple[TrainState, Metrics]]
Loss = Callable[..., tuple[jax.Array, Metrics]]


def objective_loss(config: "TrainConfig") -> Loss:
    """The loss of `config.objective`: (params, frozen, batch, step, config, architecture, *, mesh).

    It returns the loss and metrics, "loss" among them.
    """
    return {
        "contrastive": contrastive_loss,
        "distillation": distillation_loss,
        "rerank": rerank_loss,
    }[config.objective]


def batch_loss(
    params: dict[str, Any],
    frozen: dict[str, Any],
    batch: Any,
    step: jax.Array,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    *,
    mesh: Mesh,
) -> tuple[jax.Array, Metrics]:
    """All that a step minimises: the objective's loss and, where asked for, the texts'."""
    loss, metrics = objective_loss(config)(
        params, frozen, batch, step, config, architecture, mesh=mesh
    )
    if not retains(config):
        return loss, metrics
    assert config.retention is not None  # `retains` says so
    kept = retention_loss(params, frozen, batch.texts, step, config, architecture, mesh=mesh)
    loss = loss + config.retention.weight * kept.loss
    return loss, metrics | {
        "loss": loss,
        "next_token": kept.loss,
        "next_token_accuracy": kept.accuracy,
        "next_tokens": kept.tokens,
    }


def make_train_step(
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    shardings: TrainState,
    frozen_shardings: dict[str, Any],
) -> Step:
    """Compiles `(state, frozen, batch, finite) -> (state, metrics)`; the old state is donated.

    `finite` is metrics["finite"] of the step before, True at first. Where it is False, or this
    step's loss, gradient or update is not finite, the state comes back as it was, step number and
    all: so the host may look at the metrics a step late and still finds the state before the
    failure.

    Raises:
      MarvelError: `model.kernel` asks for what cannot be on these devices.
    """
    attention_kernels(config, architecture, mesh)
    schedule = learning_rate_schedule(config.optimizer, steps=config.steps)

    def step(
        state: TrainState, frozen: dict[str, Any], batch: Any, finite: jax.Array
    ) -> tuple[TrainState, Metrics]:
        gradient = jax.grad(batch_loss, has_aux=True)
        grads, metrics = gradient(
            state.params, frozen, batch, state.step, config, architecture, mesh=mesh
        )
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = clamp_temperature(optax.apply_updates(state.params, updates), config.optimizer)
        norms = {"gradient_norm": optax.tree.norm(grads), "update_norm": optax.tree.norm(updates)}
        for number in (metrics["loss"], *norms.values()):
            finite &= jnp.isfinite(number)
        metrics |= norms | {
            "learning_rate": jnp.asarray(schedule(state.step), jnp.float32),
            "finite": finite,
        }
        after = TrainState(state.step + 1, params, opt_state)
        return jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, state), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, frozen_shardings, batch_sharding(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
