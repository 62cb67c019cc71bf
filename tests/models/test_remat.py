"""What is computed again in the backward pass: same gradients, less memory; and depth is free."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.models import lora, qwen2_vl
from tests.models.samples import Rows, all_samples, build_rows, small_config

# From the most that is computed again to the least.
POLICIES = ("full", "dots", "attention", "none")
LORA = lora.LoraConfig(rank=3, dropout=0.3)


def gradient(rows, config, *, remat, dtype=jnp.float32, base=False):
    """jit of (adapters, params) -> the gradient of the adapters, or of everything, with dropout."""
    items = int(rows.segments.max())
    keys = np.arange(len(rows.segments) * items * 2, dtype=np.uint32).reshape(-1, items, 2)

    def total(adapters, params):
        options = {"adapters": adapters, "lora": LORA, "dtype": dtype, "remat": remat}
        options["dropout_keys"] = lora.token_keys(rows.segments, keys, seed=0, step=0)
        embed = functools.partial(qwen2_vl.embed, items_per_row=items)
        return jnp.sum(embed(params, rows, config, **options).vectors ** 3)

    return jax.jit(jax.grad(total, argnums=(0, 1) if base else 0))


def trees(config):
    random = np.random.default_rng(0)
    noise = lambda x: x + 0.2 * random.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    adapters = lora.init_adapters(config, LORA, key=jax.random.key(1))
    params = qwen2_vl.init_params(config, key=jax.random.key(0))
    return jax.tree.map(noise, (adapters, params))


def test_every_policy_gives_the_same_gradients():
    """Of adapters and base, with dropout, whose masks are drawn again; to 1e-6 of the largest."""
    config = small_config()
    rows = build_rows([all_samples(config)[:3]])
    inputs = trees(config)
    results = {
        remat: jax.tree.leaves(gradient(rows, config, remat=remat, base=True)(*inputs))
        for remat in POLICIES
    }
    for remat in POLICIES[:-1]:
        for ours, expected in zip(results[remat], results["none"], strict=True):
            scale = np.abs(expected).max()
            np.testing.assert_allclose(ours, expected, atol=1e-6 * scale, rtol=0)


def text_rows(config, *, length, items):
    place = np.arange(length)
    segments = (place // (length // items) + 1)[None].astype(np.int32)
    return Rows(
        tokens=(place % 50)[None].astype(np.int32),
        positions=np.repeat(place[None, :, None], 3, axis=2).astype(np.int32),
        segments=segments,
        pooled=segments > 0,
        patches=np.zeros((1, 0, config.vision.still_values), np.uint8),
        patch_hw=np.zeros((1, 0, 2), np.int32),
        patch_segments=np.zeros((1, 0), np.int32),
        vision_index=np.full((1, length), -1, np.int32),
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_policy_needs_less_memory_than_the_next(dtype):
    """On a long row, where the attention weights are the most of it: as compiled, in bytes."""
    config = small_config(
        num_hidden_layers=4, hidden_size=64, intermediate_size=128, mrope_section=(2, 3, 3)
    )
    rows = text_rows(config, length=1024, items=8)
    inputs = jax.eval_shape(lambda: trees_of_shapes(config))
    needs = [
        gradient(rows, config, remat=remat, dtype=jnp.dtype(dtype), base=True)
        .lower(*inputs)
        .compile()
        .memory_analysis()
        .temp_size_in_bytes
        for remat in POLICIES
    ]
    full, dots, attention, none = needs
    assert 1.1 * full < dots
    assert 1.1 * dots < attention
    # The weights of all layers at once: heads * length^2 * layers float32 numbers.
    assert none - attention > 0.8 * 4 * 1024**2 * 4 * np.dtype(jnp.dtype(dtype)).itemsize
    assert attention < 4 * 1024**2 * 4 * 4


def trees_of_shapes(config):
    key = jax.random.key(0)
    return lora.init_adapters(config, LORA, key=key), qwen2_vl.init_params(config, key=key)


def test_depth_costs_no_program():
    """28 layers compile to a program at most 1.3 times that of 4."""

    def program(layers):
        config = small_config(num_hidden_layers=layers)
        rows = build_rows([all_samples(config)[:2]])
        inputs = jax.eval_shape(lambda: trees_of_shapes(config))
        return gradient(rows, config, remat="full").lower(*inputs).compile().as_text()

    assert len(program(28)) < 1.3 * len(program(4))


def test_without_adapters_a_block_is_nine_matmuls():
    """Seven dense layers, logits and mixing: adapters that are not there cost nothing."""
    config = small_config()
    rows = text_rows(config, length=16, items=2)
    adapters, params = jax.eval_shape(lambda: trees_of_shapes(config))

    def block(**options):
        embed = functools.partial(qwen2_vl.embed, items_per_row=2, **options)
        return str(jax.make_jaxpr(lambda params: embed(params, rows, config))(params))

    plain = block()
    assert plain.count("dot_general[") == 9 + 1  # and the mean over an item's tokens
    assert "uint32" not in plain
    assert "u32" not in plain
    adapted = jax.make_jaxpr(
        lambda params, adapters: qwen2_vl.embed(
            params, rows, config, items_per_row=2, adapters=adapters, lora=LORA
        )
    )(params, adapters)
    assert str(adapted).count("dot_general[") == 9 + 1 + 14
    assert "u32" not in str(adapted)
