"""Windows of keys change neither what attention gives nor its gradients; they save work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.models.kernels import xla

LENGTH, HEADS, GROUPS, SIZE = 2100, 4, 2, 8


def rows_of(*lengths: tuple[int, ...]) -> np.ndarray:
    """Segments [R, S]: items of these lengths one after the other, then padding."""
    rows = np.zeros((len(lengths), LENGTH), np.int32)
    for row, items in zip(rows, lengths, strict=True):
        row[: sum(items)] = np.repeat(np.arange(len(items)) + 1, items)
    return rows


SEGMENTS = {
    "short items": rows_of((100,) * 20, (37, 200, 5) * 8),
    "a long item": rows_of((50, 1900, 100), (2100,)),
    "short and long": rows_of((60,) * 35, (900, 1000)),
    "mostly padding": rows_of((3,), (1, 1, 1)),
    # A trunk of 40 and branches of it, far from it.
    "branches": np.concatenate(
        [np.ones((2, 40)), 1 + xla.BRANCH * (1 + np.arange(LENGTH - 40) // 103)[None].repeat(2, 0)],
        axis=1,
    ).astype(np.int32),
}


@pytest.fixture(scope="module")
def heads() -> tuple[jax.Array, ...]:
    draws = np.random.default_rng(0)
    shapes = [(2, LENGTH, count, SIZE) for count in (HEADS, GROUPS, GROUPS, HEADS)]
    return tuple(jnp.asarray(draws.normal(size=shape), jnp.float32) for shape in shapes)


@pytest.mark.parametrize("keep", ["weights", "inputs"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", SEGMENTS)
def test_windows_give_what_all_keys_give(heads, name, causal, keep):
    segments = jnp.asarray(SEGMENTS[name])
    *inputs, cotangent = heads
    options = {"causal": causal, "keep": keep, "branching": name == "branches"}

    @functools.partial(jax.jit, static_argnums=0)
    def both(windows: bool, *given):
        attend = functools.partial(xla.attend, segments=segments, windows=windows, **options)
        found, pull = jax.vjp(attend, *given)
        return found, pull(cotangent)

    expected, gradients = both(False, *inputs)
    found, pulled = both(True, *inputs)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    for one, other in zip(pulled, gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


def test_few_keys_are_met_where_items_are_short(heads, monkeypatch):
    met = []

    def watch(queries, keys, **options):
        jax.debug.callback(met.append, keys.segments.shape[1])
        return attend(queries, keys, **options)

    attend = xla._attend
    monkeypatch.setattr(xla, "_attend", watch)
    for name in ("short items", "a long item"):
        xla.attend(
            *heads[:3], jnp.asarray(SEGMENTS[name]), causal=False, keep="weights", windows=True
        ).block_until_ready()
        jax.effects_barrier()
        sizes, met[:] = [int(one) for one in met], []
        assert len(sizes) == -(-LENGTH // 128)
        if name == "short items":  # but for the last, which sees the padding behind the items
            assert sizes.count(LENGTH // 4) + sizes.count(LENGTH // 8) >= len(sizes) - 2
        else:
            assert sizes.count(LENGTH) >= len(sizes) - 2
