"""The attention kernels of the devices that are here, as the benchmarks and checks ask for them."""

from typing import TYPE_CHECKING, NamedTuple

from marvel_jax.models.attention import attend
from marvel_jax.models.kernels import Kernel, Kernels

if TYPE_CHECKING:
    import jax
    import numpy as np

    from marvel_jax.models.config import Qwen2VLConfig


class Told(NamedTuple):
    """What a row says of its kernels."""

    name: str  # the language model's, then the vision tower's where it is another
    line: str  # with the reason


def kernels_for(
    asked: str,
    *,
    architecture: "Qwen2VLConfig",
    dtype: str,
    mesh: "jax.sharding.Mesh",
    one_item_rows: bool = False,
) -> tuple[Kernels, Told]:
    """The kernels of both towers for rows that are split over the mesh's data axes.

    Raises:
      MarvelError: the kernel cannot do this on these devices.
    """
    from marvel_jax.models.kernels.choice import choose
    from marvel_jax.parallel.mesh import DATA_AXES

    device = mesh.devices.flat[0]
    chosen = choose(
        asked,
        platform=device.platform,
        architecture=architecture,
        dtype=dtype,
        one_item_rows=one_item_rows,
        mesh=mesh,
        row_axes=DATA_AXES,
        capability=getattr(device, "compute_capability", None),
        field="kernel",
    )
    names = dict.fromkeys(kernel.name for kernel in chosen.kernels)
    return chosen.kernels, Told(", ".join(names), chosen.line)


def available(*, quick: bool = False) -> list[Kernel]:
    """The kernels beside XLA that the platform has; on a CPU both Pallas kernels, interpreted."""
    import jax

    platform = jax.devices()[0].platform
    if platform == "tpu":
        return [Kernel("splash")]
    if platform in ("gpu", "cuda"):
        return [Kernel("pallas_gpu"), Kernel("cudnn")]
    return [Kernel("pallas_gpu", interpret=True), Kernel("splash", interpret=True)] if quick else []


def needs_one_item(kernel: Kernel) -> bool:
    """Whether every row has to hold one item."""
    return kernel.name == "cudnn"


def types_of(kernel: Kernel) -> tuple[str, ...]:
    """The types that a kernel computes in."""
    return ("bfloat16",) if kernel.name == "cudnn" else ("float32", "bfloat16")


def run_with(
    kernel: Kernel,
    query: "jax.Array",
    key: "jax.Array",
    value: "jax.Array",
    *,
    segments: "np.ndarray",
    causal: bool = False,
    keep: str = "weights",
) -> "jax.Array":
    """`attend` with the kernel before the arrays."""
    import jax.numpy as jnp

    return attend(
        query,
        key,
        value,
        segments=jnp.asarray(segments),
        causal=causal,
        kernel=kernel,
        keep=keep,
    )


def named(kernel: Kernel) -> str:
    """For a row: the name, and whether it is interpreted."""
    return f"{kernel.name}, interpreted" if kernel.interpret else kernel.name
