"""From a batch's rows to the vectors of its items, in chunks, on any mesh."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.kernels import choice
from marvel_jax.models.lora import token_keys
from marvel_jax.models.qwen2_vl import embed
from marvel_jax.parallel.activations import gathered, rows_in_place
from marvel_jax.parallel.mesh import DATA_AXES
from marvel_jax.training.gradcache import encode_in_chunks
from marvel_jax.training.state import model_weights

if TYPE_CHECKING:  # a bare accelerator image has none of what configs need
    from marvel_jax.training.config import TrainConfig

Metrics = dict[str, jax.Array]


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


def differentiated(
    params: dict[str, Any], frozen: dict[str, Any], step: jax.Array
) -> dict[str, Any]:
    """All that the network reads besides its rows, as `gradcache.encode_in_chunks` takes it."""
    return {
        "weights": model_weights(params, frozen),
        "adapters": params.get("adapters"),
        "step": step,
    }


def temperature(params: dict[str, Any], frozen: dict[str, Any]) -> jax.Array:
    """The temperature, whether it is learned or not."""
    return jnp.exp((params if "log_temperature" in params else frozen)["log_temperature"])


def batch_vectors(
    params: dict[str, Any],
    frozen: dict[str, Any],
    batch: Any,
    step: jax.Array,
    config: "TrainConfig",
    architecture: Qwen2VLConfig,
    *,
    mesh: Mesh,
) -> jax.Array:
    """The vectors [R, G, D] of every segment of every row of a batch."""
    return encode_in_chunks(
        functools.partial(_encode, config=config, architecture=architecture, mesh=mesh),
        differentiated(params, frozen, step),
        (batch.rows, batch.item_key),
        chunk_rows=config.chunk_rows,
        mesh=mesh,
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


def with_gathered_table(
    weights: dict[str, Any], config: "TrainConfig", mesh: Mesh
) -> dict[str, Any]:
    """The weights with the table that is read by index fetched whole over the data axes."""
    table = gathered(
        weights["language"]["token_embedding"], ("vocab", "embed"), mesh, rules=config.sharding
    )
    return weights | {"language": weights["language"] | {"token_embedding": table}}


def dropout_keys(
    values: dict[str, Any], rows: Any, item_key: jax.Array, config: "TrainConfig"
) -> jax.Array | None:
    """The dropout key of every token, or None where nothing is dropped."""
    lora = config.model.adapters
    if lora is None or lora.dropout == 0:
        return None
    return token_keys(rows.segments, item_key, seed=config.seed, step=values["step"])


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
    weights = with_gathered_table(values["weights"], config, mesh)
    keys = dropout_keys(values, rows, item_key, config)
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
            lora=config.model.adapters,
            dropout_keys=keys,
            kernels=kernels.over(tuple(axes)),
        ).vectors
