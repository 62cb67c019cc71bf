"""Next-token loss against float64 numpy, and the logits that never exist as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from marvel_jax.errors import MarvelError
from marvel_jax.losses.next_token import next_token_loss, next_token_targets
from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh


def case(seed, *, rows=3, length=11, width=16, vocabulary=29):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, length, width)).astype(np.float32)
    head = rng.normal(0, 0.3, size=(vocabulary, width)).astype(np.float32)
    targets = rng.integers(0, vocabulary, (rows, length)).astype(np.int32)
    mask = rng.random((rows, length)) < 0.5
    mask[0, 0] = True
    return hidden, head, targets, mask


def oracle(hidden, head, targets, mask):
    """(loss, d hidden, d head, accuracy), float64."""
    hidden, head = hidden.astype(np.float64), head.astype(np.float64)
    logits = hidden @ head.T
    top = logits.max(axis=-1, keepdims=True)
    log_p = logits - top - np.log(np.exp(logits - top).sum(axis=-1, keepdims=True))
    picked = np.take_along_axis(log_p, targets[..., None], axis=-1)[..., 0]
    change = np.exp(log_p)
    np.put_along_axis(
        change, targets[..., None], np.take_along_axis(change, targets[..., None], -1) - 1, -1
    )
    change *= mask[..., None] / mask.sum()
    return (
        -picked[mask].mean(),
        change @ head,
        np.einsum("rsv,rsd->vd", change, hidden),
        (logits.argmax(-1) == targets)[mask].mean(),
    )


def loss_of(hidden, head, targets, mask, positions):
    found = next_token_loss(hidden, head, targets, mask=mask, positions=positions)
    return found.loss, found


GRADIENT = jax.jit(
    jax.value_and_grad(loss_of, argnums=(0, 1), has_aux=True), static_argnames="positions"
)


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32 - 1), positions=st.sampled_from([1, 4, 64]))
def test_value_and_gradients_equal_float64_however_it_is_cut(seed, positions):
    hidden, head, targets, mask = case(seed)

    (value, found), (d_hidden, d_head) = GRADIENT(hidden, head, targets, mask, positions)
    expected, e_hidden, e_head, accuracy = oracle(hidden, head, targets, mask)
    assert abs(float(value) - expected) <= 1e-6 * max(1, expected)
    np.testing.assert_allclose(d_hidden, e_hidden, atol=1e-6)
    np.testing.assert_allclose(d_head, e_head, atol=1e-6)
    assert float(found.accuracy) == pytest.approx(accuracy)
    assert int(found.tokens) == mask.sum()


def test_what_is_not_asked_for_counts_for_nothing_whatever_it_holds():
    hidden, head, targets, mask = case(0)
    targets = np.where(mask, targets, 10**6)
    bad = np.where(mask[..., None], hidden, np.nan)

    (value, _), gradients = GRADIENT(bad, head, targets, mask, 4)
    (clean, _), clean_gradients = GRADIENT(hidden, head, targets, mask, 4)
    assert float(value) == float(clean)
    for one, other in zip(gradients, clean_gradients, strict=True):
        np.testing.assert_array_equal(one, other)
    (value, nothing), gradients = GRADIENT(hidden, head, targets, np.zeros_like(mask), 4)
    assert float(value) == 0 and int(nothing.tokens) == 0
    assert not any(np.any(one) for one in gradients)


def test_a_confident_answer_keeps_its_digits():
    """Yes against No, 9 nats apart: the loss is 1e-4 and must not be rounding."""
    head = np.array([[30.0, 0], [21.0, 0]], np.float32)
    hidden = np.array([[[1.0, 0]]], np.float32)
    found = next_token_loss(hidden, head, np.zeros((1, 1), int), mask=np.ones((1, 1), bool))
    np.testing.assert_allclose(float(found.loss), np.log1p(np.exp(-9.0)), atol=1.2e-7)


def test_logits_are_float32_where_the_model_is_bfloat16():
    hidden, head, targets, mask = case(1, width=64)
    low = jnp.asarray(hidden, jnp.bfloat16)
    (value, _), (_, gradient) = GRADIENT(low, head, targets, mask, 4)
    exact = oracle(
        np.asarray(low, np.float64), np.asarray(jnp.asarray(head, jnp.bfloat16)), targets, mask
    )[0]
    assert abs(float(value) - exact) <= 1e-6
    assert gradient.dtype == np.float32


def test_memory_does_not_grow_with_the_tokens_nor_hold_their_logits():
    width, vocabulary, rows = 32, 4096, 4

    def temporaries(length):
        def loss(hidden, head):
            return next_token_loss(hidden, head, targets, mask=mask, positions=16).loss

        targets = jnp.zeros((rows, length), jnp.int32)
        mask = jnp.ones((rows, length), bool)
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.float32)
            for shape in ((rows, length, width), (vocabulary, width))
        ]
        compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1))).lower(*shapes).compile()
        # The hidden states in the order of the scan, and their gradient, are not the logits'.
        states = rows * length * width * 4
        return compiled.memory_analysis().temp_size_in_bytes - 3 * states

    part = rows * 16 * vocabulary * 4
    short, long = temporaries(256), temporaries(2048)
    assert long <= 4 * part + 2 * vocabulary * width * 4 < rows * 2048 * vocabulary * 4 / 10
    assert long - short <= 0.1 * part


def test_on_a_mesh_rows_stay_where_they_are():
    hidden, head, targets, mask = case(2, rows=16)

    def loss(hidden, head, targets, mask):
        return next_token_loss(hidden, head, targets, mask=mask, positions=4).loss

    gradient = jax.value_and_grad(loss, argnums=(0, 1))
    expected = jax.jit(gradient)(hidden, head, targets, mask)
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((DATA_AXES,), ()))
    placed = [jax.device_put(one, split) for one in (hidden, targets, mask)]
    compiled = (
        jax.jit(gradient, out_shardings=(whole, (split, whole)))
        .lower(placed[0], jax.device_put(head, whole), *placed[1:])
        .compile()
    )
    found = compiled(placed[0], jax.device_put(head, whole), *placed[1:])
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    text = compiled.as_text()
    assert "all-gather" not in text and "all-to-all" not in text and "permute(" not in text


def test_an_item_predicts_its_own_tokens_and_never_its_neighbours():
    tokens = np.array([[5, 6, 7, 8, 9, 0, 0]])
    segments = np.array([[1, 1, 1, 2, 2, 0, 0]])
    supervised = np.array([[False, True, True, True, True, True, True]])
    targets, mask = next_token_targets(tokens, segments, supervised)
    np.testing.assert_array_equal(mask, [[True, True, False, True, False, False, False]])
    assert targets[np.asarray(mask)].tolist() == [6, 7, 9]


@pytest.mark.parametrize("change", [{"positions": 0}, {"mask": np.ones((3, 4), bool)}])
def test_what_does_not_fit_is_refused(change):
    hidden, head, targets, mask = case(0)
    with pytest.raises(MarvelError):
        next_token_loss(hidden, head, targets, **({"mask": mask} | change))
