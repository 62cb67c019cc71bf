"""The step: the plain step's values, what is dropped and when, and what a failure leaves behind."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.data.batch import RowShape
from marvel_jax.losses.forms import FORMS
from marvel_jax.parallel.mesh import MeshConfig, data_shards
from marvel_jax.parallel.sharding import put_batch
from marvel_jax.training.config import DataConfig, LossConfig, ModelConfig
from marvel_jax.training.optimizer import learning_rate_schedule
from marvel_jax.training.step import loss_implementation
from tests import plain_step, tiny
from tests.training import tiny_steps
from tests.training.tiny_steps import ARCHITECTURE, ONE, config_for

STEPS = 4
PAIRS = DataConfig(path=".", global_batch=16, row=tiny.ROW)


@pytest.fixture(scope="module")
def on_one_device():
    """Steps on plain pairs, which is what the plain step knows."""
    return tiny_steps.run(config_for(data=PAIRS), num_steps=STEPS)


def test_equals_the_plain_step(on_one_device):
    config = config_for(data=PAIRS)
    options = dataclasses.asdict(config.optimizer)
    params = tiny_steps.start(config)[0]
    moments = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(2))
    schedule = learning_rate_schedule(config.optimizer, steps=config.steps)
    step = jax.jit(plain_step.train_step, static_argnames=("config", "items_per_row", "b1", "b2"))
    for number, batch in enumerate(tiny_steps.batches(config, 1, num_steps=STEPS)):
        params, moments, loss = step(
            params,
            moments,
            batch._replace(own_positive=batch.own_positive[:, 0]),
            number,
            config=ARCHITECTURE,
            items_per_row=tiny.ROW.items,
            rate=schedule(number),
            clip=options["clip_norm"],
            **{name: options[name] for name in ("b1", "b2", "eps")},
        )
        assert loss == pytest.approx(on_one_device.history[number]["loss"], abs=1e-5)
    jax.tree.map(
        lambda found, expected: np.testing.assert_allclose(found, expected, atol=1e-5),
        on_one_device.params,
        params,
    )


def test_packing_does_not_change_the_loss(on_one_device):
    alone = dataclasses.replace(PAIRS, row=RowShape(tokens=64, patches=64, items=1))
    history = tiny_steps.run(config_for(data=alone), num_steps=STEPS).history
    for found, expected in zip(history, on_one_device.history, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], abs=1e-5)


class Stepper:
    """One compiled step of adapters with dropout, run from any state on any batch."""

    def __init__(self) -> None:
        self.config = config_for(adapters=True)
        self.mesh, self.placed, self.step = tiny_steps.build(self.config)
        self.start = jax.device_get(self.placed.state)
        shards = data_shards(self.mesh)
        self.batch = next(tiny_steps.batches(self.config, shards, num_steps=1))

    def __call__(self, state: Any, finite: bool = True, batch: Any = None) -> Any:
        placed = jax.device_put(state, self.placed.shardings)
        put = put_batch(self.batch if batch is None else batch, self.mesh)
        return jax.device_get(self.step(placed, self.placed.frozen, put, np.bool_(finite)))

    def with_b(self, value: float, *, step: int = 0) -> Any:
        """The start, but for b of every adapter, and the number of steps."""
        adapters = jax.tree_util.tree_map_with_path(
            lambda keys, leaf: np.full_like(leaf, value) if keys[-1].key == "b" else leaf,
            self.start.params["adapters"],
        )
        params = self.start.params | {"adapters": adapters}
        return self.start._replace(params=params, step=np.int32(step))


@pytest.fixture(scope="module")
def stepper():
    return Stepper()


def equal(found: Any, expected: Any) -> bool:
    return all(
        np.array_equal(one, other)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    )


def test_dropout_is_drawn_anew_at_each_step_and_is_the_same_when_a_step_is_repeated(stepper):
    losses = [float(stepper(stepper.with_b(0.05, step=n))[1]["loss"]) for n in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(stepper, poison):
    poisoned = stepper.with_b(poison, step=3)
    after, metrics = stepper(poisoned)
    assert not metrics["finite"] and not np.isfinite(metrics["loss"])
    jax.tree.map(np.testing.assert_array_equal, after, poisoned)


def test_the_step_after_one_that_was_not_finite_changes_nothing_either(stepper):
    after, metrics = stepper(stepper.start, finite=False)
    assert not metrics["finite"] and np.isfinite(metrics["loss"])
    assert equal(after, stepper.start)
    after, metrics = stepper(stepper.start)
    assert metrics["finite"] and after.step == 1 and not equal(after, stepper.start)


def test_padding_of_the_batch_has_no_part_in_the_step(stepper):
    """Queries and candidates that are not valid may stand for anything."""
    batch, rng = stepper.batch, np.random.default_rng(0)
    assert not batch.candidate_valid.all() and (batch.own_positive < 0).any()

    def scramble(field: np.ndarray, valid: np.ndarray, high: int) -> np.ndarray:
        noise = rng.integers(0, high, field.shape).astype(field.dtype)
        return np.where(valid.reshape(valid.shape + (1,) * (field.ndim - valid.ndim)), field, noise)

    slots = batch.rows.tokens.shape[0] * tiny.ROW.items
    changed = batch._replace(
        candidate_slot=scramble(batch.candidate_slot, batch.candidate_valid, slots),
        candidate_id=scramble(batch.candidate_id, batch.candidate_valid, 2**31),
        positive_ids=scramble(batch.positive_ids, batch.positive_valid, 2**31),
    )
    state, expected = stepper.with_b(0.05), stepper(stepper.with_b(0.05))
    assert equal(stepper(state, batch=changed), expected)


@pytest.mark.parametrize(
    ("form", "implementation"),
    [(form, "auto") for form in FORMS] + [("softmax", "dense"), ("softmax", "ring")],
)
def test_every_form_of_the_loss_can_be_trained(form, implementation):
    loss = LossConfig(form=form, implementation=implementation)
    config = config_for(MeshConfig(2, 2), loss=loss, chunk_rows=2)
    mesh, placed, step = tiny_steps.build(config)
    batch = next(tiny_steps.batches(config, data_shards(mesh), num_steps=1))
    state, metrics = jax.eval_shape(step, placed.state, placed.frozen, batch, np.True_)
    assert jax.tree.structure(state) == jax.tree.structure(placed.state)
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("loss", "batch", "shards", "width", "expected"),
    [
        (LossConfig(), 1024, 1, 32, "dense"),
        (LossConfig(), 1024, 8, 32, "gather"),
        # 4 bytes * B * 2 B / shards: 128 MiB a shard.
        (LossConfig(), 4096, 1, 32, "ring"),
        (LossConfig(), 8192, 8, 32, "gather"),
        (LossConfig(), 16_384, 8, 32, "ring"),
        (LossConfig(form="llave"), 16_384, 8, 32, "gather"),
        (LossConfig(form="llave"), 4096, 1, 32, "gather"),
        (LossConfig(implementation="dense"), 16_384, 8, 32, "dense"),
        # Of few similarities a shard, but 4 bytes * 2 B * width: 1 GiB of candidates, and more.
        (LossConfig(), 32_768, 1024, 4096, "gather"),
        (LossConfig(), 32_768 + 1024, 1024, 4096, "ring"),
        (LossConfig(form="llave"), 32_768 + 1024, 1024, 4096, "gather"),
        # One shard has them anyway.
        (LossConfig(), 1024, 1, 1 << 20, "dense"),
    ],
)
def test_the_implementation_follows_from_what_similarities_and_candidates_take(
    loss, batch, shards, width, expected
):
    data = DataConfig(path=".", global_batch=batch, hard_negatives=1)
    config = config_for(loss=loss, data=data)
    assert loss_implementation(config, shards=shards, width=width) == expected


def arguments_for(rows: int, *, layers: int = 2, **changes: Any) -> tuple[Any, ...]:
    """A step on one device and what it takes for so many rows, without a batch or weights."""
    text = dataclasses.replace(ARCHITECTURE.text, num_hidden_layers=layers)
    vision = dataclasses.replace(ARCHITECTURE.vision, depth=layers)
    architecture = dataclasses.replace(ARCHITECTURE, text=text, vision=vision)
    config = config_for(ONE, model=ModelConfig(scratch=architecture), **changes)
    built = tiny_steps.build(config, zeros=True)
    batch = next(tiny_steps.batches(config, 1, num_steps=1))
    have = len(batch.rows.tokens)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((len(leaf) * rows // have, *leaf.shape[1:]), leaf.dtype),
        batch,
    )
    return built.step, built.placed.state, built.placed.frozen, shapes, np.True_


def test_with_chunks_memory_grows_only_by_the_embeddings():
    few, many = (
        tiny_steps.compiled(*arguments_for(rows, chunk_rows=2)).memory_analysis()
        for rows in (64, 256)
    )
    embeddings = 4 * (256 - 64) * tiny.ROW.items * ARCHITECTURE.text.hidden_size
    # One copy, and a few kilobytes for the loss; a chunk alone takes twenty times as much.
    assert few.temp_size_in_bytes > 20 * embeddings
    assert many.temp_size_in_bytes - few.temp_size_in_bytes <= 1.1 * embeddings


def test_the_program_does_not_grow_with_depth():
    def size(layers: int) -> int:
        step, *arguments = arguments_for(64, layers=layers, chunk_rows=4)
        return len(step.lower(*arguments).as_text())

    assert size(28) <= 1.05 * size(4)
