"""On several devices every one has its own rows and heads: the result is that of one device."""

import jax
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models.attention import attend
from marvel_jax.models.kernels import Kernel
from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh
from tests.models.kernels.against_oracle import Shape, assert_equal, packed_segments, random_heads

SHAPE = Shape(rows=4, length=20, heads=4, groups=2, size=16)


def over(mesh, *, row_axes=DATA_AXES, name="pallas_gpu"):
    kernel = Kernel(name, interpret=True, mesh=mesh, row_axes=row_axes, head_axis="tensor")

    def run(query, key, value, segments, *, causal):
        return attend(query, key, value, segments=segments, causal=causal, kernel=kernel)

    return run


@pytest.mark.parametrize(
    ("sizes", "row_axes", "name"),
    [
        (MeshConfig(2, 2, 2), DATA_AXES, "pallas_gpu"),
        # Two key heads on four devices: each is held twice, and its gradients are added up.
        (MeshConfig(1, 2, 4), ("fsdp",), "pallas_gpu"),
        (MeshConfig(1, 2, 4), ("fsdp",), "splash"),
    ],
)
def test_any_mesh_gives_the_oracle(sizes, row_axes, name):
    heads, segments = random_heads(SHAPE, seed=0), packed_segments(SHAPE, seed=1)
    run = over(make_mesh(sizes), row_axes=row_axes, name=name)
    assert_equal(run, heads, segments, causal=False)


def test_nothing_is_sent_when_rows_and_heads_lie_in_their_places():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rows = jax.sharding.NamedSharding(mesh, jax.P(DATA_AXES, None, "tensor"))
    place = jax.sharding.NamedSharding(mesh, jax.P(DATA_AXES))
    heads, segments = random_heads(SHAPE, seed=0), packed_segments(SHAPE, seed=1)
    placed = [*jax.device_put(heads[:3], rows), jax.device_put(segments, place)]
    program = jax.jit(over(mesh), static_argnames="causal").lower(*placed, causal=False)
    text = program.compile().as_text()
    assert not any(kind in text for kind in ("all-gather", "all-reduce", "all-to-all", "permute"))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (SHAPE._replace(rows=3), r"3 rows do not divide over the 2 devices of .* axes fsdp"),
        (SHAPE._replace(heads=6), r"mesh.tensor=4 does not divide 6 attention heads"),
    ],
)
def test_rows_and_heads_that_do_not_divide_are_refused(shape, message):
    heads, segments = random_heads(shape, seed=0), np.ones(shape[:2], np.int32)
    with pytest.raises(MarvelError, match=message):
        over(make_mesh(MeshConfig(1, 2, 4)), row_axes=("fsdp",))(*heads[:3], segments, causal=False)
