"""Small arrays as one array of 32-bit words, bit for bit, so that one message carries them all."""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def into_words(tree: Tree) -> jax.Array:
    """[n, K] uint32 from arrays [n, ...] of 32-bit types or bool; a bool takes a word."""

    def words(leaf: jax.Array) -> jax.Array:
        flat = leaf.reshape(leaf.shape[0], _width(leaf))
        if flat.dtype == jnp.bool_:
            return flat.astype(jnp.uint32)
        return jax.lax.bitcast_convert_type(flat, jnp.uint32)

    return jnp.concatenate([words(leaf) for leaf in jax.tree.leaves(tree)], axis=1)


def from_words(words: jax.Array, *, like: Tree) -> Tree:
    """The inverse of `into_words`; `like` gives the shapes and types."""
    leaves, structure = jax.tree.flatten(like)
    parts, at = [], 0
    for leaf in leaves:
        part = words[:, at : at + _width(leaf)].reshape(leaf.shape)
        is_bool = leaf.dtype == jnp.bool_
        parts.append(part != 0 if is_bool else jax.lax.bitcast_convert_type(part, leaf.dtype))
        at += _width(leaf)
    return jax.tree.unflatten(structure, parts)


def _width(leaf: jax.Array) -> int:
    return math.prod(leaf.shape[1:])
