"""Weights on this machine's devices: their type, their hash, and the kernels that run there."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.kernels import choice
from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh
from marvel_jax.parallel.sharding import replicated

_DTYPES = ("float32", "bfloat16", "float16")


def checked_dtype(name: str) -> Any:
    """The type of weights and matmuls by its name.

    Raises:
      MarvelError: it is none of float32, bfloat16 and float16.
    """
    if name not in _DTYPES:
        raise MarvelError(f"dtype={name!r}: choose one of {', '.join(_DTYPES)}.")
    return jnp.dtype(name)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """A mesh of these devices, or of this process's; None where there is one only."""
    found = jax.local_devices() if devices is None else list(devices)
    return make_mesh(MeshConfig(), devices=found) if len(found) > 1 else None


def copied(params: Any, mesh: Mesh) -> Any:
    """The weights on every device of the mesh."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, replicated(mesh)), params)


def first_copy(params: Any) -> Any:
    """The first device's share of `copied` weights, which is all of them; nothing is moved."""
    return jax.tree.map(lambda leaf: leaf.addressable_shards[0].data, params)


def kernels(
    asked: str, architecture: Qwen2VLConfig, dtype: Any, *, mesh: Mesh | None = None
) -> choice.Chosen:
    """The attention kernels for a mesh, or for the device that arrays go to by themselves.

    Raises:
      MarvelError: a kernel that was asked for cannot be had there.
    """
    (device,) = jnp.zeros(()).devices() if mesh is None else [mesh.devices.flat[0]]
    return choice.choose(
        asked,
        platform=device.platform,
        architecture=architecture,
        dtype=dtype,
        mesh=mesh,
        row_axes=() if mesh is None else DATA_AXES,
        capability=getattr(device, "compute_capability", None),
        field="kernel",
    )


def content_hash(params: Any) -> str:
    """Of weights in the type they are used in, by their names in the tree."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return hash_bytes(
        *(
            chunk
            for path, leaf in leaves
            for chunk in (
                jax.tree_util.keystr(path).encode(),
                np.asarray(jax.device_get(leaf)).tobytes(),
            )
        )
    )
