"""Which kernel computes attention: by platform, architecture and type, with the reason."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.sharding import Mesh

from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.kernels import XLA, Kernel, KernelName, Kernels

ASKED = ("auto", "xla", "pallas", "cudnn")

# Of an NVIDIA GPU: what Triton, which compiles the kernels, and cuDNN's attention begin with.
_LEAST_CAPABILITY = (8, 0)
# A larger head's tiles do not fit into the registers of a GPU.
_LARGEST_HEAD = 128


class Chosen(NamedTuple):
    """The kernels, and a line that says which they are and why."""

    kernels: Kernels
    line: str


class _Tower(NamedTuple):
    """What a kernel must be able to do."""

    name: str
    heads: int
    head_size: int
    dtype: Any
    parts: int  # devices that share the heads
    head_axis: str
    one_item_rows: bool
    platform: str
    capability: tuple[int, int] | None


def choose(
    asked: str,
    *,
    platform: str,
    architecture: Qwen2VLConfig,
    dtype: Any,
    one_item_rows: bool = False,
    mesh: Mesh | None = None,
    row_axes: tuple[str, ...] = (),
    head_axis: str = "tensor",
    capability: str | None = None,
    field: str = "model.kernel",
) -> Chosen:
    """The kernels of both towers.

    Args:
      asked: "auto" (never fails: what cannot be done is left to xla), "xla", "pallas" (the Pallas
        kernel of the platform), or "cudnn" (in the language model; an item may hold several images,
        so that the vision tower takes Pallas).
      platform: of the devices, as `jax.Device.platform` says it.
      architecture: the model's.
      dtype: of the heads.
      one_item_rows: whether no row ever holds more than one item.
      mesh: the devices, where there are several; `row_axes` split the rows, `head_axis` the heads.
      row_axes: see `mesh`.
      head_axis: see `mesh`.
      capability: of a GPU, as "9.0"; None where it is not known.
      field: how the caller's errors name `asked`.

    Raises:
      MarvelError: `asked` is unknown, or a kernel that was asked for cannot do this; the message
        says why and what can.
    """
    if asked not in ASKED:
        raise MarvelError(f"{field}={asked!r} is unknown: use one of {', '.join(ASKED)}.")
    text, vision = architecture.text, architecture.vision
    parts = 1 if mesh is None or head_axis not in mesh.shape else mesh.shape[head_axis]
    platform = {"cuda": "gpu"}.get(platform, platform)
    if platform == "gpu" and capability is not None and not capability[:1].isdigit():
        platform = "rocm"  # AMD's GPUs are named, as gfx942
        capability = None
    have = None if capability is None else _capability(capability)
    common = (jnp.dtype(dtype), parts, head_axis, one_item_rows, platform, have)
    towers = {
        "language": _Tower("language", text.num_attention_heads, text.head_dim, *common),
        "vision": _Tower("vision", vision.num_heads, vision.head_dim, *common),
    }

    def kernel(name: KernelName) -> Kernel:
        if name == "xla":
            # A GPU or TPU that has no other kernel does better without branches in its program.
            alone = mesh is None or mesh.size == 1
            return dataclasses.replace(XLA, windows=alone and platform == "cpu")
        # Also over a mesh of one device: it is how jax 0.12 knows a GPU that is not here.
        axis = head_axis if parts > 1 else None
        return Kernel(name, mesh=mesh, row_axes=row_axes, head_axis=axis)

    names: dict[str, KernelName] = {}
    reasons: dict[str, str] = {}
    for which, tower in towers.items():
        name = _wanted(asked, tower)
        reason = _why(asked, platform)
        if obstacle := _OBSTACLES[name](tower):
            if asked != "auto":
                raise MarvelError(f"{field}={asked!r} cannot be: {obstacle}.")
            name, reason = "xla", obstacle
        names[which], reasons[which] = name, reason
    line = ", ".join(f"{tower} {name} ({reasons[tower]})" for tower, name in names.items())
    if len(set(names.values())) == len(set(reasons.values())) == 1:
        line = f"{names['language']} ({reasons['language']})"
    return Chosen(
        Kernels(kernel(names["language"]), kernel(names["vision"])), f"attention kernel: {line}"
    )


def _capability(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return int(major), int(minor or 0)


def _wanted(asked: str, tower: _Tower) -> KernelName:
    """The kernel that is tried first."""
    pallas: KernelName = "splash" if tower.platform == "tpu" else "pallas_gpu"
    if asked == "auto":
        # Not cuDNN: it cannot be compiled where there is no GPU, so no plan could be made.
        return pallas if tower.platform in ("gpu", "tpu") else "xla"
    if asked == "cudnn":
        return "cudnn" if tower.name == "language" else pallas
    return "xla" if asked == "xla" else pallas


def _why(asked: str, platform: str) -> str:
    return f"chosen for {platform}" if asked == "auto" else "as asked"


def _no_obstacle(tower: _Tower) -> str | None:
    return None


def _gpu_obstacle(tower: _Tower) -> str | None:
    if tower.platform != "gpu":
        return (
            f"there is no Pallas kernel for {tower.platform!r}, only for NVIDIA GPUs and TPUs; "
            "use 'xla' or 'auto'"
        )
    return _device_obstacle(tower) or _split_obstacle(tower)


def _device_obstacle(tower: _Tower) -> str | None:
    """What a GPU cannot do, be it with Pallas or with cuDNN."""
    if tower.capability is not None and tower.capability < _LEAST_CAPABILITY:
        return (
            f"the GPU has compute capability {_dotted(tower.capability)}, and attention kernels "
            f"need {_dotted(_LEAST_CAPABILITY)} or later; use 'xla'"
        )
    if tower.head_size > _LARGEST_HEAD:
        return (
            f"the {tower.name} heads have size {tower.head_size}, and attention kernels for GPUs "
            f"take at most {_LARGEST_HEAD}; use 'xla'"
        )
    return None


def _tpu_obstacle(tower: _Tower) -> str | None:
    if tower.dtype not in (jnp.bfloat16, jnp.float32):
        return f"TPUs compute in bfloat16 or float32, not {tower.dtype}; use 'xla' or another dtype"
    return _split_obstacle(tower)


def _cudnn_obstacle(tower: _Tower) -> str | None:
    if tower.platform != "gpu":
        return f"cuDNN is for NVIDIA GPUs, not for {tower.platform!r}; use 'auto'"
    if not tower.one_item_rows:
        return (
            "rows may hold several items, which cuDNN's attention cannot tell apart; use 'pallas', "
            "or rows of one item (data.row.items=1)"
        )
    if tower.dtype not in (jnp.bfloat16, jnp.float16):
        return (
            f"cuDNN's attention is for bfloat16 and float16, not {tower.dtype}; use "
            "model.dtype='bfloat16', or 'xla'"
        )
    if tower.head_size % 8:
        return (
            f"the {tower.name} heads have size {tower.head_size}, and cuDNN wants a multiple of 8; "
            "use 'pallas'"
        )
    return _device_obstacle(tower) or _split_obstacle(tower)


def _split_obstacle(tower: _Tower) -> str | None:
    if tower.heads % tower.parts == 0:
        return None
    divisor = math.gcd(tower.heads, tower.parts)
    return (
        f"mesh.{tower.head_axis}={tower.parts} does not divide the {tower.heads} {tower.name} "
        f"heads; use mesh.{tower.head_axis}={divisor}, or 'xla'"
    )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


_OBSTACLES: dict[KernelName, Callable[[_Tower], str | None]] = {
    "xla": _no_obstacle,
    "pallas_gpu": _gpu_obstacle,
    "splash": _tpu_obstacle,
    "cudnn": _cudnn_obstacle,
}
