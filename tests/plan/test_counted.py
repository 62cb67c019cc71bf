"""Products are counted as often as they are computed, wherever a program hides them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.parallel.mesh import MeshConfig, make_mesh
from marvel_jax.plan.counted import count_products
from marvel_jax.plan.program import trace_train_step
from tests.training import tiny_steps
from tests.training.tiny_steps import config_for

X, W = np.ones((6, 4), np.float32), np.ones((4, 4), np.float32)
ONCE = 2 * 6 * 4 * 4


def flops(function, *arguments, devices: int = 1) -> float:
    traced = jax.jit(function).trace(*arguments)
    return count_products(traced.jaxpr.jaxpr, devices=devices).flops


def test_a_loop_counts_as_often_as_it_goes_round():
    def body(x, w):
        return jnp.sin(x @ w), None

    assert flops(lambda x, w: jax.lax.scan(body, x, jnp.stack([w] * 5))[0], X, W) == 5 * ONCE


def test_what_is_computed_again_counts_again():
    def block(x, w):
        return jnp.sin(jnp.sin(x @ w) @ w).sum()

    kept = flops(jax.grad(block, argnums=(0, 1)), X, W)
    again = flops(jax.grad(jax.checkpoint(block), argnums=(0, 1)), X, W)
    assert kept == 6 * ONCE  # two forward, and twice that backward
    assert kept < again <= kept + 2 * ONCE


def test_of_alternatives_one_counts():
    def either(x, w):
        return jax.lax.platform_dependent(x, w, cpu=lambda x, w: x @ w, default=lambda x, w: x @ w)

    assert flops(either, X, W) == ONCE


def test_a_device_has_its_share():
    mesh = make_mesh(MeshConfig(2, 4))
    specs = jax.P("data")
    split = jax.shard_map(
        lambda x: x @ W, mesh=mesh, in_specs=specs, out_specs=specs, axis_names={"data"}
    )
    # Half of the rows on each half of the mesh, and a quarter of that on each device of it.
    assert flops(split, X, devices=8) == ONCE / 8
    assert flops(lambda x: x @ W, X, devices=8) == ONCE / 8


@pytest.fixture(scope="module")
def steps():
    """Products of tiny train steps: (adapters, remat, chunk_rows) -> Counted."""
    found = {}
    for adapters, remat, chunk in (
        (True, "none", None),
        (True, "none", 2),
        (True, "full", None),
        (False, "none", None),
    ):
        config = config_for(adapters=adapters, chunk_rows=chunk)
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
        batch = next(tiny_steps.batches(config, 1, num_steps=1))
        mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
        traced = trace_train_step(config, tiny_steps.ARCHITECTURE, batch, mesh).traced
        found[adapters, remat, chunk] = count_products(traced.jaxpr.jaxpr, devices=1)
    return found


def test_parts_are_told_apart(steps):
    for counted in steps.values():
        parts = {one.part for one in counted.products}
        assert parts == {"vision", "language", "loss"}
        assert {one.part for one in counted.products if one.attention} == {"vision", "language"}


def test_chunks_encode_twice_and_rematerialisation_does_again(steps):
    plain = steps[True, "none", None]
    chunked, again = steps[True, "none", 2], steps[True, "full", None]
    # A frozen vision tower is passed forward once, and once more in chunks.
    assert chunked.flops_of("vision") == pytest.approx(2 * plain.flops_of("vision"), rel=1e-6)
    assert again.flops_of("vision") == plain.flops_of("vision")
    for one in (chunked, again):
        # One forward pass more: of two and a little, for the adapters.
        assert 1.3 < one.flops_of("language") / plain.flops_of("language") < 1.6


def test_training_everything_computes_more_than_adapters(steps):
    everything, adapters = steps[False, "none", None], steps[True, "none", None]
    # The gradients of the kernels themselves, in both towers, for those of the adapters.
    for part, least in (("vision", 2.5), ("language", 1.05)):
        assert everything.flops_of(part) > least * adapters.flops_of(part)


def test_a_kernel_visits_a_share_of_the_pairs(steps):
    counted = steps[True, "none", None]
    none = counted.with_kernels({"vision": 0.0, "language": 0.0})
    attention = sum(one.flops * times for one, times in counted.products.items() if one.attention)
    assert counted.flops - none.flops == pytest.approx(attention)
    half = counted.with_kernels({"vision": 0.5, "language": 0.5})
    assert counted.flops - half.flops == pytest.approx(attention / 2)
