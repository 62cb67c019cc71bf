"""The Pallas kernel for GPUs, interpreted on the CPU, is the oracle: values and gradients."""

import functools
from collections.abc import Iterator
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.models.kernels import gpu_tiles, pallas_gpu
from tests.models.kernels.against_oracle import (
    Shape,
    any_segments,
    assert_equal,
    errors,
    oracle,
    packed_segments,
    random_heads,
)

attend = functools.partial(pallas_gpu.attend, interpret=True)
# Sizes that differ in each kernel, so that a short row is many tiles and sides are not confused.
SMALL = pallas_gpu.Tiles(forward=(32, 16), key_gradient=(16, 32), query_gradient=(16, 64))
PACKED = Shape(rows=2, length=77, heads=4, groups=2, size=24)
SHAPES = (
    Shape(rows=1, length=5, heads=2, groups=1, size=16),  # less than a tile
    Shape(rows=1, length=64, heads=2, groups=2, size=80),  # the vision tower's heads
    Shape(rows=1, length=70, heads=7, groups=1, size=128),  # the language model's, 7 to a key head
)


@pytest.fixture(autouse=True)
def small_tiles() -> Iterator[None]:
    with mock.patch.multiple(pallas_gpu, _WIDE=SMALL, _NARROW=SMALL):
        yield


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=10)
@given(any_segments(PACKED), st.integers(0, 99))
def test_any_segments_give_the_oracle(causal, segments, seed):
    """Padding too, wherever it stands: it sees itself, and what fills the last tile is not seen."""
    assert_equal(attend, random_heads(PACKED, seed=seed), segments, causal=causal)


@pytest.mark.parametrize(("shape", "causal"), [*zip(SHAPES, (True, False, True), strict=True)])
def test_any_shape_of_heads_gives_the_oracle(shape, causal):
    heads, segments = random_heads(shape, seed=1), packed_segments(shape, seed=2)
    assert_equal(attend, heads, segments, causal=causal)


def test_large_logits_of_other_items_are_not_seen():
    """The softmax is stable, and its largest logit is that of what a query may see."""
    heads, segments = random_heads(PACKED, seed=3), packed_segments(PACKED, seed=4)
    loud = np.where(segments == 2, 40.0, 1.0)[..., None, None].astype(np.float32)
    assert_equal(attend, heads._replace(key=heads.key * loud), segments, causal=False)


def test_in_bfloat16_it_is_about_as_precise_as_the_oracle():
    """Statistics and sums are float32 in both; ours reads back a result that was rounded."""
    shape = Shape(rows=2, length=128, heads=4, groups=2, size=32)
    heads = random_heads(shape, seed=5)
    # Values that agree but for a little: the softmax's gradient is then a small difference of
    # large numbers, and a sum of them that is rounded to 16 bits would show.
    heads = heads._replace(value=5 + 0.1 * heads.value)
    segments = packed_segments(shape, seed=6)
    ours, theirs = (errors(f, heads, segments, dtype="bfloat16") for f in (attend, oracle))
    for one, other in zip(ours, theirs, strict=True):
        assert one <= 1.75 * other, (ours, theirs)


@settings(max_examples=50)
@given(any_segments(Shape(2, 64, 1, 1, 16)))
def test_no_tile_that_is_needed_is_left_out(segments):
    tile, others = 16, 8
    first, after = gpu_tiles.spans(jnp.asarray(segments), tile=tile, others=others)
    for row, (starts, ends) in enumerate(zip(first, after, strict=True)):
        for number in range(64 // tile):
            own = set(segments[row, number * tile : (number + 1) * tile])
            for other in range(64 // others):
                if own & set(segments[row, other * others : (other + 1) * others]):
                    assert starts[number] <= other < ends[number]


def test_a_packed_row_costs_its_items_and_not_its_square():
    """16 items of 64 tokens: a tile meets its own item's keys only."""
    segments = np.concatenate([np.repeat(np.arange(1, 17), 64), np.zeros(64)])[None]
    first, after = gpu_tiles.spans(jnp.asarray(segments, jnp.int32), tile=32, others=32)
    assert np.asarray(after - first).tolist() == [[2] * 34]
    # A tile where the items end and the padding begins meets these two, and not all the others.
    segments[0, 1000:1024] = 0
    first, after = gpu_tiles.spans(jnp.asarray(segments, jnp.int32), tile=32, others=32)
    assert np.asarray(after - first).tolist() == [[2] * 31 + [4, 3, 3]]
