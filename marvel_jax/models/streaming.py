"""Global arrays filled from a reader piece by piece, so that the host never holds a whole one."""

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

Region = tuple[slice, ...]

# Long enough that the cost of a dispatch is lost in it, short beside the weights of any real model.
CHUNK_BYTES = 8 * 2**20


def stream(
    read: Callable[[Region], np.ndarray],
    *,
    shape: tuple[int, ...],
    sharding: Sharding,
    dtype: Any,
    stacked: bool,
    outer: int,
    chunk_bytes: int,
) -> jax.Array:
    """The array that `read` describes, on the devices that `sharding` gives it.

    Each process reads what its own devices hold, and each region once however many of them hold it.
    Host memory beside the shards is a few times `chunk_bytes`.

    Args:
      read: (a region with start and stop on every axis) -> its values, of `dtype`.
      shape: of the global array.
      sharding: of any kind that cuts `shape` evenly.
      dtype: of the result.
      stacked: axis 0 counts layers, each stored by itself: one is read at a time.
      outer: the axis to cut a layer along, layers not counted.
      chunk_bytes: read at a time, over all devices of this process.
    """
    places = {
        device: _region(index, shape)
        for device, index in sharding.addressable_devices_indices_map(shape).items()
    }
    itemsize = np.dtype(dtype).itemsize
    distinct = {_key(region): region for region in places.values()}
    if sum(math.prod(_sizes(region)) for region in distinct.values()) * itemsize <= chunk_bytes:
        values = {key: read(region) for key, region in distinct.items()}
        return jax.make_array_from_callback(
            shape, sharding, lambda index: values[_key(_region(index, shape))]
        )
    # One program fills the shards of all our devices at once: joined along axis 0 they are an array
    # of a mesh of their own, whatever the sharding. Donated, a shard is never held twice.
    mesh = Mesh(np.array(list(places)), ("device",), axis_types=(AxisType.Auto,))
    with jax.set_mesh(mesh):
        joined = NamedSharding(mesh, PartitionSpec("device"))
        shard = sharding.shard_shape(shape)
        shards = _zeros((len(places) * shard[0], *shard[1:]), np.dtype(dtype), joined)
        budget = chunk_bytes // itemsize // len(places)
        for window in _windows(shard, stacked=stacked, outer=outer, budget=budget):
            piece = _piece(read, places, window, joined)
            start = np.array([part.start for part in window], np.int32)
            shards = _fill(shards, piece, start, mesh=mesh)
            # Or the reader would run ahead of the copies and fill the host with pieces.
            shards.block_until_ready()
    own = [part.data for part in shards.addressable_shards]
    return jax.make_array_from_single_device_arrays(shape, sharding, own)


def _piece(
    read: Callable[[Region], np.ndarray],
    places: dict[jax.Device, Region],
    window: Region,
    joined: NamedSharding,
) -> jax.Array:
    """The same window of every shard, joined as the shards are."""
    values: dict[Any, np.ndarray] = {}
    pieces = []
    for device, region in places.items():
        part = tuple(
            slice(whole.start + cut.start, whole.start + cut.stop)
            for whole, cut in zip(region, window, strict=True)
        )
        if _key(part) not in values:
            values[_key(part)] = read(part)
        pieces.append(jax.device_put(values[_key(part)], device))
    rows, *rest = pieces[0].shape
    return jax.make_array_from_single_device_arrays((len(pieces) * rows, *rest), joined, pieces)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _zeros(shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding) -> jax.Array:
    # Under jit: outside of it jnp.zeros makes the array on the first device and copies it over.
    return jax.lax.with_sharding_constraint(jnp.zeros(shape, dtype), sharding)


@functools.partial(jax.jit, donate_argnums=0, static_argnames="mesh")
def _fill(shards: jax.Array, piece: jax.Array, start: jax.Array, *, mesh: Mesh) -> jax.Array:
    own = PartitionSpec("device")
    fill = jax.shard_map(
        lambda shard, part, at: jax.lax.dynamic_update_slice(shard, part, tuple(at)),
        mesh=mesh,
        in_specs=(own, own, PartitionSpec()),
        out_specs=own,
    )
    return fill(shards, piece, start)


def _windows(shard: tuple[int, ...], *, stacked: bool, outer: int, budget: int) -> Iterator[Region]:
    """Boxes of a shard that cover it once, each of about `budget` numbers at most."""
    first = int(stacked)
    layer = shard[first:]
    count = min(layer[outer], -(-math.prod(layer) // max(1, budget)))
    step = -(-layer[outer] // count)
    for number in range(shard[0] if stacked else 1):
        stack = (slice(number, number + 1),) * first
        for begin in range(0, layer[outer], step):
            box = [slice(0, size) for size in layer]
            box[outer] = slice(begin, min(begin + step, layer[outer]))
            yield (*stack, *box)


def _region(index: Any, shape: tuple[int, ...]) -> Region:
    """JAX's index of a shard, with every start and stop written out."""
    return tuple(slice(*part.indices(size)[:2]) for part, size in zip(index, shape, strict=True))


def _sizes(region: Region) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in region)


def _key(region: Region) -> tuple[tuple[int, int], ...]:
    # A slice can be a key of a dict from Python 3.12 on.
    return tuple((part.start, part.stop) for part in region)
