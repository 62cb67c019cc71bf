"""The distillation objective: each query's list ordered as a reranker orders it."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from marvel_jax.losses.distillation import list_cosines, listwise_kl, teacher_logits
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.parallel.mesh import data_shards
from marvel_jax.training.objectives.contrastive import in_batch_loss
from marvel_jax.training.objectives.encoding import (
    Metrics,
    batch_vectors,
    gather_slots,
    temperature,
)

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig


def distillation_loss(
    params: dict[str, Any],
    frozen: dict[str, Any],
    batch: Any,
    step: jax.Array,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    *,
    mesh: Mesh,
) -> tuple[jax.Array, Metrics]:
    """kl_weight * KL + contrastive_weight * InfoNCE of one global batch, and its metrics.

    The KL is the mean over the queries that have a list, InfoNCE's the mean over all queries. In
    InfoNCE the entries of all lists are candidates like others: a known positive among them is no
    negative of its query. A weight of 0 leaves its term out of the loss, whatever the term is; the
    KL is measured all the same.
    """
    distillation = config.distillation
    assert distillation is not None  # TrainConfig checks it
    vectors = batch_vectors(params, frozen, batch, step, config, architecture, mesh=mesh)
    tau = temperature(params, frozen)
    shards = data_shards(mesh)
    queries = gather_slots(vectors, batch.query_slot, shards=shards)
    candidates = gather_slots(vectors, batch.candidate_slot, shards=shards)
    # A query's candidates stand side by side on its own shard, its list last.
    own = candidates.reshape(len(queries), -1, vectors.shape[-1])[:, -distillation.depth :]
    lists = batch.lists
    divergence = listwise_kl(
        list_cosines(queries, own),
        teacher_logits(
            lists.yes,
            lists.no,
            lists.recall,
            form=distillation.teacher,
            weight=lists.weight[:, None],
        ),
        valid=lists.valid,
        temperature=tau,
        teacher_temperature=distillation.teacher_temperature,
    )
    # Not 0 * KL: a teacher that is no number must not reach a loss that does not ask for it.
    loss = jnp.zeros((), jnp.float32)
    if distillation.kl_weight > 0:
        loss = distillation.kl_weight * divergence.loss
    metrics = {
        "kl": divergence.loss,
        "agreement": divergence.agreement,
        "lists": divergence.queries,
        "temperature": tau,
    }
    if distillation.contrastive_weight > 0:
        result = in_batch_loss(
            vectors, batch, config, tau=tau, bias=params.get("sigmoid_bias"), mesh=mesh
        )
        loss = loss + distillation.contrastive_weight * result.loss
        metrics |= {
            "contrastive": result.loss,
            "accuracy": result.accuracy,
            "positive_similarity": result.positive_similarity,
        }
    return loss, metrics | {"loss": loss}
