"""Every parameter has a valid partition, and every row goes to the shard that asked for it."""

import math
from types import SimpleNamespace
from typing import NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.models import names
from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig
from marvel_jax.models.lora import LoraConfig, adapter_shapes, logical_axes
from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from marvel_jax.parallel.sharding import (
    LARGE,
    ShardingRules,
    check_sharded,
    local_data_shards,
    parameter_shardings,
    put_batch,
)
from tests import tiny

AXES = ["layers", "vocab", "embed", "heads", "kv_heads", "mlp", "patch", None]
MESHES = [MeshConfig(2, 2, 2), MeshConfig(1, 4, 2), MeshConfig(1, 1, 8), MeshConfig(8)]


@given(
    dimensions=st.lists(
        st.tuples(st.sampled_from(AXES), st.sampled_from([1, 2, 3, 4, 8, 12])), max_size=4
    ),
    mesh=st.sampled_from(MESHES),
)
def test_a_partition_divides_what_it_splits_and_uses_an_axis_once(dimensions, mesh):
    built = make_mesh(mesh)
    axes, shape = tuple(a for a, _ in dimensions), tuple(s for _, s in dimensions)
    spec = ShardingRules().spec(axes, shape, built)
    used = [part for part in spec if part is not None]
    assert len(used) == len(set(used))
    for part, size in zip(spec, shape, strict=True):
        assert part is None or size % built.shape[part] == 0


def test_a_dimension_that_does_not_divide_is_replicated():
    mesh = make_mesh(MeshConfig(1, 4, 2))
    rules = ShardingRules()
    assert rules.spec(("embed", "mlp"), (8, 6), mesh) == jax.P("fsdp", "tensor")
    assert rules.spec(("embed", "mlp"), (6, 5), mesh) == jax.P(None, None)
    # Both want "tensor": the first has it.
    assert rules.spec(("heads", "mlp"), (4, 4), mesh) == jax.P("tensor", None)


def test_vectors_are_not_split_over_the_data_axes():
    mesh = make_mesh(MeshConfig(2, 2, 2))
    rules = ShardingRules()
    assert rules.spec(("embed",), (64,), mesh) == jax.P(None)
    assert rules.spec(("layers", "embed"), (4, 64), mesh) == jax.P(None, None)
    # Over "tensor" they go with the matmul's output that they are added to.
    assert rules.spec(("layers", "heads"), (4, 64), mesh) == jax.P(None, "tensor")
    assert rules.spec(("layers", "embed", "heads"), (4, 64, 64), mesh) == jax.P(
        None, "fsdp", "tensor"
    )


def published(size: str) -> Qwen2VLConfig:
    """The architectures of Qwen2-VL as published."""
    sizes = {
        "2B": (151_936, 1536, 8960, 12, 2, True),
        "7B": (152_064, 3584, 18_944, 28, 4, False),
    }
    vocab, hidden, mlp, heads, groups, tied = sizes[size]
    return Qwen2VLConfig(
        vision=VisionConfig(depth=32, embed_dim=1280, num_heads=16),
        text=TextConfig(vocab, hidden, mlp, 28, heads, groups, mrope_section=(16, 24, 24)),
        tie_word_embeddings=tied,
    )


LARGE_SHAPE = (2, LARGE // 2)


@pytest.mark.parametrize(
    ("mesh", "axes", "shape", "message"),
    [
        (MeshConfig(2, 2, 2), ("embed", "mlp"), LARGE_SHAPE, None),
        (
            MeshConfig(1, 8),
            ("embed", "mlp"),
            (LARGE + 4, 2),
            r"a/b \[1048580, 2\] .* axis 'embed' of 1048580 is .* by mesh\.fsdp=8\. .*: 1, 2, 4, 5",
        ),
        # A second axis of the array takes the mesh axis: it is split all the same.
        (MeshConfig(1, 1, 8), ("heads", "mlp"), (3, LARGE), None),
        (MeshConfig(1, 1, 8), ("heads", "embed"), (3, LARGE), "'heads' of 3 .* mesh.tensor=8"),
        # Nothing is asked of the data axis, of small arrays, or of axes without a rule.
        (MeshConfig(8), ("embed", "mlp"), (3, LARGE), None),
        (MeshConfig(1, 8), ("embed", "mlp"), (3, 5), None),
        (MeshConfig(1, 8), ("layers", "patch"), (3, LARGE), None),
    ],
)
def test_a_large_array_is_split_as_the_rules_ask_or_refused(mesh, axes, shape, message):
    built, leaf = make_mesh(mesh), jax.ShapeDtypeStruct(shape, np.float32)
    if message is None:
        check_sharded({"a/b": leaf}, {"a/b": axes}, built, ShardingRules())
        return
    with pytest.raises(MarvelError, match=message):
        check_sharded({"a/b": leaf}, {"a/b": axes}, built, ShardingRules())
    # The remedy that the message offers is one.
    relaxed = ShardingRules(**{axes[0]: None})
    check_sharded({"a/b": leaf}, {"a/b": axes}, built, relaxed)


@pytest.mark.parametrize("mesh", [MeshConfig(1, 8), MeshConfig(1, 1, 8), MeshConfig(2, 2, 2)])
@pytest.mark.parametrize("size", ["2B", "7B"])
def test_the_published_models_and_their_adapters_are_split_everywhere(mesh, size):
    config, lora, built = published(size), LoraConfig(), make_mesh(mesh)
    axes = names.flatten(names.logical_axes(config)) | names.flatten(logical_axes(config, lora))

    def replicas(shapes: dict[str, tuple[int, ...]]) -> float:
        """How many times fsdp and tensor hold a number, on average."""
        leaves = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
        own = {path: axes[path] for path in leaves}
        check_sharded(leaves, own, built, ShardingRules())
        placed = parameter_shardings(own, leaves, built, rules=ShardingRules())
        held = sum(math.prod(placed[path].shard_shape(shape)) for path, shape in shapes.items())
        return held * mesh.fsdp * mesh.tensor / sum(map(math.prod, shapes.values()))

    assert replicas({row.path: row.shape(config) for row in names.table(config)}) < 1.01
    # The tensor axis splits the half of an adapter that meets the split side of its layer.
    assert replicas(adapter_shapes(config, lora)) < (1.01 if mesh.tensor == 1 else 3)


def test_the_rules_know_every_axis_of_the_model():
    config = tiny.architecture()
    shapes = {row.path: np.zeros(row.shape(config)) for row in names.table(config)}
    mesh = make_mesh(MeshConfig(2, 2, 2))
    flat = names.flatten(names.logical_axes(config))
    found = parameter_shardings(
        {path: flat[path] for path in shapes}, shapes, mesh, rules=ShardingRules()
    )
    split = sum(not sharding.is_fully_replicated for sharding in found.values())
    assert set(found) == set(shapes) and split > len(shapes) / 2


def test_an_unknown_axis_is_named():
    mesh = make_mesh(MeshConfig())
    with pytest.raises(MarvelError, match=r"no sharding rule for axis 'width'; known: \['embed'"):
        ShardingRules().spec(("width",), (4,), mesh)
    with pytest.raises(MarvelError, match=r"sharding\.embed='fdsp': .* axes data, fsdp, tensor"):
        ShardingRules(embed="fdsp").spec(("embed",), (4,), mesh)


class Pair(NamedTuple):
    rows: np.ndarray
    ids: np.ndarray


@pytest.mark.parametrize("mesh", MESHES)
def test_a_batch_is_dealt_to_the_shards_in_order(mesh):
    built = make_mesh(mesh)
    batch = Pair(np.arange(48, dtype=np.int32).reshape(16, 3), np.arange(8, dtype=np.uint32))
    placed = put_batch(batch, built)
    shards = mesh.data * mesh.fsdp
    assert local_data_shards(built) == range(shards)
    for found, expected in zip(placed, batch, strict=True):
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == expected.dtype
        grid = np.asarray(built.devices).reshape(shards, -1)
        by_device = {shard.device: np.asarray(shard.data) for shard in found.addressable_shards}
        for number, part in enumerate(np.split(expected, shards)):
            for device in grid[number]:
                np.testing.assert_array_equal(by_device[device], part)


def mesh_of(processes: list[int], **shape: int) -> SimpleNamespace:
    """A mesh whose devices belong to these processes, in order."""
    devices = np.array([SimpleNamespace(process_index=one) for one in processes])
    return SimpleNamespace(shape=shape, devices=devices.reshape(tuple(shape.values())))


@pytest.mark.parametrize(("process", "expected"), [(0, range(2)), (1, range(2, 4))])
def test_a_process_supplies_the_shards_of_its_devices(monkeypatch, process, expected):
    monkeypatch.setattr(jax, "process_index", lambda: process)
    assert local_data_shards(mesh_of([0, 0, 1, 1], data=2, fsdp=2, tensor=1)) == expected
    # A shard spread over two processes is supplied by both.
    spread = mesh_of([0, 1, 0, 1], data=2, fsdp=1, tensor=2)
    assert local_data_shards(spread) == range(2)


def test_shards_that_do_not_follow_one_another_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 0)
    with pytest.raises(MarvelError, match=r"process 0 holds data shards \[0, 2\].*inside a host"):
        local_data_shards(mesh_of([0, 1, 0, 1], data=4, fsdp=1, tensor=1))
