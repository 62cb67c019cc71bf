"""A mesh covers the devices it is given, or says how many there are."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import AxisType

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.mesh import MESH_AXES, MeshConfig, data_shards, device_grid, make_mesh

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


def cluster(*units: int, slices: bool = False) -> list[SimpleNamespace]:
    """Stand-ins for devices: so many on each host or slice, given in an order that mixes them."""
    devices = [
        SimpleNamespace(
            id=10 * unit + number,
            process_index=unit,
            slice_index=unit if slices else 0,
            platform="gpu",
            device_kind="stand-in",
        )
        for unit, size in enumerate(units)
        for number in range(size)
    ]
    return sorted(devices, key=lambda device: (device.id % 10, device.id))


@pytest.mark.parametrize("slices", [False, True], ids=["hosts", "slices"])
@given(groups=st.sampled_from([2, 4]), data=st.sampled_from([1, 2]), fsdp=st.sampled_from([1, 2]))
def test_only_the_data_axis_leaves_a_group(slices, groups, data, fsdp):
    each = data * fsdp * 2
    config = MeshConfig(data=-1, fsdp=fsdp, tensor=2, groups=groups)
    grid = device_grid(config, cluster(*[each] * groups, slices=slices))
    assert grid.shape == (groups * data, fsdp, 2)
    units = np.vectorize(lambda device: device.process_index)(grid)
    assert (units == units[:, :1, :1]).all()
    # Groups follow one another, so that the shards of a host do too.
    np.testing.assert_array_equal(units[:, 0, 0], np.repeat(np.arange(groups), data))
    assert len({device.id for device in grid.flat}) == grid.size


def test_a_group_may_be_several_whole_hosts():
    grid = device_grid(MeshConfig(data=2, fsdp=4, groups=2), cluster(2, 2, 2, 2))
    hosts = np.vectorize(lambda device: device.process_index)(grid)[:, :, 0]
    np.testing.assert_array_equal(hosts, [[0, 0, 1, 1], [2, 2, 3, 3]])


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (
            MeshConfig(data=4, fsdp=2, groups=4),
            cluster(4, 4),
            r"mesh.groups=4: there are 2 hosts, of \[4, 4\] devices.*use mesh.groups=2",
        ),
        (MeshConfig(groups=2), cluster(3, 5), r"2 hosts, of \[3, 5\] devices.*of one size"),
        (
            MeshConfig(data=1, fsdp=8, groups=2),
            cluster(4, 4),
            "mesh.groups=2 does not divide mesh.data=1.* use mesh.data=2",
        ),
        (
            MeshConfig(data=3, fsdp=2, groups=2),
            cluster(3, 3),
            "mesh.groups=2 does not divide mesh.data=3.* use mesh.data=4",
        ),
        (MeshConfig(), cluster(4, 4, slices=True), "form 2 slices .* use mesh.groups=2"),
    ],
)
def test_groups_that_the_devices_do_not_form_are_refused(config, devices, message):
    with pytest.raises(MarvelError, match=message):
        device_grid(config, devices)


def test_fewer_than_one_group_is_refused():
    with pytest.raises(MarvelError, match=r"mesh\.groups=0 must be at least 1"):
        MeshConfig(groups=0)
