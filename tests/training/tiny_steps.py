"""Steps of a tiny model on any mesh, for tests: config, batches, a run, what it compiles to.

A query has up to two labels and one hard negative, several items share a row, and the model's axes
all divide by eight.
"""

import dataclasses
from collections.abc import Iterator
from functools import cache, partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from marvel_jax.data import lengths, pipeline
from marvel_jax.data.batch import Batch
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.taught import QueryLists, TaughtSource, lists_of
from marvel_jax.data.teacher import TeacherLists
from marvel_jax.models.lora import LoraConfig
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.parallel.mesh import (
    MESH_AXES,
    MeshConfig,
    data_shards,
    device_grid,
    make_mesh,
)
from marvel_jax.parallel.sharding import put_batch
from marvel_jax.training.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from marvel_jax.training.inputs import open_texts
from marvel_jax.training.objective_config import labels
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.state import Placed, create_state, initial_values
from marvel_jax.training.step import Step, make_train_step
from tests import tiny

ONE = MeshConfig(data=1)
LORA = LoraConfig(rank=8, alpha=16.0, dropout=0.3)
ARCHITECTURE = tiny.architecture(
    hidden_size=64, intermediate_size=96, num_attention_heads=8, num_key_value_heads=4
)


def config_for(mesh: MeshConfig = ONE, *, adapters: bool = False, **changes: Any) -> TrainConfig:
    """Of the whole model, or of adapters with dropout; `changes` are fields of `TrainConfig`."""
    config = TrainConfig(
        data=DataConfig(
            path=".", global_batch=16, row=tiny.ROW, positives_per_query=2, hard_negatives=1
        ),
        model=ModelConfig(scratch=ARCHITECTURE, adapters=LORA if adapters else None),
        # A large epsilon: Adam would blow up rounding in gradients near zero to whole steps.
        optimizer=OptimizerConfig(learning_rate=1e-3, eps=1e-3),
        mesh=mesh,
        steps=10,
    )
    return dataclasses.replace(config, **changes)


def batches(config: TrainConfig, shards: int, *, num_steps: int) -> Iterator[Batch]:
    data = config.data
    source, processor = tiny.TinySource(positives=data.positives_per_query), tiny.processor()
    index = _index(data.positives_per_query)
    plan_config = PlanConfig(
        data.global_batch,
        config.seed,
        data.row,
        row_sizes=1,
        positives_per_query=labels(config),
        hard_negatives=data.hard_negatives,
        # The same rows whether they are cut in chunks or not.
        chunk_rows=4,
    )
    plan = Plan(index, plan_config, num_shards=shards, lists=_lists(config))
    build = partial(pipeline.build_batch, texts=open_texts(config, processor))
    for _, batch in pipeline.batches(
        source, processor, plan, start_step=0, num_steps=num_steps, build=build
    ):
        yield batch


def teacher(source: tiny.TinySource, *, width: int, seed: int = 0) -> TeacherLists:
    """Random lists of 2 to `width` candidates, the answer among them or not."""
    rng = np.random.default_rng(seed)
    count, pool = len(source.queries), len(source.candidates)
    lengths = rng.integers(2, width + 1, count)
    candidates = np.stack([rng.permutation(pool)[:width] for _ in range(count)]).astype(np.int32)
    candidates[::2, 0] = np.arange(0, count, 2)
    candidates[np.arange(width) >= lengths[:, None]] = -1
    yes, no = (rng.normal(0, 3, (2, count, width)) * (candidates >= 0)).astype(np.float32)
    recall = (rng.uniform(0.2, 0.9, (count, width)) * (candidates >= 0)).astype(np.float32)
    manifest = {"content_hash": f"lists {seed}", "teacher_hash": "t0"}
    return TeacherLists(np.arange(count, dtype=np.int32), candidates, yes, no, recall, manifest)


def _lists(config: TrainConfig) -> QueryLists | None:
    """Two lists of each query; of every fifth none, as if it came from a part without a teacher."""
    if config.distillation is None:
        return None
    source = tiny.TinySource(positives=config.data.positives_per_query)
    files = tuple(teacher(source, width=5, seed=seed) for seed in (0, 1))
    found = lists_of(TaughtSource(source, files, (0.5, 1.0)), depth=config.distillation.depth)
    found.rows[::5] = -1
    return found


@cache
def _index(positives: int) -> lengths.LengthsIndex:
    source, processor = tiny.TinySource(positives=positives), tiny.processor()
    return lengths.index(source, processor, cache=None, hard_negatives=True)


def start(config: TrainConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is trained and what is frozen at the start, as numpy arrays."""
    return _start(config.model, config.optimizer, config.loss, config.seed)


@cache
def _start(model: ModelConfig, optimizer: OptimizerConfig, loss: LossConfig, seed: int) -> Any:
    config = config_for(model=model, optimizer=optimizer, loss=loss, seed=seed)
    assert model.scratch is not None
    values = initial_values(config, model.scratch, weights=_weights(seed), temperature=None)
    return jax.device_get(values)


@cache
def _weights(seed: int) -> dict[str, Any]:
    return jax.device_get(init_params(ARCHITECTURE, key=jax.random.key(seed)))


class Built(NamedTuple):
    """A step that is ready to be compiled, and the state it starts from."""

    mesh: Mesh
    placed: Placed
    step: Step


def mesh_for(sizes: MeshConfig) -> Mesh:
    """A mesh of as many fake devices as it takes; `groups` of them stand for so many hosts."""
    devices = jax.devices()[: sizes.data * sizes.fsdp * sizes.tensor]
    if sizes.groups == 1:
        return make_mesh(sizes, devices=devices)
    each = len(devices) // sizes.groups
    hosts = [
        SimpleNamespace(id=number, process_index=number // each, platform="cpu", device_kind="cpu")
        for number in range(len(devices))
    ]
    places = np.vectorize(lambda stand_in: stand_in.id)(device_grid(sizes, hosts))
    axis_types = (AxisType.Auto,) * len(MESH_AXES)
    return Mesh(np.array(devices)[places], MESH_AXES, axis_types=axis_types)


def build(config: TrainConfig, *, zeros: bool = False) -> Built:
    """With `zeros` in place of all values, for any architecture."""
    mesh = mesh_for(config.mesh)
    architecture = config.model.scratch
    assert architecture is not None
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    if zeros:
        shapes = jax.eval_shape(
            lambda: initial_values(config, architecture, weights=None, temperature=None)
        )
        params, frozen = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    else:
        params, frozen = start(config)
    placed = create_state(params, frozen, optimizer, config, architecture, mesh)
    step = make_train_step(
        config,
        architecture,
        optimizer,
        mesh,
        shardings=placed.shardings,
        frozen_shardings=placed.frozen_shardings,
    )
    return Built(mesh, placed, step)


def compiled(step: Any, *arguments: Any) -> Any:
    """The program of a step, without the last stage's optimisations: they take half of the time."""
    lowered = step.lower(*arguments)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


class Run(NamedTuple):
    """What a run leaves: metrics of each step, what was trained, and the compiled program."""

    history: list[dict[str, float]]
    params: dict[str, Any]
    program: Any


def run(config: TrainConfig, *, num_steps: int) -> Run:
    """Runs steps whose batches all have one shape."""
    mesh, placed, step = build(config)
    state, program = placed.state, None
    finite: Any = np.True_
    history = []
    for batch in batches(config, data_shards(mesh), num_steps=num_steps):
        put = put_batch(batch, mesh)
        if program is None:
            program = compiled(step, state, placed.frozen, put, finite)
        state, metrics = program(state, placed.frozen, put, finite)
        finite = metrics["finite"]
        history.append({name: float(value) for name, value in metrics.items()})
    return Run(history, jax.device_get(state.params), program)
