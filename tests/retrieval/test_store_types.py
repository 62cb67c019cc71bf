import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_stores import random_unit

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.store_types import (
    STORE_TYPES,
    bytes_per_vector,
    decode,
    encode,
    truncate,
)


def round_trip(vectors, dtype):
    return decode(encode(vectors, dtype), dtype, dimension=vectors.shape[1])


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 9),
    dimension=st.integers(1, 70),
    seed=st.integers(0, 2**32 - 1),
    peaked=st.booleans(),
)
def test_what_a_type_loses_is_bounded(rows, dimension, seed, peaked):
    vectors = random_unit(rows, dimension, seed=seed)
    if peaked:  # one number as large as all others together
        vectors[:, 0] = 1
        vectors = truncate(np.pad(vectors, ((0, 0), (0, 1))), dimension)
    found = {dtype: round_trip(vectors, dtype) for dtype in STORE_TYPES}
    for dtype in STORE_TYPES:
        assert found[dtype].dtype == np.float32
        assert encode(vectors, dtype).nbytes == rows * bytes_per_vector(dtype, dimension)
    np.testing.assert_array_equal(found["float32"], vectors)
    # A rounding to 8 bits of mantissa.
    assert (np.abs(found["bfloat16"] - vectors) <= 2.0**-8 * np.abs(vectors)).all()
    # Half a step of 1/127 of the largest number in each number, and as much in the norm again.
    step = np.abs(vectors).max(axis=1, keepdims=True) / 127
    error = np.linalg.norm(found["int8"] - vectors, axis=1, keepdims=True)
    assert (error <= step * dimension**0.5 + 1e-6).all()
    np.testing.assert_array_equal(found["binary"] > 0, vectors >= 0)
    for dtype in ("int8", "binary"):
        np.testing.assert_allclose(np.linalg.norm(found[dtype], axis=1), 1, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_bfloat16_is_rounded_as_jax_rounds(seed):
    bits = np.random.default_rng(seed).integers(0, 0x3F80, (4, 64)).astype(np.uint32) << 16
    # Halves, and their neighbours on both sides, of either sign.
    vectors = (bits + np.array([0x8000, 0x7FFF, 0x8001, 0])[:, None]).astype(np.uint32)
    vectors = vectors.view(np.float32) * np.where(np.arange(64) % 2, -1, 1).astype(np.float32)
    expected = np.asarray(jnp.asarray(vectors).astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(round_trip(vectors, "bfloat16"), expected)


def test_truncation_keeps_the_first_numbers_and_the_norm():
    vectors = random_unit(20, 12)
    short = truncate(vectors, 5)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, atol=1e-6)
    ratio = short / vectors[:, :5]
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1], ratio.shape), rtol=1e-5)
    np.testing.assert_array_equal(truncate(vectors, 12), vectors)


def test_another_type_is_refused():
    with pytest.raises(MarvelError, match="dtype='float16': vectors are stored as one of float32"):
        encode(random_unit(2, 4), "float16")
