"""The contrastive objective: each query's positives told from all candidates of the batch."""

import functools
from typing import TYPE_CHECKING, Any

import jax
from jax.sharding import Mesh

from marvel_jax.losses.contrastive import ContrastiveLoss, Implementation, info_nce
from marvel_jax.losses.matryoshka import nested_loss
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.parallel.mesh import DATA_AXES, data_shards
from marvel_jax.training.objective_config import brought
from marvel_jax.training.objectives.encoding import (
    Metrics,
    batch_vectors,
    gather_slots,
    temperature,
    to_global,
)

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig

# The similarities of a device's queries with all candidates, in float32, up to which they are held
# as a whole: a few copies of them live at once in the backward pass.
WHOLE_LOGITS_BYTES = 64 << 20
# All candidates of the batch, gathered on every device, in float32; their gradient is as large. Up
# to here both find room beside what the towers take, and the ring's messages take longer
# (docs/scaling.md).
GATHERED_BYTES = 1 << 30


def loss_implementation(config: "TrainConfig", *, shards: int, width: int) -> Implementation:
    """What `loss.implementation` "auto" means for a batch of this config on this many data shards.

    "dense" on one shard and "gather" on several, while a shard's float32 logits [b, C] take at
    most `WHOLE_LOGITS_BYTES` and, on several, all candidates [C, `width`] at most
    `GATHERED_BYTES`; above, "ring", or "gather" for a form that the ring cannot do.
    """
    if config.loss.implementation != "auto":
        return config.loss.implementation
    data = config.data
    candidates = data.global_batch * brought(config)
    widths = {*config.loss.matryoshka, width}  # the similarities of each, for the backward pass
    logits = 4 * (data.global_batch // shards) * candidates * len(widths)
    gathered_candidates = 4 * candidates * width if shards > 1 else 0
    if logits > WHOLE_LOGITS_BYTES or gathered_candidates > GATHERED_BYTES:
        return "ring" if config.loss.form == "softmax" else "gather"
    return "dense" if shards == 1 else "gather"


def contrastive_loss(
    params: dict[str, Any],
    frozen: dict[str, Any],
    batch: Any,
    step: jax.Array,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    *,
    mesh: Mesh,
) -> tuple[jax.Array, Metrics]:
    """The loss of one global batch (`data.batch.Batch`) and its metrics."""
    vectors = batch_vectors(params, frozen, batch, step, config, architecture, mesh=mesh)
    tau = temperature(params, frozen)
    result = in_batch_loss(
        vectors, batch, config, tau=tau, bias=params.get("sigmoid_bias"), mesh=mesh
    )
    metrics = {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "positive_similarity": result.positive_similarity,
        "temperature": tau,
    }
    return result.loss, metrics


def in_batch_loss(
    vectors: jax.Array,
    batch: Any,
    config: "TrainConfig",
    *,
    tau: jax.Array,
    bias: jax.Array | None,
    mesh: Mesh,
) -> ContrastiveLoss:
    """InfoNCE of a batch whose rows have the vectors [R, G, D], over `loss.matryoshka` widths."""
    shards = data_shards(mesh)
    queries, candidates = batch.query_slot.shape[0], batch.candidate_slot.shape[0]
    loss = functools.partial(
        info_nce,
        temperature=tau,
        own_positive=to_global(batch.own_positive, size=candidates // shards, shards=shards),
        candidate_id=batch.candidate_id,
        candidate_query=to_global(batch.candidate_query, size=queries // shards, shards=shards),
        positive_ids=batch.positive_ids,
        positive_valid=batch.positive_valid,
        query_valid=batch.query_valid,
        candidate_valid=batch.candidate_valid,
        symmetric=config.loss.symmetric,
        in_batch_negatives=config.loss.in_batch_negatives,
        form=config.loss.form,
        bias=bias,
        implementation=loss_implementation(config, shards=shards, width=vectors.shape[-1]),
        mesh=mesh,
        axes=DATA_AXES,
        tile=config.loss.tile,
    )
    return nested_loss(
        loss,
        gather_slots(vectors, batch.query_slot, shards=shards),
        gather_slots(vectors, batch.candidate_slot, shards=shards),
        widths=config.loss.matryoshka,
        weights=config.loss.matryoshka_weights,
    )
