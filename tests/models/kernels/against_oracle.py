"""Random heads, and what a kernel makes of them beside the oracle: values and gradients."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from marvel_jax.models.kernels import xla


class Shape(NamedTuple):
    """Rows, tokens, query heads, key heads, size of a head."""

    rows: int
    length: int
    heads: int
    groups: int
    size: int


class Heads(NamedTuple):
    """Query, key, value and a cotangent of the result, as numpy arrays."""

    query: Any
    key: Any
    value: Any
    cotangent: Any


def random_heads(shape: Shape, *, seed: int) -> Heads:
    random = np.random.default_rng(seed)
    query, cotangent = random.standard_normal((2, *shape[:3], shape.size)).astype(np.float32)
    keys = (2, shape.rows, shape.length, shape.groups, shape.size)
    return Heads(query, *random.standard_normal(keys).astype(np.float32), cotangent)


def packed_segments(shape: Shape, *, seed: int) -> np.ndarray:
    """Items of random lengths one after the other, and padding behind them."""
    random = np.random.default_rng(seed)
    segments = np.sort(random.integers(1, 6, (shape.rows, shape.length)), axis=1)
    for row, padding in zip(segments, random.integers(0, shape.length, shape.rows), strict=True):
        row[shape.length - padding :] = 0
    return segments.astype(np.int32)


def any_segments(shape: Shape) -> st.SearchStrategy[np.ndarray]:
    """In any order, padding between the items too; or packed, as rows are."""
    count = shape.rows * shape.length
    strewn = st.lists(st.integers(0, 4), min_size=count, max_size=count).map(
        lambda values: np.array(values, np.int32).reshape(shape.rows, shape.length)
    )
    packed = st.integers(0, 99).map(lambda seed: packed_segments(shape, seed=seed))
    return strewn | packed


@functools.cache
def program(attend: Callable[..., Any], causal: bool, dtype: str = "float32") -> Callable[..., Any]:
    """jit of (heads, segments) -> the result and the gradients of query, key and value."""

    def run(heads: Heads, segments: Any) -> tuple[Any, ...]:
        narrow = [x.astype(dtype) for x in heads[:3]]
        mixed, back = jax.vjp(lambda *x: attend(*x, segments, causal=causal), *narrow)
        return mixed, *back(jnp.asarray(heads.cotangent).astype(mixed.dtype))

    return jax.jit(run)


def oracle(query: Any, key: Any, value: Any, segments: Any, *, causal: bool) -> jax.Array:
    return xla.attend(query, key, value, segments, causal=causal, keep="weights")


def assert_equal(attend: Callable[..., Any], heads: Heads, segments: Any, *, causal: bool) -> None:
    """To 1e-5 of the largest: sums of a hundred products of this size are not rounded better."""
    found = program(attend, causal)(heads, segments)
    expected = program(oracle, causal)(heads, segments)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * max(1, np.abs(other).max()))


def errors(attend: Callable[..., Any], heads: Heads, segments: Any, *, dtype: str) -> list[float]:
    """How far the result and the gradients in `dtype` are from the oracle's in float32."""
    narrow = Heads(*(np.asarray(jnp.asarray(x, dtype), np.float32) for x in heads))
    exact = program(oracle, False)(narrow, segments)
    found = program(attend, False, dtype)(narrow, segments)
    return [
        float(np.sqrt(np.mean((np.asarray(one, np.float32) - other) ** 2)))
        for one, other in zip(found, exact, strict=True)
    ]
