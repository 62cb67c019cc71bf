"""The float32 pass of exact search: blocks of stored rows through the devices, the best kept.

A block goes to the devices as it is stored and is decoded there. On a mesh each device takes a
part of every block and keeps its own best; they meet once, at the end.
"""

from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from marvel_jax.retrieval.store_types import StoreType

QUERY_BLOCK = 1024
_AXIS = "corpus"


class Blocks(NamedTuple):
    """A corpus as it comes from disk: (first place, stored rows [<= rows, W]) in order."""

    stream: Iterator[tuple[int, np.ndarray]]
    dtype: StoreType
    dimension: int
    rows: int


def best_places(
    queries: np.ndarray, blocks: Blocks, *, kept: int, mesh: Mesh | None
) -> tuple[np.ndarray, np.ndarray]:
    """Float32 scores and places [Q, kept] of the best of the stream; -inf and -1 where fewer.

    `blocks.rows` must divide among the devices of the mesh, and each part hold `kept` rows.
    """
    if mesh is not None:  # one axis over all devices, whatever axes are for training
        mesh = Mesh(mesh.devices.ravel(), (_AXIS,), axis_types=(AxisType.Auto,))
    place = _Placement(mesh)
    query_block = min(QUERY_BLOCK, power_of_two(len(queries)))
    starts = range(0, len(queries), query_block)
    padded = (_pad(queries[start : start + query_block], query_block) for start in starts)
    parts = [place.whole(part) for part in padded]
    shape = (place.devices, query_block, kept)
    none = (np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32))
    best = [(place.split(none[0]), place.split(none[1])) for _ in starts]
    step = _program(mesh, blocks.dtype, blocks.dimension)
    before = best[0][0]
    # Corpus outside, queries inside: the disk is read once whatever the number of queries.
    for start, stored in blocks.stream:
        on_device = step.decode(place.split(_pad(stored, blocks.rows)))
        # Dispatch runs ahead of the devices: without waiting, the blocks would pile up.
        before.block_until_ready()
        before = best[-1][0]
        for number, part in enumerate(parts):
            best[number] = step.merge(*best[number], part, on_device, start, len(stored))
    merged = [step.meet(*one) for one in best]
    scores = np.concatenate([np.asarray(one) for one, _ in merged])[: len(queries)]
    places = np.concatenate([np.asarray(one) for _, one in merged])[: len(queries)]
    return scores, np.where(np.isneginf(scores), -1, places)


def local_mesh() -> Mesh | None:
    """A mesh of this process's devices; None where there is one, or one was set as default."""
    devices = jax.local_devices()
    if len(devices) == 1 or getattr(jax.config, "jax_default_device", None) is not None:
        return None
    return Mesh(np.array(devices), (_AXIS,), axis_types=(AxisType.Auto,))


def power_of_two(number: int) -> int:
    """The least power of two from 8 on that is not below `number`."""
    return 1 << max(3, (number - 1).bit_length())


class _Placement:
    """Puts arrays on the devices: whole on each, or split by their first axis."""

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self.devices = 1 if mesh is None else mesh.size

    def whole(self, array: np.ndarray) -> jax.Array:
        return self._put(array, PartitionSpec())

    def split(self, array: np.ndarray) -> jax.Array:
        return self._put(array, PartitionSpec(_AXIS))

    def _put(self, array: np.ndarray, spec: PartitionSpec) -> jax.Array:
        if self.mesh is None:
            # Nobody writes to these arrays: on a CPU they need not be copied.
            return jax.device_put(array, may_alias=True)
        # Every process holds the array; each gives its own devices their parts.
        sharding = NamedSharding(self.mesh, spec)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


class _Program(NamedTuple):
    decode: jax.stages.Wrapped
    merge: jax.stages.Wrapped
    meet: jax.stages.Wrapped


@lru_cache(maxsize=32)
def _program(mesh: Mesh | None, dtype: StoreType, dimension: int) -> _Program:
    """What runs on the devices, compiled once per mesh, type and shape."""
    decode = partial(_decode, dtype=dtype, dimension=dimension)
    if mesh is None:
        return _Program(jax.jit(decode), jax.jit(partial(_merge, part=0)), jax.jit(_meet))
    split, whole = PartitionSpec(_AXIS), PartitionSpec()

    def merge(
        best: jax.Array,
        places: jax.Array,
        queries: jax.Array,
        block: jax.Array,
        start: jax.Array,
        count: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        part = jax.lax.axis_index(_AXIS)
        return _merge(best, places, queries, block, start, count, part=part)

    inputs = (split, split, whole, split, whole, whole)
    return _Program(
        jax.jit(jax.shard_map(decode, mesh=mesh, in_specs=split, out_specs=split)),
        jax.jit(
            jax.shard_map(
                merge, mesh=mesh, in_specs=inputs, out_specs=(split, split), check_vma=False
            )
        ),
        jax.jit(_meet, out_shardings=NamedSharding(mesh, whole)),
    )


def _decode(stored: jax.Array, *, dtype: StoreType, dimension: int) -> jax.Array:
    """`store_types.decode` on the device, number for number."""
    if dtype == "float32":
        return stored
    if dtype == "bfloat16":
        return jax.lax.bitcast_convert_type(stored.astype(jnp.uint32) << 16, jnp.float32)
    if dtype == "int8":
        scale = jax.lax.bitcast_convert_type(stored[:, dimension:], jnp.float32)
        numbers = jax.lax.bitcast_convert_type(stored[:, :dimension], jnp.int8)
        return numbers.astype(jnp.float32) * scale[:, None]
    bits = (stored[:, :, None] >> jnp.arange(8, dtype=jnp.uint8)) & 1
    size = np.float32(1 / dimension**0.5)
    return jnp.where(bits.reshape(len(stored), -1)[:, :dimension] > 0, size, -size)


def _merge(
    best: jax.Array,
    places: jax.Array,
    queries: jax.Array,
    block: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    part: jax.Array | int,
) -> tuple[jax.Array, jax.Array]:
    """A device's best [1, Q, kept] and their places after its part of a block of `count` rows."""
    rows = block.shape[0]
    scores = jnp.matmul(queries, block.T, precision=jax.lax.Precision.HIGHEST)
    within = part * rows + jnp.arange(rows)
    scores = jnp.where(within < count, scores, -jnp.inf)
    block_best, columns = jax.lax.top_k(scores, best.shape[2])
    found = start + part * rows + columns.astype(jnp.int32)
    both = jnp.concatenate([best[0], block_best], axis=1)
    all_places = jnp.concatenate([places[0], found], axis=1)
    merged, order = jax.lax.top_k(both, best.shape[2])
    return merged[None], jnp.take_along_axis(all_places, order, axis=1)[None]


def _meet(best: jax.Array, places: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The best of all devices: [devices, Q, kept] to [Q, kept]."""
    devices, queries, kept = best.shape
    if devices == 1:
        return best[0], places[0]
    together = best.swapaxes(0, 1).reshape(queries, devices * kept)
    merged, order = jax.lax.top_k(together, kept)
    spots = places.swapaxes(0, 1).reshape(queries, devices * kept)
    return merged, jnp.take_along_axis(spots, order, axis=1)


def _pad(rows: np.ndarray, count: int) -> np.ndarray:
    if len(rows) == count:
        return rows
    return np.concatenate([rows, np.zeros((count - len(rows), rows.shape[1]), rows.dtype)])
