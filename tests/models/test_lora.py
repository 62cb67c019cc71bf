"""Adapters: what they are held to, that they change nothing until trained, and their dropout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.models import lora, names, qwen2_vl
from marvel_jax.models.lora import LoraConfig
from tests.models.samples import all_samples, build_rows, small_config

CONFIG = small_config()
LORA = LoraConfig(rank=3, alpha=12.0, dropout=0.3)
SAMPLES = [s for s in all_samples(CONFIG, seed=7) if s.name in ("text", "image", "both")]


@functools.cache
def params():
    random = np.random.default_rng(0)
    initial = qwen2_vl.init_params(CONFIG, key=jax.random.key(0))
    noise = lambda x: x + 0.2 * random.standard_normal(x.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(noise, initial)


@functools.cache
def fresh():
    return lora.init_adapters(CONFIG, LORA, key=jax.random.key(1))


@functools.cache
def trained():
    """Adapters that change the model a good deal."""
    random = np.random.default_rng(1)
    shapes = lora.adapter_shapes(CONFIG, LORA)
    draw = lambda shape: 0.3 * random.standard_normal(shape).astype(np.float32)  # noqa: E731
    return names.nest({path: draw(shape) for path, shape in shapes.items()})


@functools.partial(jax.jit, static_argnames=("items_per_row", "dtype", "lora", "remat"))
def embed(params, rows, *, items_per_row=3, **options):
    return qwen2_vl.embed(params, rows, CONFIG, items_per_row=items_per_row, **options).vectors


def item_keys(rows, placement):
    """[R, G, 2] of the samples, by number; one segment of room to spare."""
    keys = np.zeros((len(placement), max(map(len, placement)) + 1, 2), np.uint32)
    for r, row in enumerate(placement):
        for g, number in enumerate(row):
            keys[r, g] = 1000 + number, 7 * number
    return keys


def dropped(placement, *, seed=0, step=0, **sizes):
    """The embedding of each sample, by number, with dropout on."""
    rows = build_rows([[SAMPLES[i] for i in row] for row in placement], **sizes)
    keys = lora.token_keys(rows.segments, item_keys(rows, placement), seed=seed, step=step)
    vectors = embed(params(), rows, adapters=trained(), lora=LORA, dropout_keys=keys)
    return {i: vectors[r, g] for r, row in enumerate(placement) for g, i in enumerate(row)}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_fresh_adapters_change_no_bit(dtype):
    rows = build_rows([SAMPLES])
    keys = lora.token_keys(rows.segments, item_keys(rows, [[0, 1, 2]]), seed=0, step=0)
    base = embed(params(), rows, dtype=dtype)
    adapted = embed(params(), rows, dtype=dtype, adapters=fresh(), lora=LORA, dropout_keys=keys)
    np.testing.assert_array_equal(adapted, base)


def test_merged_equals_unmerged():
    rows = build_rows([SAMPLES])
    base = embed(params(), rows)
    unmerged = embed(params(), rows, adapters=trained(), lora=LORA)
    merged = embed(lora.merge(params(), trained(), LORA), rows)
    np.testing.assert_allclose(unmerged, merged, atol=1e-5)
    assert np.abs(unmerged - base).max() > 0.1


def test_merging_keeps_float32_and_touches_only_what_is_adapted():
    few = LoraConfig(rank=3, alpha=12.0, targets="language/blocks/(query|down)")
    flat = names.flatten(trained())
    some = {path: flat[path] * 1e-3 for path in lora.adapter_shapes(CONFIG, few)}
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params())
    numpy = lora.merge(jax.tree.map(np.asarray, half), names.nest(some), few)
    found = names.flatten(lora.merge(half, names.nest(some), few))
    for path, before in names.flatten(half).items():
        layer = path.removesuffix("/kernel")
        np.testing.assert_allclose(found[path], names.flatten(numpy)[path], atol=1e-6)
        if f"{layer}/a" not in some:
            assert found[path] is before
            continue
        assert found[path].dtype == jnp.float32
        change = some[f"{layer}/a"].astype(np.float64) @ some[f"{layer}/b"] * 4.0
        np.testing.assert_allclose(found[path], np.asarray(before, np.float64) + change, atol=1e-6)


def test_merging_half_an_adapter_is_refused():
    half = {"language": {"blocks": {"query": {"a": trained()["language"]["blocks"]["query"]["a"]}}}}
    with pytest.raises(MarvelError, match=r"language/blocks/query.*a or b is missing"):
        lora.merge(params(), half, LORA)
    other = {"language": {"blocks": {"quary": trained()["language"]["blocks"]["query"]}}}
    with pytest.raises(MarvelError, match=r"language/blocks/quary.*no kernel"):
        lora.merge(params(), other, LORA)


def test_fresh_adapters_are_drawn_as_peft_draws_them():
    """Uniform in +-1/sqrt(in) and zero; the same for a layer whatever else is adapted."""
    wide = LoraConfig(rank=64, targets="language/blocks/(gate|down)")
    flat = names.flatten(lora.init_adapters(CONFIG, wide, key=jax.random.key(5)))
    for layer, fan_in in (("gate", 32), ("down", 48)):
        a, b = (np.asarray(flat[f"language/blocks/{layer}/{half}"]) for half in ("a", "b"))
        assert a.dtype == b.dtype == np.float32
        assert a.shape[1] == fan_in
        assert not b.any()
        bound = fan_in**-0.5
        assert 0.98 * bound < np.abs(a).max() <= bound
        assert abs(a.std() / bound - 3**-0.5) < 0.02
        assert not np.array_equal(a[0], a[1])
    alone = LoraConfig(rank=64, targets="language/blocks/down")
    again = lora.init_adapters(CONFIG, alone, key=jax.random.key(5))
    np.testing.assert_array_equal(
        again["language"]["blocks"]["down"]["a"], flat["language/blocks/down/a"]
    )


def test_axes_lie_as_the_kernels_do():
    axes = names.flatten(lora.logical_axes(CONFIG, LORA))
    kernels = {row.path: row.axes for row in names.table(CONFIG)}
    assert axes.keys() == lora.adapter_shapes(CONFIG, LORA).keys()
    for path, found in axes.items():
        layer, half = path.rsplit("/", 1)
        layers, before, after = kernels[f"{layer}/kernel"]
        rank = "lora_rank"
        assert found == ((layers, before, rank) if half == "a" else (layers, rank, after))


def test_every_fault_of_a_tree_is_named_in_one_error():
    flat = names.flatten(trained())
    flat["language/blocks/quary/a"] = flat.pop("language/blocks/query/a")
    del flat["language/blocks/down/b"]
    flat["language/blocks/up/b"] = flat["language/blocks/up/b"][:, :, 1:]
    flat["vision/blocks/qkv/a"] = np.zeros(3)
    rows = build_rows([SAMPLES[:1]])
    with pytest.raises(MarvelError) as error:
        embed(params(), rows, adapters=names.nest(flat), lora=LORA)
    for fault in (
        r"unknown: language/blocks/quary/a (is it language/blocks/query/a?)",
        r"unknown: vision/blocks/qkv/a",
        r"missing: language/blocks/query/a (2, 32, 3)",
        r"missing: language/blocks/down/b (2, 3, 32)",
        r"wrong shape: language/blocks/up/b is (2, 3, 47), should be (2, 3, 48)",
    ):
        assert fault in str(error.value)
    lora.check_adapters(trained(), CONFIG, LORA)


@pytest.mark.parametrize(
    ("targets", "named"),
    [
        ("language/blocks/quary", "none.*language/blocks/query"),
        ("query", "none.*whole path"),
        ("vision/.*", "vision/blocks/qkv.*cannot.*language/blocks/down"),
        (".*", "token_embedding"),
    ],
)
def test_targets_that_cannot_be_adapted_are_refused_with_those_that_can(targets, named):
    with pytest.raises(MarvelError, match=named):
        lora.adapter_shapes(CONFIG, LoraConfig(targets=targets))


@pytest.mark.parametrize(
    ("field", "value"),
    [("rank", 0), ("rank", 2.5), ("alpha", 0.0), ("dropout", 1.0), ("targets", "(query")],
)
def test_a_setting_that_cannot_be_is_refused_by_name(field, value):
    with pytest.raises(MarvelError, match=f"adapters.{field}"):
        LoraConfig(**{field: value})


def test_adapters_their_config_and_their_keys_come_together():
    rows = build_rows([SAMPLES[:1]])
    keys = np.zeros((*rows.segments.shape, 2), np.uint32)
    for options, message in (
        ({"adapters": trained()}, "adapters without lora"),
        ({"lora": LORA}, "lora without adapters"),
        ({"dropout_keys": keys}, "dropout_keys without adapters"),
    ):
        with pytest.raises(MarvelError, match=message):
            embed(params(), rows, **options)


def test_dropout_does_not_depend_on_row_packing_padding_or_order():
    size = {"tokens": 60, "patches": 80}
    alone = dropped([[0], [1], [2]], **size)
    for found in (
        dropped([[0, 1, 2]], **size),
        dropped([[2], [1, 0]], **size),
        dropped([[1, 2], [], [0]], tokens=77, patches=100),
    ):
        for number, vector in found.items():
            np.testing.assert_allclose(vector, alone[number], atol=1e-5)
    for other in (
        dropped([[0], [1], [2]], step=1, **size),
        dropped([[0], [1], [2]], seed=1, **size),
    ):
        for number, vector in other.items():
            assert np.abs(vector - alone[number]).max() > 0.01


def test_every_token_has_its_own_key_and_padding_harms_nobody():
    segments = np.array([[1] * 5 + [2] * 7 + [0] * 4, [1] * 16], np.int32)
    keys = np.arange(8, dtype=np.uint32).reshape(2, 2, 2)
    found = np.asarray(lora.token_keys(segments, keys, seed=3, step=4))
    assert found.dtype == np.uint32
    assert len({tuple(key) for key in found[segments > 0]}) == np.sum(segments > 0)


def masks(*, rate, tokens=400, width=256, layer=0, linear="query", seed=0):
    segments = np.ones((2, tokens), np.int32)
    items = np.array([[[1, 2]], [[1, 3]]], np.uint32)
    keys = lora.token_keys(segments, items, seed=seed, step=0)
    ones = jnp.ones((2, tokens, width))
    return np.asarray(lora.dropout(ones, keys, layer=layer, linear=linear, rate=rate))


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_dropout_drops_its_share_and_keeps_the_mean(rate):
    found = masks(rate=rate)
    share = np.mean(found == 0)
    assert abs(share - rate) < 4 * np.sqrt(rate * (1 - rate) / found.size)
    np.testing.assert_allclose(found[found != 0], 1 / (1 - rate), rtol=1e-6)
    # No feature, token or row is favoured: the shares scatter as those of fair coins do.
    for axes, count in (((0, 1), 800), ((0, 2), 512)):
        spread = np.mean(found == 0, axis=axes).std() / np.sqrt(rate * (1 - rate) / count)
        assert 0.8 < spread < 1.2


def test_no_two_masks_are_related():
    """Masks of tokens, features, items, layers and linears are uncorrelated, also at small lags."""

    def signs(**options):
        found = masks(rate=0.5, **options)
        return np.where(found == 0, -1.0, 1.0)

    one = signs()
    pairs = {
        "layers": (one, signs(layer=1)),
        "linears": (one, signs(linear="key")),
        "a layer and the next linear": (signs(linear="key"), signs(layer=1)),
        "seeds": (one, signs(seed=1)),
        "items": (one[:1], one[1:]),
    }
    for lag in (1, 2, 3, 16):
        pairs[f"tokens {lag} apart"] = one[:, lag:], one[:, :-lag]
        pairs[f"features {lag} apart"] = one[:, :, lag:], one[:, :, :-lag]
        pairs[f"diagonals {lag}"] = one[:, lag:, lag:], one[:, :-lag, :-lag]
    for name, (left, right) in pairs.items():
        assert abs(np.mean(left * right)) < 4.5 / np.sqrt(left.size), name
    every = np.stack(
        [signs(layer=layer, linear=linear) for layer in range(4) for linear in lora.LINEARS]
    )
    flat = every.reshape(len(every), -1)
    assert (
        np.abs(flat @ flat.T / flat.shape[1] - np.eye(len(flat))).max() < 5 / flat.shape[1] ** 0.5
    )


def test_every_layer_and_linear_draws_its_own_mask_in_the_model():
    """The gradient of `a` is zero exactly where one token's inputs were dropped, layer by layer."""
    config = small_config(num_hidden_layers=3)
    many = LoraConfig(rank=2, dropout=0.5)
    random = np.random.default_rng(0)
    adapters = jax.tree.map(
        lambda x: x + 0.1 * random.standard_normal(x.shape).astype(np.float32),
        lora.init_adapters(config, many, key=jax.random.key(0)),
    )
    base = qwen2_vl.init_params(config, key=jax.random.key(0))
    one = all_samples(config)[0]
    rows = build_rows([[one]])
    rows = rows._replace(
        **{  # a row of a single token
            field: getattr(rows, field)[:, 2:3]
            for field in ("tokens", "positions", "segments", "pooled", "vision_index")
        }
    )
    keys = lora.token_keys(rows.segments, np.array([[[5, 6]]], np.uint32), seed=0, step=0)

    @jax.jit
    @jax.grad
    def gradient(adapters):
        options = {"adapters": adapters, "lora": many, "dropout_keys": keys}
        return qwen2_vl.embed(base, rows, config, items_per_row=1, **options).vectors[0, 0, 3]

    grads = gradient(adapters)["language"]["blocks"]
    drawn = set()
    for linear in lora.LINEARS:
        if linear in ("query", "key"):
            continue  # a single token attends to itself whatever they are
        for layer in range(3):
            zero = ~np.asarray(grads[linear]["a"][layer]).any(axis=1)
            assert 0.2 < zero.mean() < 0.8
            ones = jnp.ones((1, 1, len(zero)))
            mask = lora.dropout(ones, keys, layer=layer, linear=linear, rate=0.5)
            np.testing.assert_array_equal(zero, mask[0, 0] == 0)
            drawn.add(tuple(zero[:32]))
    assert len(drawn) == 15
