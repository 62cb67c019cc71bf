"""The sharded step is the mathematics it claims: any mesh, any packing, the plain step's values."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.data import lengths, pipeline
from marvel_jax.data.batch import Batch, RowShape
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.parallel.mesh import MeshConfig, data_shards, make_mesh
from marvel_jax.parallel.sharding import ShardingRules, put_batch
from marvel_jax.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from marvel_jax.training.optimizer import learning_rate_schedule, make_optimizer
from marvel_jax.training.state import create_state, initial_params
from marvel_jax.training.step import make_train_step
from tests import plain_step, tiny

STEPS = 4


def config_for(mesh: MeshConfig, row: RowShape = tiny.ROW, **optimizer) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(path=".", global_batch=16, row=row),
        model=ModelConfig(scratch=tiny.architecture()),
        # A large epsilon: Adam would blow up rounding in gradients near zero to whole steps.
        optimizer=OptimizerConfig(learning_rate=1e-3, eps=1e-3, **optimizer),
        mesh=mesh,
        steps=10,
    )


def batches(config: TrainConfig, shards: int) -> list[Batch]:
    source, processor = tiny.TinySource(), tiny.processor()
    index = lengths.index(source, processor, cache=None)
    plan = Plan(index, PlanConfig(16, config.seed, config.data.row), num_shards=shards)
    found = pipeline.batches(source, processor, plan, start_step=0, num_steps=STEPS)
    return [batch for _, batch in found]


def run(config: TrainConfig) -> tuple[list[dict], dict]:
    """Metrics of a few steps and the parameters after them."""
    devices = config.mesh.data * config.mesh.fsdp * config.mesh.tensor
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    architecture = config.model.scratch
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    params = initial_params(architecture, seed=0, model=None, optimizer=config.optimizer)
    state, shardings = create_state(params, optimizer, architecture, mesh, rules=ShardingRules())
    step = make_train_step(config, architecture, optimizer, mesh, shardings=shardings)
    history = []
    for batch in batches(config, data_shards(mesh)):
        state, metrics = step(state, put_batch(batch, mesh))
        history.append({name: float(value) for name, value in metrics.items()})
    return history, jax.device_get(state.params)


@pytest.fixture(scope="module")
def on_one_device():
    return run(config_for(MeshConfig(data=1)))


@pytest.mark.parametrize(
    "mesh",
    [MeshConfig(data=8), MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=4)],
    ids=["data8", "data2-fsdp2-tensor2", "fsdp4"],
)
def test_any_mesh_gives_the_same_losses_and_weights(mesh, on_one_device):
    history, params = run(config_for(mesh))
    expected_history, expected_params = on_one_device
    for found, expected in zip(history, expected_history, strict=True):
        for name in ("loss", "temperature", "gradient_norm"):
            assert found[name] == pytest.approx(expected[name], abs=1e-5, rel=1e-5), name
    for found, expected in zip(
        jax.tree.leaves(params), jax.tree.leaves(expected_params), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_packing_does_not_change_the_loss(on_one_device):
    alone = RowShape(tokens=64, patches=64, items=1)
    history, _ = run(config_for(MeshConfig(data=1), row=alone))
    for found, expected in zip(history, on_one_device[0], strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


def test_equals_the_plain_step(on_one_device):
    config = config_for(MeshConfig(data=1))
    options = dataclasses.asdict(config.optimizer)
    params = initial_params(config.model.scratch, seed=0, model=None, optimizer=config.optimizer)
    moments = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    schedule = learning_rate_schedule(config.optimizer, steps=config.steps)
    step = jax.jit(plain_step.train_step, static_argnames=("config", "items_per_row", "b1", "b2"))
    for number, batch in enumerate(batches(config, 1)):
        params, moments, loss = step(
            params,
            moments,
            batch,
            number,
            config=config.model.scratch,
            items_per_row=tiny.ROW.items,
            rate=schedule(number),
            clip=options["clip_norm"],
            **{name: options[name] for name in ("b1", "b2", "eps")},
        )
        assert loss == pytest.approx(on_one_device[0][number]["loss"], abs=1e-5)
    for found, expected in zip(
        jax.tree.leaves(on_one_device[1]), jax.tree.leaves(params), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_large_mesh_really_shards_the_weights():
    config = config_for(MeshConfig(data=1, fsdp=4, tensor=2))
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, steps=10)
    params = initial_params(config.model.scratch, seed=0, model=None, optimizer=config.optimizer)
    state, _ = create_state(params, optimizer, config.model.scratch, mesh, rules=ShardingRules())
    kernel = state.params["model"]["language"]["blocks"]["gate"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    moment = state.opt_state[1].mu["model"]["language"]["blocks"]["gate"]["kernel"]
    assert moment.sharding == kernel.sharding
