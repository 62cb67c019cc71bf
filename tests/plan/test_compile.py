"""A plan says what the executable that really runs takes, and refuses what cannot be before."""

import dataclasses
import importlib.util
import json

import jax
import numpy as np
import pytest

from marvel_jax import cli
from marvel_jax.data.pipeline import build_batch
from marvel_jax.errors import MarvelError
from marvel_jax.parallel.collectives import executed_collectives
from marvel_jax.parallel.mesh import MeshConfig, data_shards, make_mesh
from marvel_jax.parallel.sharding import put_batch, replicated
from marvel_jax.plan import batch as planned_batch
from marvel_jax.plan.compile import plan, plan_here
from marvel_jax.recipes.config_file import load_config
from marvel_jax.training.inputs import open_inputs, place_state
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.prepare import make_plan
from marvel_jax.training.step import make_train_step

CUDA = any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13))
LIBTPU = importlib.util.find_spec("libtpu") is not None
MESH = MeshConfig(2, 4)


@pytest.fixture(scope="module")
def config(tiny_config):
    loaded = load_config(tiny_config, ("chunk_rows=2", "model.adapters.rank=8"))
    return dataclasses.replace(loaded, mesh=MESH)


@pytest.fixture(scope="module")
def running(config):
    """The step as a run compiles it, its batch, and what its arguments take on a device."""
    inputs = open_inputs(config)
    mesh = make_mesh(config.mesh)
    shards = data_shards(mesh)
    epoch = make_plan(config, inputs, shards=shards, cache=None)
    step = max((epoch.step(number) for number in range(4)), key=lambda one: one.num_rows)
    batch = build_batch(inputs.source, inputs.processor, step, range(shards))
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    placed = place_state(config, inputs, optimizer, mesh)
    jitted = make_train_step(
        config,
        inputs.architecture,
        optimizer,
        mesh,
        shardings=placed.shardings,
        frozen_shardings=placed.frozen_shardings,
    )
    finite = jax.device_put(np.bool_(True), replicated(mesh))
    arguments = (placed.state, placed.frozen, put_batch(batch, mesh), finite)
    device = mesh.devices.flat[0]
    resident = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(arguments)
        for shard in leaf.addressable_shards
        if shard.device == device
    )
    return jitted.lower(*arguments).compile(), batch, resident


@pytest.fixture(scope="module")
def found(config):
    return plan_here(config, "cpu:8", lengths="corpus")


def test_bytes_are_those_of_the_program_that_runs(found, running):
    program, _, resident = running
    taken = program.memory_analysis()
    assert found.argument_bytes == taken.argument_size_in_bytes
    assert found.output_bytes == taken.output_size_in_bytes
    assert found.aliased_bytes == taken.alias_size_in_bytes
    assert found.temporary_bytes == pytest.approx(taken.temp_size_in_bytes, rel=0.01)
    # And what lies on a device before the step is what was planned for it.
    assert found.weight_bytes + found.moment_bytes + found.batch_bytes == pytest.approx(
        resident, rel=0.01
    )
    assert resident == pytest.approx(found.argument_bytes, rel=0.01)


def test_messages_are_those_of_the_program_that_runs(found, running):
    program, _, _ = running
    sent = {kind: count for kind, count, _ in found.sent}
    assert sent == {k: n for k, n in executed_collectives(program.as_text()).items() if n}


def test_the_batch_has_the_shapes_of_a_real_one(config, running):
    _, batch, _ = running
    inputs = open_inputs(config)
    sizes = planned_batch.train_sizes(config, inputs, shards=8)
    shapes = planned_batch.train_batch(config, inputs.architecture, sizes, shards=8)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), batch
    )
    # The plan counts the longest of a query's instructions.
    tokens = int((batch.rows.segments > 0).sum())
    assert tokens <= sizes.work.tokens < 1.05 * tokens
    assert sizes.work.patches == int((batch.rows.patch_segments > 0).sum())


def test_encoding_takes_the_weights_once(config):
    found = plan_here(config, "cpu:8", stage="encode", lengths="corpus")
    assert (found.devices, found.sent, found.moment_bytes) == (1, [], 0)
    assert found.argument_bytes == pytest.approx(found.weight_bytes + found.batch_bytes, rel=0.01)
    assert found.items > 1 and found.useful_flops < found.executed_flops


def test_weights_that_a_step_does_not_read_take_memory_too(config):
    untied = dataclasses.replace(config.model.scratch, tie_word_embeddings=False)
    model = dataclasses.replace(config.model, scratch=untied)
    config = dataclasses.replace(config, model=model)
    found = plan_here(config, "cpu:8", stage="encode", lengths="corpus")
    text = open_inputs(config).architecture.text
    head = text.vocab_size * text.hidden_size * np.dtype(config.model.dtype).itemsize
    unread = found.weight_bytes + found.batch_bytes - found.argument_bytes
    assert unread == pytest.approx(head, rel=0.05)
    made = found.temporary_bytes + found.output_bytes - found.aliased_bytes + found.code_bytes
    assert found.needed_bytes == found.weight_bytes + found.batch_bytes + made


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": MeshConfig(3)}, "does not cover 8 devices"),
        ({"mesh": MeshConfig(1, 1, 8)}, r"mesh.tensor=8 does not divide .*use mesh.tensor=1, 2\."),
        ({"global_batch": 20}, r"data.global_batch=20 .* 8 data shards.*global_batch=24 or 16"),
        ({"source": "nobody/no-model"}, "neither a folder here nor a model that can be planned"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_compiled(config, changes, message, monkeypatch):
    def compile_nothing(*args):
        raise AssertionError("something was compiled")

    monkeypatch.setattr("marvel_jax.plan.compile._compile", compile_nothing)
    if "global_batch" in changes:
        changes = {"data": dataclasses.replace(config.data, **changes)}
    elif "source" in changes:
        model = dataclasses.replace(config.model, scratch=None, adapters=None, **changes)
        changes = {"model": model}
    lengths = "mbeir" if "model" in changes else "corpus"
    with pytest.raises(MarvelError, match=message):
        plan_here(dataclasses.replace(config, **changes), "cpu:8", lengths=lengths)


def test_rows_too_small_for_the_mix_are_told(config):
    with pytest.raises(MarvelError, match=r"M-BEIR's mix: .*a row holds 64.*--lengths corpus"):
        plan_here(config, "cpu:8")


def test_the_command_plans_in_a_process_of_its_own(tiny_config, tmp_path, capsys, found):
    path = tmp_path / "laid_out.py"
    layout = '{"cpu:8": ("mesh.data=2", "mesh.fsdp=4", "chunk_rows=2", "model.adapters.rank=8")}'
    path.write_text(tiny_config.read_text() + f"\nlayouts = {layout}\n")
    with pytest.raises(SystemExit) as stop:
        cli.main(["plan", str(path), "--topology", "cpu:8", "--lengths", "corpus", "--json"])
    told = capsys.readouterr().out.splitlines()
    assert stop.value.code == 0, told
    facts = json.loads(told[-1])
    assert facts["layout"] == "cpu:8" and told[0] == "cpu:8: layout 'cpu:8' of the config file"
    for name in ("argument_bytes", "temporary_bytes", "mesh", "rows", "useful_flops", "kernel"):
        assert facts[name] == getattr(found, name), name
    assert any(line.startswith("messages of a device in a step: ") for line in told)


TARGETS = [
    pytest.param(
        "gpu:h100:8", marks=pytest.mark.skipif(not CUDA, reason="no CUDA plugin (extra plan-gpu)")
    ),
    pytest.param(
        "tpu:v5e:2x4", marks=pytest.mark.skipif(not LIBTPU, reason="no libtpu (extra plan-tpu)")
    ),
]


@pytest.mark.parametrize("topology", TARGETS)
def test_other_machines(config, topology):
    found = plan(config, topology, lengths="corpus", seconds=300)
    assert found.fits and found.needed_bytes < found.memory_bytes
    assert 0 < found.mfu < 1 and found.items_per_second > 0
    assert sum(count for _, count, _ in found.sent) > 0


@pytest.mark.skipif(not LIBTPU, reason="no libtpu (extra plan-tpu)")
def test_a_step_that_the_compiler_refuses_for_its_size_is_a_result():
    path = "configs/qwen2_vl_7b_lora.py"
    config = load_config(planned_batch.Path(path), ("chunk_rows=2", "data.global_batch=64"))
    found = plan(config, "tpu:v5e:1x1", seconds=300)
    assert found.fits is False and found.temporary_bytes is None
    assert found.needed_bytes > found.memory_bytes
