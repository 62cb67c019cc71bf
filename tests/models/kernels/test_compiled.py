"""Each Pallas kernel compiles for the hardware it is for, which need not be here, and is frugal.

As a table: python -m tests.models.kernels.test_compiled gpu:h100:1
"""

import importlib.util
import sys

import pytest

from marvel_jax.parallel.topology import call_in_child

GPU = any(importlib.util.find_spec(f"jax_cuda{version}_plugin") for version in (12, 13))
TPU = importlib.util.find_spec("libtpu") is not None
# Of Qwen2-VL-7B, in a row of 4,096: query heads, key heads, size of a head.
HEADS = {"language": (28, 4, 128), "vision": (16, 16, 80)}
ROW = 4096
# MiB for what the kernel must keep: queries and gradients in the shape it wants, and statistics.
MOST = 64


def temporaries(*, topology, tower, dtype, names):
    """MiB of temporaries for value and gradient of one row, by kernel; in a child."""
    import jax
    import jax.numpy as jnp

    from marvel_jax.models.attention import attend
    from marvel_jax.models.kernels import Kernel
    from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh
    from marvel_jax.parallel.sharding import batch_sharding
    from marvel_jax.parallel.topology import compile_only_devices

    mesh = make_mesh(MeshConfig(1), devices=compile_only_devices(topology)[:1])
    heads, groups, size = HEADS[tower]
    rows = batch_sharding(mesh)
    shapes = [
        jax.ShapeDtypeStruct((1, ROW, count, size), jnp.dtype(dtype), sharding=rows)
        for count in (heads, groups, groups)
    ]
    segments = jax.ShapeDtypeStruct((1, ROW), jnp.int32, sharding=rows)
    found = {}
    for name in names:
        name, _, keep = name.partition(" ")
        kernel = Kernel(name, mesh=mesh, row_axes=DATA_AXES)

        def total(heads, segments, kernel=kernel, keep=keep or "weights"):
            mixed = attend(*heads, segments=segments, causal=False, kernel=kernel, keep=keep)
            return jnp.sum(mixed.astype(jnp.float32) ** 2)

        program = jax.jit(jax.value_and_grad(total)).lower(shapes, segments).compile()
        found[f"{name} {keep}".strip()] = program.memory_analysis().temp_size_in_bytes / 2**20
    return found


@pytest.mark.parametrize("tower", HEADS)
@pytest.mark.parametrize(
    ("topology", "name"),
    [
        pytest.param(
            "gpu:h100:1",
            "pallas_gpu",
            marks=pytest.mark.skipif(not GPU, reason="needs marvel-jax[cuda13] to compile"),
        ),
        pytest.param(
            "tpu:v5e:2x2",
            "splash",
            marks=pytest.mark.skipif(not TPU, reason="needs libtpu to compile"),
        ),
    ],
)
def test_it_compiles_for_its_hardware_and_keeps_no_weights(topology, name, tower):
    """Array code keeps them: 2 GiB and more."""
    arguments = {"tower": tower, "dtype": "bfloat16", "names": [name]}
    found = call_in_child(f"{__name__}:temporaries", topology=topology, arguments=arguments)
    assert 0 < found[name] < MOST, found


def main(topology: str) -> None:
    pallas = "splash" if topology.startswith("tpu") else "pallas_gpu"
    for dtype in ("bfloat16", "float32"):
        for tower in HEADS:
            names = [pallas, "xla weights", "xla inputs"]
            found = call_in_child(
                "tests.models.kernels.test_compiled:temporaries",
                topology=topology,
                arguments={"tower": tower, "dtype": dtype, "names": names},
            )
            line = ", ".join(f"{name} {mib:,.0f} MiB" for name, mib in found.items())
            print(f"{topology} {dtype} {tower} {HEADS[tower]}: {line}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
