"""The dense layer: its value, and gradients that are summed in float32 whatever else is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.models import lora, qwen2_vl
from marvel_jax.models.linear import contract, matmul
from tests.models.samples import all_samples, build_rows, small_config


@settings(max_examples=20)
@given(
    st.lists(st.integers(1, 4), max_size=3),
    st.integers(1, 6),
    st.lists(st.integers(1, 4), min_size=1, max_size=2),
    st.integers(0, 99),
)
def test_the_last_axis_meets_the_kernels_first(leading, width, features, seed):
    """Value and both gradients, also of a kernel with two axes of features."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((*leading, width)).astype(np.float32)
    kernel = random.standard_normal((width, *features)).astype(np.float32)
    weight = random.standard_normal((*leading, *features)).astype(np.float32)
    found, pull = jax.vjp(matmul, jnp.asarray(x), jnp.asarray(kernel))
    np.testing.assert_allclose(found, np.tensordot(x, kernel, 1), atol=1e-5)
    of_x, of_kernel = pull(jnp.asarray(weight))
    axes = list(range(-len(features), 0))
    np.testing.assert_allclose(of_x, np.tensordot(weight, kernel, (axes, axes)), atol=1e-5)
    rows = list(range(len(leading)))
    np.testing.assert_allclose(of_kernel, np.tensordot(x, weight, (rows, rows)), atol=1e-5)


def test_the_gradient_of_a_float32_kernel_is_not_rounded():
    """Operands of bfloat16, their products summed in float32 and left so."""
    random = np.random.default_rng(0)
    x, weight = (jnp.asarray(random.standard_normal((4, 50, 6)), jnp.bfloat16) for _ in range(2))
    kernel = jnp.asarray(random.standard_normal((6, 2, 3)), jnp.float32)

    def total(x, kernel):
        return jnp.sum(matmul(x, kernel).reshape(4, 50, 6) * weight, dtype=jnp.float32)

    of_x, of_kernel = jax.grad(total, argnums=(0, 1))(x, kernel)
    assert of_x.dtype == jnp.bfloat16
    assert of_kernel.dtype == jnp.float32
    x, weight = (np.asarray(a, np.float64).reshape(200, 6) for a in (x, weight))
    exact = (x.T @ weight).reshape(6, 2, 3)
    np.testing.assert_allclose(of_kernel, exact, atol=1e-6 * np.abs(exact).max())


def test_accelerators_are_given_the_narrow_operands():
    """Only the CPU pays for operands of float32; what leaves the contraction is always that."""
    x = jax.ShapeDtypeStruct((64, 8), jnp.bfloat16)
    dims = (((0,), (0,)), ((), ()))
    for platform, operand in (("tpu", "bf16"), ("cuda", "bf16"), ("cpu", "f32")):
        lowered = jax.jit(lambda a, b: contract(a, b, dims)).trace(x, x)
        text = lowered.lower(lowering_platforms=(platform,)).as_text()
        (line,) = [line for line in text.splitlines() if "dot_general" in line]
        assert f"(tensor<64x8x{operand}>, tensor<64x8x{operand}>) -> tensor<8x8xf32>" in line


CONFIG = small_config()
SAMPLES = all_samples(CONFIG, seed=7)


@pytest.mark.parametrize("adapted", [False, True])
def test_what_rows_add_to_a_gradient_is_added_in_float32(adapted):
    """In bfloat16, the gradient of all rows is the sum of the rows' gradients: every parameter.

    One program gives all of them, so each row's own cotangents are the same numbers; a sum, over
    rows or tokens, that passed through bfloat16 would be off by 4e-3.
    """
    rows = build_rows([SAMPLES[:2], SAMPLES[2:4], SAMPLES[4:5], SAMPLES[5:]])
    random = np.random.default_rng(0)
    noise = lambda x: x + 0.2 * random.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    params = jax.tree.map(noise, qwen2_vl.init_params(CONFIG, key=jax.random.key(0)))
    settings = lora.LoraConfig(rank=3)
    adapters = jax.tree.map(noise, lora.init_adapters(CONFIG, settings, key=jax.random.key(0)))
    options = {"items_per_row": 2, "dtype": jnp.bfloat16}

    @jax.jit
    @jax.grad
    def gradient(trained, weights):
        if adapted:
            half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
            more = {"adapters": trained, "lora": settings}
            vectors = qwen2_vl.embed(half, rows, CONFIG, **options, **more).vectors
        else:
            vectors = qwen2_vl.embed(trained, rows, CONFIG, **options).vectors
        return jnp.sum(vectors[..., :5].sum(axis=(1, 2)) * weights)

    trained = adapters if adapted else params
    whole = gradient(trained, np.ones(4, np.float32))
    parts = [gradient(trained, row) for row in np.eye(4, dtype=np.float32)]
    total = jax.tree.map(lambda *leaves: np.sum(np.stack(leaves), axis=0, dtype=np.float64), *parts)
    for (path, found), expected in zip(
        jax.tree.leaves_with_path(whole), jax.tree.leaves(total), strict=True
    ):
        assert found.dtype == jnp.float32
        error = np.abs(found - expected).max() / np.abs(expected).max()
        assert error <= 1e-5, (jax.tree_util.keystr(path), error)
