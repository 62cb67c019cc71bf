"""A mesh covers the devices it is given, or says how many there are."""

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.mesh import MESH_AXES, MeshConfig, data_shards, make_mesh

SIZES = st.sampled_from([1, 2, 4, 8])


@given(data=SIZES, fsdp=SIZES, tensor=SIZES)
def test_a_mesh_is_built_exactly_where_the_axes_multiply_to_the_devices(data, fsdp, tensor):
    config = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
    if data * fsdp * tensor != 8:
        with pytest.raises(MarvelError, match=f"data={data} .* must be 8"):
            make_mesh(config)
        return
    mesh = make_mesh(config)
    assert dict(mesh.shape) == {"data": data, "fsdp": fsdp, "tensor": tensor}
    assert mesh.axis_names == MESH_AXES and set(mesh.axis_types) == {AxisType.Auto}
    assert data_shards(mesh) == data * fsdp


@pytest.mark.parametrize("axis", MESH_AXES)
def test_minus_one_takes_the_devices_that_are_left(axis):
    others = [name for name in MESH_AXES if name != axis]
    mesh = make_mesh(MeshConfig(**{axis: -1, others[0]: 2, others[1]: 1}))
    assert mesh.shape[axis] == 4
    with pytest.raises(MarvelError, match="does not cover 8 devices"):
        make_mesh(MeshConfig(**{axis: -1, others[0]: 3, others[1]: 1}))


def test_by_default_every_device_holds_its_own_rows():
    assert dict(make_mesh(MeshConfig()).shape) == {"data": 8, "fsdp": 1, "tensor": 1}
    alone = make_mesh(MeshConfig(), devices=jax.devices()[:1])
    assert data_shards(alone) == 1


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, -2, 1), (-1, -1, 1)])
def test_sizes_that_mean_nothing_are_refused(sizes):
    with pytest.raises(MarvelError, match=r"each axis is a positive number .* one of them is -1"):
        MeshConfig(*sizes)
