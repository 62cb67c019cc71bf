"""Attention kernels: what one is, and where on a mesh it runs."""

import dataclasses
from typing import Literal, NamedTuple, Self

from jax.sharding import Mesh

KernelName = Literal["xla", "pallas_gpu", "cudnn", "splash"]


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Which kernel computes the attention of a tower; static and hashable.

    name: the kernel, a module of this package (`pallas_gpu` is for NVIDIA, `splash` for TPU).
    interpret: runs a Pallas kernel without its hardware, slowly, for tests.
    mesh: the devices. The compiler cannot split a kernel, as it does array code ("xla"): on several
      devices it runs inside of a `shard_map` over all axes of the mesh.
    row_axes: mesh axes that split the rows.
    head_axis: mesh axis that splits the heads.
    windows: has "xla" look, for some queries at a time, at the keys between the first and the last
      that they may see. For rows that are not split: all must agree on how far that is.
    """

    name: KernelName = "xla"
    interpret: bool = False
    mesh: Mesh | None = None
    row_axes: tuple[str, ...] = ()
    head_axis: str | None = None
    windows: bool = False


XLA = Kernel()


class Kernels(NamedTuple):
    """The kernel of each tower."""

    language: Kernel = XLA
    vision: Kernel = XLA

    def over(self, row_axes: tuple[str, ...]) -> Self:
        """The same kernels for rows that are split over other mesh axes."""
        return self._replace(
            language=dataclasses.replace(self.language, row_axes=row_axes),
            vision=dataclasses.replace(self.vision, row_axes=row_axes),
        )


ALL_XLA = Kernels()
