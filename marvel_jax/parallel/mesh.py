"""The device mesh: three named axes, and how many shards of data they make."""

from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh

from marvel_jax.errors import MarvelError

MESH_AXES = ("data", "fsdp", "tensor")
# A batch is split over both: "fsdp" devices hold different rows and different weights.
DATA_AXES = ("data", "fsdp")


@dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis; -1 on one axis takes all devices that the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = (self.data, self.fsdp, self.tensor)
        if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
            raise MarvelError(
                f"mesh data={self.data} fsdp={self.fsdp} tensor={self.tensor}: each axis is a "
                "positive number of devices, and at most one of them is -1 (all that are left)."
            )


def make_mesh(config: MeshConfig, *, devices: list[jax.Device] | None = None) -> Mesh:
    """Builds the mesh over all devices of all hosts.

    Axes are Auto: the compiler lays out the model, and only losses and kernels are laid out by
    hand (`jax.make_mesh` would default to Explicit axes).

    Raises:
      MarvelError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp, config.tensor]
    fixed = 1
    for size in sizes:
        fixed *= size if size > 0 else 1
    if -1 in sizes and len(devices) % fixed == 0:
        sizes[sizes.index(-1)] = len(devices) // fixed
    data, fsdp, tensor = sizes
    if data * fsdp * tensor != len(devices):
        raise MarvelError(
            f"mesh data={config.data} fsdp={config.fsdp} tensor={config.tensor} does not cover "
            f"{len(devices)} devices: the product of the axes must be {len(devices)}."
        )
    shape = (data, fsdp, tensor)
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def data_shards(mesh: Mesh) -> int:
    """In how many parts the mesh splits a batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]
