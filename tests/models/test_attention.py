"""Attention, rotary and pooling against the plainest numpy in float64."""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.models.attention import attend
from marvel_jax.models.kernels import Kernel, xla
from marvel_jax.models.pooling import pool
from marvel_jax.models.rotary import grid_angles, mrope_angles, rotate

R, S, H, K, E, G = 2, 9, 4, 2, 6, 3

segments_strategy = st.lists(st.integers(0, G), min_size=R * S, max_size=R * S).map(
    lambda values: np.array(values, np.int32).reshape(R, S)
)


def plain_attention(query, key, value, segments, causal):
    out = np.zeros_like(query, dtype=np.float64)
    for r in range(R):
        for s in range(S):
            seen = segments[r] == segments[r, s]
            if causal:
                seen &= np.arange(S) <= s
            for h in range(H):
                group = h // (H // K)
                logits = key[r, seen, group].astype(np.float64) @ query[r, s, h] / E**0.5
                weights = np.exp(logits - logits.max())
                out[r, s, h] = weights / weights.sum() @ value[r, seen, group]
    return out


def inputs(seed):
    random = np.random.default_rng(seed)
    query = random.standard_normal((R, S, H, E)).astype(np.float32)
    return query, *random.standard_normal((2, R, S, K, E)).astype(np.float32)


def with_chunks_of(size):
    return mock.patch.object(xla, "_CHUNK", size)


@settings(max_examples=25, deadline=None)
@given(
    segments_strategy,
    st.booleans(),
    st.sampled_from([1, 2, 4, 9]),
    st.sampled_from(["weights", "inputs"]),
    st.integers(0, 99),
)
def test_attention_stays_within_segments(segments, causal, chunk, keep, seed):
    """Whether all queries are taken at once or some at a time, and whatever is kept."""
    with with_chunks_of(chunk):
        found = attend(*inputs(seed), segments=segments, causal=causal, keep=keep)
    expected = plain_attention(*inputs(seed), segments, causal)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("keep", ["weights", "inputs"])
def test_chunks_and_what_is_kept_change_no_gradient(causal, keep):
    """Against differences of the plain attention in float64."""
    segments = np.array([[1] * 4 + [2] * 3 + [0] * 2, [1] * 9], np.int32)
    weight = np.random.default_rng(5).standard_normal((R, S, H, E))
    heads = inputs(3)

    def total(*heads):
        with with_chunks_of(4):
            mixed = attend(*heads, segments=segments, causal=causal, keep=keep)
        return jnp.sum(mixed * weight.astype(np.float32))

    grads = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*heads)
    random = np.random.default_rng(6)
    for which, found in enumerate(grads):
        direction = random.standard_normal(found.shape)
        ends = []
        for sign in (1, -1):
            moved = [h.astype(np.float64) for h in heads]
            moved[which] = moved[which] + sign * 1e-5 * direction
            ends.append(np.sum(plain_attention(*moved, segments, causal) * weight))
        slope = (ends[0] - ends[1]) / 2e-5
        assert abs(np.sum(np.asarray(found, np.float64) * direction) - slope) < 1e-5 * abs(slope)


def test_gradients_are_added_over_chunks_in_float32():
    """300 chunks give each value 1/300 of its gradient; a sum in bfloat16 would be 7% off."""
    length = 300
    zero = jnp.zeros((1, length, 1, 2), jnp.bfloat16)

    def total(value):
        segments = jnp.ones((1, length), jnp.int32)
        mixed = attend(zero, zero, value, segments=segments, causal=False)
        return 3 * jnp.sum(mixed, dtype=jnp.float32)

    with with_chunks_of(1):
        gradient = jax.jit(jax.grad(total))(zero)
    np.testing.assert_allclose(gradient.astype(jnp.float32), 3.0, rtol=2**-7)


def test_a_kernel_that_does_not_exist_is_refused():
    x = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(MarvelError, match="fast"):
        attend(x, x, x, segments=jnp.ones((1, 2)), causal=False, kernel=Kernel("fast"))
    with pytest.raises(MarvelError, match="everything"):
        attend(x, x, x, segments=jnp.ones((1, 2)), causal=False, keep="everything")


@settings(max_examples=25, deadline=None)
@given(
    segments_strategy,
    st.lists(st.booleans(), min_size=R * S, max_size=R * S),
    st.sampled_from(["mean", "last"]),
)
def test_pooling_counts_the_pooled_tokens_of_each_segment(segments, pooled, pooling):
    pooled = np.array(pooled).reshape(R, S)
    hidden = np.random.default_rng(1).standard_normal((R, S, 5)).astype(np.float32)
    options = {"segments": segments, "pooled": pooled, "items_per_row": G, "pooling": pooling}
    vectors, valid = pool(hidden, **options)
    for r in range(R):
        for g in range(G):
            member = np.flatnonzero((segments[r] == g + 1) & pooled[r])
            assert bool(valid[r, g]) == bool(len(member))
            if not len(member):
                np.testing.assert_array_equal(vectors[r, g], 0)
                continue
            states = hidden[r, member].astype(np.float64)
            mean = states.mean(axis=0) if pooling == "mean" else states[-1]
            np.testing.assert_allclose(vectors[r, g], mean / np.linalg.norm(mean), atol=1e-5)
    gradient = jax.grad(lambda x: pool(x, **options).vectors[..., 0].sum())(hidden)
    assert np.isfinite(gradient).all()
    assert not np.any(gradient[~pooled | (segments == 0)])


def test_equal_numbers_on_all_axes_are_the_plain_rotary():
    positions = np.arange(5)[None, :, None].repeat(3, axis=2)
    angles = mrope_angles(positions, section=(1, 2, 1), theta=100.0)
    expected = np.arange(5)[:, None] * 100.0 ** (-np.arange(4) / 4)
    np.testing.assert_allclose(angles[0], expected, rtol=1e-6)


def test_each_axis_turns_its_own_section():
    still = mrope_angles(np.zeros((1, 1, 3), int), section=(1, 2, 3), theta=10.0)
    for axis, frequencies in enumerate(([0], [1, 2], [3, 4, 5])):
        position = np.zeros((1, 1, 3), int)
        position[..., axis] = 1
        moved = mrope_angles(position, section=(1, 2, 3), theta=10.0) != still
        assert np.flatnonzero(moved[0, 0]).tolist() == frequencies


def test_rotation_keeps_lengths_and_depends_on_distance_only():
    random = np.random.default_rng(0)
    query, key = random.standard_normal((2, 8)).astype(np.float32)
    places = np.stack([random.integers(0, 40, (30, 2)), random.integers(0, 40, (30, 2))])
    angles = grid_angles(places[None].reshape(1, 60, 2), head_dim=8, theta=10_000.0)
    heads = np.broadcast_to(query, (1, 60, 1, 8))
    turned = rotate(heads, angles)[0, :, 0]
    np.testing.assert_allclose(np.linalg.norm(turned, axis=-1), np.linalg.norm(query), rtol=1e-5)
    shifted = grid_angles(places.reshape(1, 60, 2) + 3, head_dim=8, theta=10_000.0)
    other = np.broadcast_to(key, (1, 60, 1, 8))
    products = turned @ rotate(other, angles)[0, :, 0].T
    moved = rotate(heads, shifted)[0, :, 0] @ rotate(other, shifted)[0, :, 0].T
    np.testing.assert_allclose(moved, products, atol=1e-4)
