"""An item's embedding does not depend on its row, its neighbours, padding or how it is computed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.models import qwen2_vl
from tests.models.samples import Rows, all_samples, build_rows, make_sample, small_config

CONFIG = small_config()
SAMPLES = all_samples(CONFIG, seed=7)


@functools.cache
def params():
    random = np.random.default_rng(0)
    initial = qwen2_vl.init_params(CONFIG, key=jax.random.key(0))
    noise = lambda x: x + 0.2 * random.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(noise, initial)


@functools.partial(jax.jit, static_argnames=("items_per_row", "attention", "remat", "dtype"))
def embed(params, rows, *, items_per_row, **options):
    return qwen2_vl.embed(params, rows, CONFIG, items_per_row=items_per_row, **options)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_alone_in_a_batch_packed_and_padded_are_the_same(attention):
    samples = [s for s in SAMPLES if s.name in ("image", "several", "both")]
    alone = [
        embed(params(), build_rows([[s]]), items_per_row=1, attention=attention) for s in samples
    ]
    alone = np.stack([result.vectors[0, 0] for result in alone])
    rows = build_rows([[s] for s in samples])
    batch = embed(params(), rows, items_per_row=1, attention=attention)
    np.testing.assert_allclose(batch.vectors[:, 0], alone, atol=1e-5)
    rows = build_rows([samples])
    packed = embed(params(), rows, items_per_row=3, attention=attention)
    np.testing.assert_allclose(packed.vectors[0], alone, atol=1e-5)
    rows = build_rows([samples[::-1]], tokens=90, patches=200)
    padded = embed(params(), rows, items_per_row=5, attention=attention)
    np.testing.assert_allclose(padded.vectors[0, :3][::-1], alone, atol=1e-5)
    assert np.asarray(padded.valid).tolist() == [[True] * 3 + [False] * 2]


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(len(SAMPLES))), st.integers(0, len(SAMPLES)), st.integers(0, 255))
def test_any_placement_gives_the_same(order, cut, garbage):
    """And what stands in the padding does not matter."""
    placement = [[SAMPLES[i] for i in order[:cut]], [SAMPLES[i] for i in order[cut:]]]
    rows = build_rows(placement, tokens=130, patches=300)
    padding = rows.patch_segments == 0
    rows.patches[padding] = garbage
    rows.tokens[rows.segments == 0] = garbage % CONFIG.text.vocab_size
    rows.positions[rows.segments == 0] = garbage
    found = embed(params(), rows, items_per_row=len(SAMPLES)).vectors
    for r, row in enumerate((order[:cut], order[cut:])):
        for g, index in enumerate(row):
            np.testing.assert_allclose(found[r, g], _reference()[index], atol=1e-5)


@functools.cache
def _reference():
    rows = build_rows([[s] for s in SAMPLES], tokens=130, patches=300)
    return np.asarray(embed(params(), rows, items_per_row=len(SAMPLES)).vectors[:, 0])


def test_padding_rows_are_invalid_zeros_and_do_not_touch_the_gradient():
    rows = build_rows([[SAMPLES[0]], [SAMPLES[1]]], tokens=16, patches=32)
    more = Rows(*(np.concatenate([x, np.zeros_like(x)]) for x in rows))
    vision_index = np.where(more.segments == 0, -1, more.vision_index)
    more = more._replace(vision_index=vision_index)

    @jax.jit
    def gradient(params, rows):
        def total(params):
            vectors = qwen2_vl.embed(params, rows, CONFIG, items_per_row=2).vectors
            return jnp.sum(vectors**3), vectors

        return jax.grad(total, has_aux=True)(params)

    expected, _ = gradient(params(), rows)
    found, vectors = gradient(params(), more)
    assert not np.any(vectors[2:])
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_text_alone_needs_no_vision_tower():
    text = [s for s in SAMPLES if not s.grids]
    without = build_rows([text], values=CONFIG.vision.still_values)
    assert without.patches.shape[1] == 0
    gradient = jax.grad(lambda p: embed(p, without, items_per_row=1).vectors.sum())(params())
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["vision"]))
    found = embed(params(), without, items_per_row=1).vectors[0, 0]
    np.testing.assert_allclose(found, _reference()[SAMPLES.index(text[0])], atol=1e-5)


def test_a_still_equals_a_film_of_the_same_frame_twice():
    rows = build_rows([[SAMPLES[1]]])
    tower = jax.jit(functools.partial(qwen2_vl.visual_tokens, config=CONFIG))
    vision = CONFIG.vision
    frames = rows.patches.reshape(1, -1, 3, 1, vision.patch_size**2)
    doubled = np.repeat(frames, 2, axis=3).reshape(1, -1, vision.patch_values)
    still = tower(params(), rows)
    film = tower(params(), rows._replace(patches=doubled))
    np.testing.assert_allclose(film, still, atol=1e-5)


def test_bfloat16_stays_near_and_gives_float32_of_unit_norm():
    rows = build_rows([SAMPLES])
    half = embed(params(), rows, items_per_row=6, dtype=jnp.bfloat16).vectors
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(np.linalg.norm(half, axis=-1), 1, atol=1e-6)
    assert np.sum(_reference() * np.asarray(half)[0], axis=-1).min() > 0.99


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"attention": "both"}, "bidirectional"),
        ({"pooling": "max"}, "last"),
        ({"remat": "some"}, "full"),
    ],
)
def test_an_unknown_option_is_refused_and_the_known_ones_named(options, named):
    with pytest.raises(MarvelError, match=named):
        qwen2_vl.embed(params(), build_rows([SAMPLES[:1]]), CONFIG, items_per_row=1, **options)


def test_patches_of_another_size_are_refused_with_both_sizes():
    other = make_sample("other", [(2, 2)], CONFIG, seed=0)
    rows = build_rows([[other]])
    wrong = rows._replace(patches=np.zeros((1, 4, 588), np.uint8))
    with pytest.raises(MarvelError, match=r"588 values.*patch_size 7.*147"):
        qwen2_vl.embed(params(), wrong, CONFIG, items_per_row=1)
