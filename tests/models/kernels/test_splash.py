"""Splash attention on our rows and heads, interpreted on the CPU, is the oracle."""

import functools

import pytest

from marvel_jax.models.kernels import splash
from tests.models.kernels.against_oracle import (
    Shape,
    assert_equal,
    errors,
    oracle,
    packed_segments,
    random_heads,
)

attend = functools.partial(splash.attend, interpret=True)
SHAPES = (
    Shape(rows=2, length=150, heads=4, groups=2, size=24),  # two blocks, the second filled up
    Shape(rows=1, length=128, heads=2, groups=2, size=80),  # the vision tower's heads
    Shape(rows=1, length=9, heads=7, groups=1, size=128),  # the language model's, 7 to a key head
)


@pytest.mark.parametrize(
    ("shape", "causal"),
    [(SHAPES[0], False), (SHAPES[0], True), (SHAPES[1], False), (SHAPES[2], True)],
)
def test_any_shape_of_heads_gives_the_oracle(shape, causal):
    """Padding too: it sees itself, and nothing sees what fills heads and rows."""
    for seed in range(3):
        heads, segments = random_heads(shape, seed=seed), packed_segments(shape, seed=seed)
        assert_equal(attend, heads, segments, causal=causal)


def test_in_bfloat16_it_is_about_as_precise_as_the_oracle():
    """A query is rounded once more, because it is scaled before the kernel."""
    heads, segments = random_heads(SHAPES[0], seed=5), packed_segments(SHAPES[0], seed=6)
    ours, theirs = (errors(f, heads, segments, dtype="bfloat16") for f in (attend, oracle))
    for one, other in zip(ours, theirs, strict=True):
        assert one <= 1.5 * other, (ours, theirs)
