"""Rotary position embeddings: Qwen2-VL's three-axis M-RoPE and the vision tower's 2-D rotary.

Both give angles [..., head_dim / 2] in float32; one function rotates by them. A rotary in bfloat16
cannot tell positions above 256 apart, hence float32 whatever the model's type.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def inverse_frequencies(size: int, theta: float) -> np.ndarray:
    """The `size` rotary frequencies theta^(-i / size), float32 [size]."""
    return (1.0 / theta ** (np.arange(size, dtype=np.float32) / size)).astype(np.float32)


def mrope_angles(positions: jax.Array, *, section: Sequence[int], theta: float) -> jax.Array:
    """Angles of M-RoPE: each block of frequencies follows one of the axes time, height, width.

    Args:
      positions: [..., 3] integers; the same number three times is the plain 1-D rotary.
      section: how many frequencies follow each axis; they sum to half the head size.
      theta: the base of the frequencies.

    Returns:
      [..., sum(section)] float32 radians. Source: Qwen2-VL (arXiv 2409.12191), section 2.1.
    """
    axis = np.repeat(np.arange(3), section)
    frequencies = inverse_frequencies(len(axis), theta)
    return positions.astype(jnp.float32)[..., axis] * frequencies


def grid_angles(grid: jax.Array, *, head_dim: int, theta: float) -> jax.Array:
    """Angles of the vision tower: half the frequencies follow a patch's row, half its column.

    Args:
      grid: [..., 2] integers, row and column of the patch in its image.
      head_dim: size of a head; a multiple of 4.
      theta: the base of the frequencies.

    Returns:
      [..., head_dim / 2] float32 radians.
    """
    frequencies = inverse_frequencies(head_dim // 4, theta)
    angles = grid.astype(jnp.float32)[..., None] * frequencies
    return angles.reshape(*grid.shape[:-1], head_dim // 2)


def rotate(heads: jax.Array, angles: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + head_dim / 2) of every head.

    Args:
      heads: [R, S, H, head_dim]
      angles: [R, S, head_dim / 2] float32

    Returns:
      [R, S, H, head_dim] of the type of `heads`; computed in float32.
    """
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(heads.astype(jnp.float32), 2, axis=-1)
    rotated = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(rotated, axis=-1).astype(heads.dtype)
