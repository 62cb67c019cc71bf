"""Queries, keys and values of packed rows, and what attention makes of them in float64 numpy."""

from typing import Any, NamedTuple

import numpy as np


class AttentionCase(NamedTuple):
    """Inputs float32 and the gradient that comes back; all of them at padding too."""

    query: np.ndarray  # [R, S, H, E]
    key: np.ndarray  # [R, S, K, E]
    value: np.ndarray  # [R, S, K, E]
    segments: np.ndarray  # [R, S] int32, 0 = padding
    cotangent: np.ndarray  # [R, S, H, E], zero at padding

    @property
    def real(self) -> np.ndarray:
        return self.segments > 0


def make_case(
    *,
    rows: int,
    length: int,
    heads: int,
    groups: int,
    size: int,
    one_item: bool,
    item: int = 100,
    seed: int = 0,
) -> AttentionCase:
    """Random rows that end in padding; of items of about `item` tokens, or of one item each."""
    rng = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        return rng.normal(size=(rows, length, count, size)).astype(np.float32)

    segments = np.zeros((rows, length), np.int32)
    for row in segments:
        filled = int(rng.integers(length * 3 // 4, length))
        ends = [filled]
        if not one_item:
            cuts = rng.integers(1, filled, max(1, filled // item))
            ends = [*sorted(set(cuts.tolist())), filled]
        start = 0
        for number, end in enumerate(ends, start=1):
            row[start:end] = number
            start = end
    cotangent = draw(heads) * (segments > 0)[..., None, None]
    return AttentionCase(draw(heads), draw(groups), draw(groups), segments, cotangent)


def pairs(segments: np.ndarray) -> int:
    """The sum of the squared lengths of all items: what attention has to compute."""
    return sum(
        int((np.bincount(row)[1:].astype(np.int64) ** 2).sum()) for row in np.asarray(segments)
    )


def exact(case: AttentionCase, *, causal: bool) -> tuple[np.ndarray, ...]:
    """Output and the gradients of query, key and value, float64, from the definition."""
    query, key, value, cotangent = (
        np.asarray(x, np.float64) for x in (case.query, case.key, case.value, case.cotangent)
    )
    shared = query.shape[2] // key.shape[2]
    key, value = (np.repeat(x, shared, axis=2) for x in (key, value))
    scale = query.shape[-1] ** -0.5
    allowed = case.segments[:, None, :, None] == case.segments[:, None, None, :]
    if causal:
        allowed = allowed & np.tri(case.segments.shape[1], dtype=bool)
    logits = np.where(allowed, np.einsum("rshe,rthe->rhst", query, key) * scale, -np.inf)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    output = np.einsum("rhst,rthe->rshe", weights, value)
    d_weights = np.einsum("rshe,rthe->rhst", cotangent, value)
    d_logits = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True)) * scale
    d_query = np.einsum("rhst,rthe->rshe", d_logits, key)
    d_key, d_value = (
        x.reshape(*x.shape[:2], -1, shared, x.shape[-1]).sum(axis=3)
        for x in (
            np.einsum("rhst,rshe->rthe", d_logits, query),
            np.einsum("rhst,rshe->rthe", weights, cotangent),
        )
    )
    return output, d_query, d_key, d_value


def run_case(case: AttentionCase, attend: Any, *, dtype: str) -> tuple[np.ndarray, ...]:
    """What `attend(query, key, value)` makes of the case in a type: output and gradients."""
    import jax
    import jax.numpy as jnp

    inputs = tuple(jnp.asarray(x, dtype) for x in case[:3])
    cotangent = jnp.asarray(case.cotangent, dtype)

    @jax.jit
    def both(*inputs: Any) -> Any:
        output, pull = jax.vjp(attend, *inputs)
        return output, *pull(cotangent)

    return tuple(np.asarray(jnp.asarray(x, jnp.float32), np.float64) for x in both(*inputs))


def rounded(case: AttentionCase, dtype: str) -> AttentionCase:
    """The case with the inputs that the type can hold, so that only computing differs."""
    import jax.numpy as jnp

    def round_(x: np.ndarray) -> np.ndarray:
        return np.asarray(jnp.asarray(jnp.asarray(x, dtype), jnp.float32))

    query, key, value, segments, cotangent = case
    return AttentionCase(round_(query), round_(key), round_(value), segments, round_(cotangent))


def errors(
    found: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...], real: np.ndarray
) -> tuple[float, float]:
    """(of the output, of the worst gradient): largest difference at real tokens over the scale."""

    def one(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.abs(a - b)[real].max() / np.abs(b[real]).max())

    output, *gradients = (one(a, b) for a, b in zip(found, right, strict=True))
    return output, max(gradients)
