"""Weights go straight into shards: equal to reading them whole, no byte twice, little memory."""

import json
import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from marvel_jax.models import hub, names, streaming, tensors
from marvel_jax.parallel.mesh import MESH_AXES, MeshConfig, make_mesh
from marvel_jax.parallel.sharding import ShardingRules
from tests.models import streaming_memory
from tests.models.parity import GOLDEN

TARGETS = st.sampled_from([None, *MESH_AXES])


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The golden untied checkpoint in bfloat16, in several files."""
    folder = tmp_path_factory.mktemp("half") / "model"
    whole = hub.load(GOLDEN / "untied", dtype=ml_dtypes.bfloat16)
    hub.save(folder, config=whole.config, params=whole.params, max_shard_bytes=30_000)
    return folder


def assert_same(params, expected, sharding):
    params, expected = names.flatten(params), names.flatten(expected)
    assert params.keys() == expected.keys()
    for path, array in params.items():
        assert array.sharding == sharding(path, array.shape), path
        assert array.dtype == expected[path].dtype, path
        bits = [np.asarray(x).view(np.uint8) for x in (array, expected[path])]
        np.testing.assert_array_equal(*bits, err_msg=path)


@settings(max_examples=8)
@given(
    sizes=st.sampled_from([(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4), (4, 1, 2), (1, 1, 1)]),
    targets=st.tuples(*[TARGETS] * 6),
    trained=st.sampled_from([jnp.float32, jnp.bfloat16]),
    on_disk=st.sampled_from(["half", "float32"]),
    chunk_bytes=st.sampled_from([2_000, 2**20]),
)
def test_every_sharding_holds_what_reading_it_whole_gives(
    half, sizes, targets, trained, on_disk, chunk_bytes
):
    folder = half if on_disk == "half" else GOLDEN / "untied"
    config = MeshConfig(*sizes)
    mesh = make_mesh(config, devices=jax.devices()[: np.prod(sizes)])
    layers, vocab, embed, heads, patch, vision_heads = targets
    rules = ShardingRules(
        layers=layers,
        vocab=vocab,
        embed=embed,
        heads=heads,
        patch=patch,
        vision_heads=vision_heads,
    )
    expected = {
        dtype: names.flatten(hub.load(folder, dtype=dtype).params)
        for dtype in (jnp.float32, jnp.bfloat16)
    }
    axes = {row.path: row.axes for row in names.table(hub.load(folder).config)}

    def sharding(path, shape):
        return NamedSharding(mesh, rules.spec(axes[path], shape, mesh))

    def dtype(path):
        return trained if path.startswith("language/") else jnp.bfloat16

    loaded = hub.load_sharded(folder, sharding=sharding, dtype=dtype, chunk_bytes=chunk_bytes)
    mixed = {path: expected[dtype(path)][path] for path in expected[jnp.float32]}
    assert_same(loaded.params, names.nest(mixed), sharding)
    assert loaded.temperature is None


@settings(max_examples=20)
@given(st.data())
def test_any_order_of_devices_and_any_cut(data):
    count = data.draw(st.sampled_from([1, 2, 4, 8]))
    order = data.draw(st.permutations(range(count)))
    grid = np.array(jax.devices())[list(order)].reshape(-1, 2 if count > 1 else 1)
    mesh = Mesh(grid, ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    spec = data.draw(st.permutations(["x", "y", None]) | st.permutations([("y", "x"), None, None]))
    shape = (8, 16, 24)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    regions = []

    def read(region):
        regions.append(tuple((part.start, part.stop) for part in region))
        return values[region]

    # Under a mesh of the caller's own, as a training program may read.
    with jax.set_mesh(mesh):
        array = streaming.stream(
            read,
            shape=shape,
            sharding=NamedSharding(mesh, PartitionSpec(*spec)),
            dtype=np.float32,
            stacked=data.draw(st.booleans()),
            outer=data.draw(st.integers(0, 1)),
            chunk_bytes=data.draw(st.integers(1, 20_000)),
        )
    np.testing.assert_array_equal(array, values)
    assert len(set(regions)) == len(regions)
    assert sum(np.prod([b - a for a, b in region]) for region in regions) == values.size


@pytest.fixture
def count_bytes(monkeypatch):
    counted = []
    read = tensors.Stored.__getitem__

    def counting(self, index):
        array = read(self, index)
        counted.append(array.nbytes)
        return array

    monkeypatch.setattr(tensors.Stored, "__getitem__", counting)
    return counted


@pytest.mark.parametrize("chunk_bytes", [2_000, 2**20])
def test_every_byte_is_read_once(count_bytes, half, chunk_bytes):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    axes = {row.path: row.axes for row in names.table(hub.load(half).config)}
    count_bytes.clear()
    hub.load_sharded(
        half,
        sharding=lambda path, shape: NamedSharding(
            mesh, ShardingRules().spec(axes[path], shape, mesh)
        ),
        dtype=lambda _: jnp.bfloat16,
        chunk_bytes=chunk_bytes,
    )
    stored = tensors.Weights(half)
    assert sum(count_bytes) == 2 * sum(np.prod(stored.shape(key)) for key in stored.names())


PROCESS = """
import json, sys
import jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from marvel_jax.models import hub, names, tensors
read, counted = tensors.Stored.__getitem__, []
def counting(self, index):
    array = read(self, index)
    counted.append(array.nbytes)
    return array
whole = names.flatten(hub.load(sys.argv[3]).params)
tensors.Stored.__getitem__ = counting
mesh = Mesh(np.array(jax.devices()), ("fsdp",), axis_types=(AxisType.Auto,))
def sharding(path, shape):
    spec = [None] * len(shape)
    if len(shape) > 1:
        spec[-1] = "fsdp"
    return NamedSharding(mesh, PartitionSpec(*spec))
params = hub.load_sharded(
    sys.argv[3], sharding=sharding, dtype=lambda _: "float32", chunk_bytes=2000
).params
for path, array in names.flatten(params).items():
    for shard in array.addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[path][shard.index], err_msg=path)
jax.distributed.shutdown()
print(json.dumps(sum(counted)))
"""


def test_a_process_reads_what_its_own_devices_hold(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(number), str(GOLDEN / "tied")],
            env={**os.environ, **flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    stored = safetensors.numpy.load_file(GOLDEN / "tied" / "model.safetensors")
    config = hub.load(GOLDEN / "tied").config
    replicated = sum(
        stored[row.hub_name(layer)].nbytes
        for row in names.table(config)
        for layer in range(row.num_layers(config))
        if len(row.shape(config)) == 1
    )
    split = sum(array.nbytes for array in stored.values()) - replicated
    for out, _ in outputs:
        assert json.loads(out.splitlines()[-1]) == split // 2 + replicated


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "model"
    streaming_memory.write_checkpoint(folder)
    return folder


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="measured with /proc")
@pytest.mark.parametrize("devices", [1, 8])
def test_memory_beside_the_shards_is_at_most_twice_the_largest_tensor(large, devices):
    found = streaming_memory.measure(devices, "float32", large)
    assert found["disk"] > 3e8
    # From bfloat16 to float32, and what cannot be cut is on every device.
    assert found["shards"] >= 2 * found["disk"]
    assert found["beside"] <= 2 * found["largest"], found


def test_the_temperature_and_the_optional_head_come_along(tmp_path):
    first = hub.load(GOLDEN / "untied")
    flat = names.flatten(first.params)
    del flat["lm_head/kernel"]
    target = tmp_path / "out"
    hub.save(target, config=first.config, params=names.nest(flat), temperature=0.031)
    mesh = make_mesh(MeshConfig())
    replicated = NamedSharding(mesh, PartitionSpec())
    loaded = hub.load_sharded(target, sharding=lambda *_: replicated, dtype=lambda _: jnp.float32)
    assert loaded.temperature == np.float32(0.031)
    assert_same(loaded.params, names.nest(flat), lambda *_: replicated)
    assert loaded.config == hub.load(target).config
