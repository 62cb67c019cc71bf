"""The train step: encode the rows, pick out queries and candidates, one loss over all of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from marvel_jax.losses.contrastive import info_nce
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import embed
from marvel_jax.parallel.mesh import data_shards
from marvel_jax.parallel.sharding import batch_sharding, replicated
from marvel_jax.training.optimizer import clamp_temperature, learning_rate_schedule
from marvel_jax.training.state import TrainState

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def gather_slots(vectors: jax.Array, slots: jax.Array, *, shards: int) -> jax.Array:
    """[N, D]: the vectors at shard-local slots of [R, G, D], shard by shard.

    Each shard reads only its own rows, so the mesh moves nothing here.
    """
    rows, items, width = vectors.shape
    local = vectors.reshape(shards, rows // shards * items, width)
    index = slots.reshape(shards, -1, 1)
    return jnp.take_along_axis(local, index, axis=1).reshape(-1, width)


def contrastive_loss(
    params: dict[str, Any],
    batch: Any,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    *,
    shards: int,
) -> tuple[jax.Array, Metrics]:
    """The loss of one global batch (`data.batch.Batch`) and its metrics."""
    embeddings = embed(
        params["model"],
        batch.rows,
        architecture,
        items_per_row=config.data.row.items,
        attention=config.embedding.attention,
        pooling=config.embedding.pooling,
        dtype=jnp.dtype(config.model.dtype),
        remat=config.model.remat,
    )
    candidates_per_shard = batch.candidate_slot.shape[0] // shards
    own = batch.own_positive.reshape(shards, -1)
    own = (own + candidates_per_shard * jnp.arange(shards)[:, None]).reshape(-1)
    tau = jnp.exp(params["log_temperature"])
    result = info_nce(
        gather_slots(embeddings.vectors, batch.query_slot, shards=shards),
        gather_slots(embeddings.vectors, batch.candidate_slot, shards=shards),
        temperature=tau,
        own_positive=own,
        candidate_id=batch.candidate_id,
        positive_ids=batch.positive_ids,
        positive_valid=batch.positive_valid,
        query_valid=batch.query_valid,
        candidate_valid=batch.candidate_valid,
        symmetric=config.symmetric_loss,
    )
    metrics = {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "positive_similarity": result.positive_similarity,
        "temperature": tau,
    }
    return result.loss, metrics


def make_train_step(
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    *,
    shardings: TrainState,
) -> Step:
    """Compiles `(state, batch) -> (state, metrics)` over the mesh; the old state is donated."""
    shards = data_shards(mesh)
    schedule = learning_rate_schedule(config.optimizer, steps=config.steps)

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        gradient = jax.grad(contrastive_loss, has_aux=True)
        grads, metrics = gradient(state.params, batch, config, architecture, shards=shards)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = clamp_temperature(optax.apply_updates(state.params, updates), config.optimizer)
        metrics["gradient_norm"] = optax.tree.norm(grads)
        metrics["learning_rate"] = jnp.asarray(schedule(state.step), jnp.float32)
        return TrainState(state.step + 1, params, opt_state), metrics

    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
    )
