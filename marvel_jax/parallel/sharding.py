"""Rules from logical axes to mesh axes, and the shardings that follow from them."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.mesh import DATA_AXES, data_shards

# An array of fewer numbers costs nothing to hold on every device: 4 MiB in float32.
LARGE = 2**20


@dataclass(frozen=True)
class ShardingRules:
    """Which mesh axis each logical axis of a parameter is split over; None = replicated.

    The names are those of `models.names`. Heads and hidden units go over "tensor", the model
    dimension over "fsdp", as in Megatron and ZeRO-3; so does the rank of an adapter's half that has
    no other axis there.
    """

    layers: str | None = None
    vocab: str | None = "tensor"
    embed: str | None = "fsdp"
    heads: str | None = "tensor"
    kv_heads: str | None = "tensor"
    mlp: str | None = "tensor"
    vision_embed: str | None = "fsdp"
    vision_heads: str | None = "tensor"
    vision_mlp: str | None = "tensor"
    patch: str | None = None
    lora_rank: str | None = "fsdp"

    def spec(
        self, axes: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh
    ) -> PartitionSpec:
        """The partition of one parameter of `shape` with logical `axes`.

        A dimension that its mesh axis does not divide is replicated: that is always correct,
        only less frugal. A mesh axis is used once, by the first dimension that asks for it.
        Vectors (biases and gains, with or without layers) are not split over the data axes: to
        fetch one costs a message each time and saves kilobytes.

        Raises:
          MarvelError: a logical axis that no rule names, or a rule for an axis the mesh has not.
        """
        used: set[str] = set()
        parts: list[str | None] = []
        vector = len(shape) - ("layers" in axes) < 2
        for axis, size in zip(axes, shape, strict=True):
            target = self.target(axis, mesh)
            if vector and target in DATA_AXES:
                target = None
            if target is None or target in used or size % mesh.shape[target]:
                parts.append(None)
            else:
                used.add(target)
                parts.append(target)
        return PartitionSpec(*parts)

    def target(self, axis: str | None, mesh: Mesh) -> str | None:
        """The mesh axis that a logical axis is to be split over, or None.

        Raises:
          MarvelError: no rule names the axis, or its rule names an axis the mesh has not.
        """
        if axis is None:
            return None
        known = {field.name for field in fields(self)}
        if axis not in known:
            raise MarvelError(f"no sharding rule for axis {axis!r}; known: {sorted(known)}.")
        target = getattr(self, axis)
        if target is not None and target not in mesh.shape:
            raise MarvelError(
                f"sharding.{axis}={target!r}: the mesh has the axes {', '.join(mesh.shape)}."
            )
        return target


def parameter_shardings(logical_axes: Any, shapes: Any, mesh: Mesh, *, rules: ShardingRules) -> Any:
    """A tree of `NamedSharding` beside a tree of arrays or shapes.

    `logical_axes` is the same nested dict, its leaves tuples of axis names (or None).
    """
    return jax.tree.map(
        lambda leaf, axes: NamedSharding(mesh, rules.spec(axes, leaf.shape, mesh)),
        shapes,
        logical_axes,
    )


def check_sharded(
    shapes: Mapping[str, Any],
    logical_axes: Mapping[str, tuple[str | None, ...]],
    mesh: Mesh,
    rules: ShardingRules,
) -> None:
    """Holds every large array (`LARGE` numbers or more) against the rules.

    Both mappings are flat, by path; an array must be split over each mesh axis of more than one
    device that the rule of one of its axes names. A small one may be replicated where its size
    does not divide.

    Raises:
      MarvelError: one is not; the message names it, its axis, both sizes and what would divide.
    """
    for path, leaf in shapes.items():
        shape, axes = tuple(leaf.shape), logical_axes[path]
        if np.prod(shape, dtype=np.int64) < LARGE:
            continue
        split = rules.spec(axes, shape, mesh)
        wanted = [
            (rules.target(axis, mesh), axis, size) for axis, size in zip(axes, shape, strict=True)
        ]
        for target, axis, size in wanted:
            if target is None or mesh.shape[target] == 1 or target in split:
                continue
            divisors = [n for n in range(1, 2 * mesh.shape[target]) if size % n == 0]
            raise MarvelError(
                f"{path} {list(shape)} would lie whole on every device of the mesh axis "
                f"{target!r}: its axis {axis!r} of {size} is not divisible by mesh.{target}="
                f"{mesh.shape[target]}. Sizes that divide it: {', '.join(map(str, divisors))}; or "
                f"replicate it on purpose with sharding.{axis}=None."
            )


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over every data shard, in shard order."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXES))


def local_data_shards(mesh: Mesh) -> range:
    """The data shards whose rows this process must supply: a contiguous range.

    Raises:
      MarvelError: the mesh gives this process shards that do not follow one another.
    """
    shards = data_shards(mesh)
    grid = np.asarray(mesh.devices).reshape(shards, -1)
    here = jax.process_index()
    mine = [i for i in range(shards) if any(device.process_index == here for device in grid[i])]
    if mine != list(range(mine[0], mine[0] + len(mine))):
        raise MarvelError(
            f"process {here} holds data shards {mine}, which do not follow one another: put the "
            "tensor axis inside a host."
        )
    return range(mine[0], mine[0] + len(mine))


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of a batch (numpy leaves) on its devices, as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_process_local_data(sharding, leaf), batch)
