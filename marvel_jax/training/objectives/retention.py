"""Generative retention: the next-token loss of a few texts beside any objective."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from marvel_jax.losses.next_token import NextTokenLoss, next_token_loss, next_token_targets
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import head_rows, hidden_states
from marvel_jax.parallel.activations import gathered, rows_in_place
from marvel_jax.parallel.mesh import data_shards
from marvel_jax.training.gradcache import encode_in_chunks
from marvel_jax.training.objectives.encoding import (
    attention_kernels,
    differentiated,
    dropout_keys,
    with_gathered_table,
)

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig


def retention_loss(
    params: dict[str, Any],
    frozen: dict[str, Any],
    texts: Any,
    step: jax.Array,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    *,
    mesh: Mesh,
) -> NextTokenLoss:
    """The mean over the supervised tokens of a step's texts (`data.retention.TextRows`).

    Attention is causal, whatever the embedder's, as the model learned to speak. Rows go through
    the network `config.chunk_rows` at a time, like those of the batch.
    """
    here = len(texts.rows.tokens) // data_shards(mesh)
    whole = config.chunk_rows is None or here <= config.chunk_rows
    sums = encode_in_chunks(
        functools.partial(_row_sums, config=config, architecture=architecture, mesh=mesh),
        differentiated(params, frozen, step),
        texts,
        chunk_rows=None if whole else config.chunk_rows,
        mesh=mesh,
    )
    loss, right, count = sums.sum(axis=0)
    tokens = jnp.maximum(count, 1.0)
    return NextTokenLoss(loss / tokens, right / tokens, count)


def _row_sums(
    values: dict[str, Any],
    texts: Any,
    axes: Sequence[str],
    *,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    mesh: Mesh,
) -> jax.Array:
    """[R, 3] float32: loss and right guesses, summed over each row's tokens, and their number."""
    rows, item_key = texts
    weights = with_gathered_table(values["weights"], config, mesh)
    if "lm_head" in weights:
        kernel = weights["lm_head"]["kernel"]
        kernel = gathered(kernel, ("embed", "vocab"), mesh, rules=config.sharding)
        weights |= {"lm_head": {"kernel": kernel}}
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
    head = head_rows(weights, architecture)
    targets, mask = next_token_targets(rows.tokens, rows.segments, rows.pooled)

    def of_row(hidden: jax.Array, targets: jax.Array, mask: jax.Array) -> jax.Array:
        found = next_token_loss(hidden[None], head, targets[None], mask=mask[None])
        return jnp.stack([found.loss * found.tokens, found.accuracy * found.tokens, found.tokens])

    return jax.vmap(of_row)(hidden, targets, mask)
