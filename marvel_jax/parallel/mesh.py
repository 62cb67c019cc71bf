"""The device mesh: three named axes, and how many shards of data they make."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from marvel_jax.errors import MarvelError

MESH_AXES = ("data", "fsdp", "tensor")
# A batch is split over both: "fsdp" devices hold different rows and different weights.
DATA_AXES = ("data", "fsdp")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 on one axis takes all devices that the others leave.

    `groups` is the number of hosts or slices that a slow network joins. The data axis goes across
    them, fsdp and tensor stay inside of one, so that between groups only gradients and the loss's
    embeddings travel. 1 = all devices are equally near.
    """

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise MarvelError(
                f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor}: each axis is a "
                "positive number of devices, and at most one of them is -1 (all that are left)."
            )
        if self.groups < 1:
            raise MarvelError(f"mesh.groups={self.groups} must be at least 1.")


def make_mesh(config: MeshConfig, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Builds the mesh over all devices of all hosts.

    Axes are Auto: the compiler lays out the model, and only losses and kernels are laid out by
    hand (`jax.make_mesh` would default to Explicit axes).

    Raises:
      MarvelError: the axes do not multiply to the number of devices, or the devices do not form
        `groups` equal groups that the data axis can go across.
    """
    grid = device_grid(config, jax.devices() if devices is None else devices)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def device_grid(config: MeshConfig, devices: Sequence[Any]) -> np.ndarray:
    """The devices in the places of the mesh: [data, fsdp, tensor].

    Groups follow one another along the data axis; within each, devices lie as its network does.
    Raises as `make_mesh` does.
    """
    data, fsdp, tensor = _sizes(config, len(devices))
    if config.groups == 1:
        slices = len(_distinct(devices, "slice_index"))
        if slices > 1:
            raise MarvelError(
                f"mesh.groups=1, but the devices form {slices} slices that a slow network joins: "
                f"use mesh.groups={slices}."
            )
        return _near_each_other((data, fsdp, tensor), devices)
    if data % config.groups:
        raise MarvelError(
            f"mesh.groups={config.groups} does not divide mesh.data={data}: the data axis goes "
            f"across the groups, so use mesh.data={_up_to(data, config.groups)} or another number "
            "of groups."
        )
    shape = (data // config.groups, fsdp, tensor)
    groups = _groups(devices, config.groups)
    return np.concatenate([_near_each_other(shape, group) for group in groups])


def _sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = math.prod(size for size in sizes if size > 0)
    if -1 in sizes and devices % fixed == 0:
        sizes[sizes.index(-1)] = devices // fixed
    data, fsdp, tensor = sizes
    if data * fsdp * tensor != devices:
        raise MarvelError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not cover "
            f"{devices} devices: the product of the axes must be {devices}."
        )
    return data, fsdp, tensor


def _groups(devices: Sequence[Any], groups: int) -> list[list[Any]]:
    """The devices of each group: of as many whole slices or hosts as make a group."""
    kind, attribute = "slices", "slice_index"
    if len(_distinct(devices, attribute)) < 2:
        kind, attribute = "hosts", "process_index"
    units: dict[int, list[Any]] = {}
    for device in devices:
        units.setdefault(getattr(device, attribute), []).append(device)
    sizes = {unit: len(members) for unit, members in sorted(units.items())}
    if len(units) % groups or len(set(sizes.values())) > 1:
        raise MarvelError(
            f"mesh.groups={groups}: there are {len(units)} {kind}, of {list(sizes.values())} "
            f"devices. Groups are made of whole {kind} of one size: use mesh.groups={len(units)}, "
            "or 1 where all devices are equally near."
        )
    each = len(units) // groups
    order = sorted(units)
    return [
        [device for unit in order[start : start + each] for device in units[unit]]
        for start in range(0, len(order), each)
    ]


def _distinct(devices: Sequence[Any], attribute: str) -> set[Any]:
    return {getattr(device, attribute, None) for device in devices}


def _near_each_other(shape: tuple[int, ...], devices: Sequence[Any]) -> np.ndarray:
    """The devices of one network in a grid whose last axes are its nearest neighbours."""
    # A mesh axis may take part of a physical one: any shape then works, at worst a slower one.
    return np.asarray(
        mesh_utils.create_device_mesh(shape, devices=devices, allow_split_physical_axes=True)
    )


def _up_to(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def data_shards(mesh: Mesh) -> int:
    """In how many parts the mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
