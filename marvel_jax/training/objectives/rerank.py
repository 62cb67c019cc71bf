"""The rerank objective: the model reads a pair and is to say Yes or No."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from marvel_jax.losses.next_token import next_token_loss
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import head_rows, hidden_states
from marvel_jax.parallel.activations import gathered, rows_in_place
from marvel_jax.training.gradcache import encode_in_chunks
from marvel_jax.training.objectives.encoding import (
    Metrics,
    attention_kernels,
    differentiated,
    dropout_keys,
    with_gathered_table,
)

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig


def rerank_loss(
    params: dict[str, Any],
    frozen: dict[str, Any],
    batch: Any,
    step: jax.Array,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    *,
    mesh: Mesh,
) -> tuple[jax.Array, Metrics]:
    """The loss of one global batch (`data.rerank_batch.RerankBatch`) and its metrics.

    The mean cross-entropy of the covered tokens of all replies. `accuracy` is the share of pairs
    whose right answer has the larger logit of the two, `logit_gap` how much larger on average;
    `token_accuracy` the share of covered tokens that the largest logit of all names.
    """
    values = differentiated(params, frozen, step)
    asked = batch.places.reshape(len(batch.places), -1)
    states = encode_in_chunks(
        functools.partial(_states, config=config, architecture=architecture, mesh=mesh),
        values,
        (batch.rows, batch.item_key, asked),
        chunk_rows=config.chunk_rows,
        mesh=mesh,
    )
    head = _gathered_head(values["weights"], config, architecture, mesh)
    result = next_token_loss(
        states,
        head,
        batch.targets.reshape(asked.shape),
        mask=batch.supervised.reshape(asked.shape),
    )
    gap = _logit_gap(states.reshape(*batch.places.shape, -1)[:, :, 0], head, batch)
    pairs = jnp.maximum(batch.judged.sum(), 1)
    return result.loss, {
        "loss": result.loss,
        "accuracy": jnp.where(batch.judged, gap > 0, False).sum() / pairs,
        "logit_gap": jnp.where(batch.judged, gap, 0.0).sum() / pairs,
        "token_accuracy": result.accuracy,
    }


def _logit_gap(states: jax.Array, head: jax.Array, batch: Any) -> jax.Array:
    """[R, G] float32: the right answer's logit less the other's, at each sequence's answer."""
    head = jax.lax.stop_gradient(head)
    right, other = (
        jnp.take(head, tokens, axis=0, mode="clip").astype(jnp.float32)
        for tokens in (batch.targets[:, :, 0], batch.other)
    )
    states = jax.lax.stop_gradient(states).astype(jnp.float32)
    return jnp.einsum("rgd,rgd->rg", states, right - other, precision=jax.lax.Precision.HIGHEST)


def _states(
    values: dict[str, Any],
    part: tuple[Any, jax.Array, jax.Array],
    axes: Sequence[str],
    *,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    mesh: Mesh,
) -> jax.Array:
    """Hidden states [R, A, D] at the asked places [R, A] of rows split over the mesh axes."""
    rows, item_key, places = part
    weights = with_gathered_table(values["weights"], config, mesh)
    kernels = attention_kernels(config, architecture, mesh).kernels
    with rows_in_place(mesh, num_rows=len(rows.tokens), axes=axes):
        hidden = hidden_states(
            weights,
            rows,
            architecture,
            attention="causal",
            dtype=jnp.dtype(config.model.dtype),
            remat=config.model.remat,
            adapters=values["adapters"],
            lora=config.model.adapters,
            dropout_keys=dropout_keys(values, rows, item_key, config),
            kernels=kernels.over(tuple(axes)),
        )
    return jnp.take_along_axis(hidden, places[..., None], axis=1)


def _gathered_head(
    weights: dict[str, Any], config: "TrainConfig", architecture: Qwen2VLConfig, mesh: Mesh
) -> jax.Array:
    """The head [V, D], fetched whole over the data axes: every device has answers to judge."""
    if not architecture.tie_word_embeddings and "lm_head" in weights:
        kernel = gathered(
            weights["lm_head"]["kernel"], ("embed", "vocab"), mesh, rules=config.sharding
        )
        return kernel.T
    table = head_rows(weights, architecture)
    return gathered(table, ("vocab", "embed"), mesh, rules=config.sharding)
