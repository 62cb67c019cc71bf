"""The train step: encode the rows, pick out queries and candidates, one loss over all of them."""

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from marvel_jax.losses.contrastive import Implementation, info_nce
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.kernels import choice
from marvel_jax.models.lora import token_keys
from marvel_jax.models.qwen2_vl import embed
from marvel_jax.parallel.activations import gathered, rows_in_place
from marvel_jax.parallel.mesh import DATA_AXES, data_shards
from marvel_jax.parallel.sharding import batch_sharding, replicated
from marvel_jax.training.gradcache import encode_in_chunks
from marvel_jax.training.optimizer import clamp_temperature, learning_rate_schedule
from marvel_jax.training.state import TrainState, model_weights

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig

Metrics = dict[str, jax.Array]
Step = Callable[[TrainState, Any, Any, Any], tuple[TrainState, Metrics]]

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
    candidates = data.global_batch * (data.positives_per_query + data.hard_negatives)
    logits = 4 * (data.global_batch // shards) * candidates
    gathered_candidates = 4 * candidates * width if shards > 1 else 0
    if logits > WHOLE_LOGITS_BYTES or gathered_candidates > GATHERED_BYTES:
        return "ring" if config.loss.form == "softmax" else "gather"
    return "dense" if shards == 1 else "gather"


def attention_kernels(
    config: "TrainConfig", architecture: Qwen2VLConfig, mesh: Mesh
) -> choice.Chosen:
    """What `model.kernel` means on the devices of this mesh, be they here or only named.

    Raises:
      MarvelError: it asks for what cannot be.
    """
    device = mesh.devices.flat[0]
    return choice.choose(
        config.model.kernel,
        platform=device.platform,
        architecture=architecture,
        dtype=config.model.dtype,
        one_item_rows=config.data.row.items == 1,
        mesh=mesh,
        row_axes=DATA_AXES,
        capability=getattr(device, "compute_capability", None),
    )


def gather_slots(vectors: jax.Array, slots: jax.Array, *, shards: int) -> jax.Array:
    """[N, D]: the vectors at shard-local slots of [R, G, D], shard by shard.

    Each shard reads only its own rows, so the mesh moves nothing here.
    """
    rows, items, width = vectors.shape
    local = vectors.reshape(shards, rows // shards * items, width)
    index = slots.reshape(shards, -1, 1)
    return jnp.take_along_axis(local, index, axis=1).reshape(-1, width)


def to_global(indices: jax.Array, *, size: int, shards: int) -> jax.Array:
    """Indices into a shard's own `size` things, as indices into those of all shards; -1 stays."""
    first = size * jnp.arange(shards, dtype=indices.dtype)
    local = indices.reshape(shards, -1)
    return jnp.where(local < 0, local, local + first[:, None]).reshape(indices.shape)


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
    shards = data_shards(mesh)
    values = {
        "weights": model_weights(params, frozen),
        "adapters": params.get("adapters"),
        "step": step,
    }
    vectors = encode_in_chunks(
        functools.partial(_encode, config=config, architecture=architecture, mesh=mesh),
        values,
        (batch.rows, batch.item_key),
        chunk_rows=config.chunk_rows,
        mesh=mesh,
    )
    tau = jnp.exp((params if "log_temperature" in params else frozen)["log_temperature"])
    queries, candidates = batch.query_slot.shape[0], batch.candidate_slot.shape[0]
    result = info_nce(
        gather_slots(vectors, batch.query_slot, shards=shards),
        gather_slots(vectors, batch.candidate_slot, shards=shards),
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
        bias=params.get("sigmoid_bias"),
        implementation=loss_implementation(
            config, shards=shards, width=architecture.text.hidden_size
        ),
        mesh=mesh,
        axes=DATA_AXES,
        tile=config.loss.tile,
    )
    metrics = {
        "loss": result.loss,
        "accuracy": result.accuracy,
        "positive_similarity": result.positive_similarity,
        "temperature": tau,
    }
    return result.loss, metrics


def _encode(
    values: dict[str, Any],
    part: tuple[Any, jax.Array],
    axes: Sequence[str],
    *,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    mesh: Mesh,
) -> jax.Array:
    """The vectors [R, G, D] of some rows that are split over the mesh axes `axes`."""
    rows, item_key = part
    weights, lora = values["weights"], config.model.adapters
    table = gathered(
        weights["language"]["token_embedding"], ("vocab", "embed"), mesh, rules=config.sharding
    )
    weights = weights | {"language": weights["language"] | {"token_embedding": table}}
    keys = None
    if lora is not None and lora.dropout > 0:
        keys = token_keys(rows.segments, item_key, seed=config.seed, step=values["step"])
    kernels = attention_kernels(config, architecture, mesh).kernels
    with rows_in_place(mesh, num_rows=len(rows.tokens), axes=axes):
        return embed(
            weights,
            rows,
            architecture,
            items_per_row=config.data.row.items,
            attention=config.embedding.attention,
            pooling=config.embedding.pooling,
            dtype=jnp.dtype(config.model.dtype),
            remat=config.model.remat,
            adapters=values["adapters"],
            lora=lora,
            dropout_keys=keys,
            kernels=kernels.over(tuple(axes)),
        ).vectors


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
        gradient = jax.grad(contrastive_loss, has_aux=True)
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
