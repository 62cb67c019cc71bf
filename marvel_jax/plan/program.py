"""The real step over shapes alone: no weight is drawn, no batch is read."""

import functools
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from marvel_jax.data.batch import Batch, Rows
from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.published import PUBLISHED
from marvel_jax.models.qwen2_vl import embed, init_params
from marvel_jax.parallel.sharding import batch_sharding, replicated
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.state import TrainState, initial_values, value_shardings
from marvel_jax.training.step import attention_kernels, make_train_step


def architecture_of(config: TrainConfig) -> Qwen2VLConfig:
    """The shape of the config's model: published, of a local folder, or from scratch.

    Raises:
      MarvelError: `model.source` is neither a published model nor a folder here.
    """
    source = config.model.source
    if source is None:
        assert config.model.scratch is not None  # ModelConfig checks it
        return config.model.scratch
    if source in PUBLISHED:
        return PUBLISHED[source]
    if not Path(source).is_dir():
        raise MarvelError(
            f"model.source={source} is neither a folder here nor a model that can be planned "
            f"without fetching it: {', '.join(PUBLISHED)}."
        )
    return Qwen2VLConfig.from_folder(source)


class Program(NamedTuple):
    """A traced step, ready to be lowered, and what its arguments take on one device."""

    traced: Any
    weight_bytes: int  # of the frozen and the trained weights
    moment_bytes: int  # of the optimiser
    batch_bytes: int


def trace_train_step(
    config: TrainConfig, architecture: Qwen2VLConfig, batch: Batch, mesh: Mesh
) -> Program:
    """The step of `training.step`, its state's shapes and places as a run has them."""
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    params, frozen = jax.eval_shape(
        lambda: initial_values(config, architecture, weights=None, temperature=None)
    )
    places, frozen_places = value_shardings(params, frozen, config, architecture, mesh)
    moments = jax.eval_shape(optimizer.init, params)
    moment_places = optax.tree_map_params(
        optimizer,
        lambda _, place: place,
        moments,
        places,
        transform_non_params=lambda _: replicated(mesh),
    )
    step: Any = make_train_step(
        config,
        architecture,
        optimizer,
        mesh,
        shardings=TrainState(replicated(mesh), places, moment_places),
        frozen_shardings=frozen_places,
    )
    count = jax.ShapeDtypeStruct((), jnp.int32)
    finite = jax.ShapeDtypeStruct((), np.bool_)
    return Program(
        step.trace(TrainState(count, params, moments), frozen, batch, finite),
        weight_bytes=_local_bytes(params, places) + _local_bytes(frozen, frozen_places),
        moment_bytes=_local_bytes(moments, moment_places),
        batch_bytes=_local_bytes(batch, jax.tree.map(lambda _: batch_sharding(mesh), batch)),
    )


def trace_encode_step(
    config: TrainConfig, architecture: Qwen2VLConfig, rows: Rows, mesh: Mesh, *, items: int
) -> Program:
    """What `retrieval.embedder` compiles for one call, on a mesh of the one device that it uses."""
    dtype = jnp.dtype(config.model.dtype)
    params = jax.eval_shape(lambda: init_params(architecture, key=jax.random.key(0)))
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), params)
    step = jax.jit(
        functools.partial(
            embed,
            config=architecture,
            items_per_row=items,
            attention=config.embedding.attention,
            pooling=config.embedding.pooling,
            dtype=dtype,
            kernels=attention_kernels(config, architecture, mesh).kernels,
        ),
        in_shardings=replicated(mesh),
    )
    place = replicated(mesh)
    return Program(
        step.trace(params, rows),
        weight_bytes=_local_bytes(params, jax.tree.map(lambda _: place, params)),
        moment_bytes=0,
        batch_bytes=_local_bytes(rows, jax.tree.map(lambda _: place, rows)),
    )


def _local_bytes(tree: Any, places: Any) -> int:
    """What a tree of shapes takes on one device."""
    sizes = jax.tree.map(
        lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        tree,
        places,
    )
    return sum(jax.tree.leaves(sizes))
