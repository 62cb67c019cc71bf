"""`marvel bench encode` times the encoding of the very items, however they are packed."""

import importlib.util

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.bench import encode, shapes
from marvel_jax.bench.encode_items import EncodeOptions, flat, make_calls, mbeir_items, work_of
from marvel_jax.errors import MarvelError
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.training.flops import count_work

SMALL = {"architecture": "tiny", "items": 24, "shrink": 8, "batch_tokens": 64, "repeats": 1}


def test_every_packing_gives_the_same_vectors():
    options = EncodeOptions(**SMALL, row_tokens=(64, 104))
    (first, vectors), (second, others) = encode.cases(options)
    assert first["row"] != second["row"]
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(others, vectors, atol=1e-5)
    assert second["cosine"] == pytest.approx(1, abs=1e-6)
    for row in (first, second):
        assert row["items/s"] > 0 and row["tflops/s"] > 0 and row["mfu"] is None
        assert row["kernel"] == "xla" and "cpu" in row["why"]
    # Another item has another vector: all of them came from their own slots.
    assert (vectors @ vectors.T - np.eye(len(vectors))).max() < 0.9999


@settings(max_examples=20)
@given(
    count=st.integers(1, 60),
    row_tokens=st.none() | st.integers(16, 300),
    batch_tokens=st.integers(16, 900),
    devices=st.sampled_from([1, 3, 8]),
)
def test_calls_hold_every_item_once_in_rows_for_every_device(
    count, row_tokens, batch_tokens, devices
):
    items = mbeir_items(shapes.TINY, count=count, seed=3, shrink=4)
    found = make_calls(
        items, row_tokens=row_tokens, batch_tokens=batch_tokens, merge_area=4, devices=devices
    )
    held = np.concatenate([call.items for call in found.calls])
    assert sorted(held) == list(range(count))
    for call in found.calls:
        rows, length = call.rows.tokens.shape
        assert rows % devices == 0
        assert row_tokens is None or length <= max(row_tokens, *(len(one.tokens) for one in items))
        assert (call.rows.patches.shape[1] > 0) == any(len(items[i].patches) for i in call.items)
        assert rows == devices or rows // devices * length <= batch_tokens
        for item, slot in zip(call.items, call.slots, strict=True):
            row, segment = divmod(slot, call.items_per_row)
            here = call.rows.segments[row] == segment + 1
            np.testing.assert_array_equal(call.rows.tokens[row][here], items[item].tokens)
    counted = [count_work(call.rows.segments, call.rows.patch_segments) for call in found.calls]
    work = work_of(items)
    assert tuple(np.sum(counted, axis=0)) == tuple(work)
    slots = sum(call.rows.tokens.size for call in found.calls)
    assert found.token_fill == pytest.approx(work.tokens / slots)
    assert 0 < found.token_fill <= 1 and 0 <= found.patch_fill <= 1


def test_many_items_fill_their_rows():
    """What the rows of a real run hold: nine tenths and more."""
    items = mbeir_items(shapes.TINY, count=1500, seed=0, shrink=1)
    found = make_calls(items, row_tokens=2048, batch_tokens=16_384, merge_area=4, devices=1)
    assert found.token_fill > 0.94 and found.patch_fill > 0.88


def test_flat_items_are_the_items():
    items = mbeir_items(shapes.TINY, count=12, seed=1, shrink=4)
    found = flat(items)
    assert found["lengths"].sum() == len(found["tokens"]) == len(found["positions"])
    assert found["patch_counts"].sum() == len(found["patches"])
    assert found["grids"].prod(axis=1).sum() == len(found["patches"])
    pictured = found["patch_counts"] > 0
    np.testing.assert_array_equal(found["image_counts"], pictured)
    marks = np.add.reduceat(
        found["tokens"] == shapes.TINY.image_token_id,
        np.cumsum([0, *found["lengths"][:-1]]),
        dtype=int,
    )
    np.testing.assert_array_equal(marks, found["patch_counts"] // 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [shapes.TINY, shapes.SMALL], ids=["tiny", "small"])
def test_random_weights_are_a_tree_that_the_model_takes(config, dtype):
    drawn = jax.eval_shape(lambda: shapes.random_weights(config, dtype=dtype))
    wanted = jax.eval_shape(lambda: init_params(config, key=jax.random.key(0)))
    assert jax.tree.map(lambda x: x.shape, drawn) == jax.tree.map(lambda x: x.shape, wanted)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(drawn)} == {dtype}


def test_random_weights_differ_from_layer_to_layer_and_seed_to_seed():
    first, again, other = (
        shapes.random_weights(shapes.TINY, dtype="float32", seed=seed) for seed in (0, 0, 1)
    )
    jax.tree.map(np.testing.assert_array_equal, first, again)
    kernel = first["language"]["blocks"]["gate"]["kernel"]
    assert not np.allclose(kernel[0], kernel[1])
    assert not np.allclose(kernel, other["language"]["blocks"]["gate"]["kernel"])
    deviation = shapes.TINY.text.initializer_range
    assert float(kernel.std()) == pytest.approx(deviation, rel=0.05)


@pytest.mark.peer
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
def test_torch_finds_the_same_vectors():
    """`run` refuses to compare otherwise; with pictures, several lengths, padded and packed."""
    found = encode.run(EncodeOptions(**{**SMALL, "items": 10}, row_tokens=(64,), torch=True))
    torch = found["rows"][1]
    assert torch["kernel"].startswith("torch")
    assert torch["items/s"] > 0 and 0 < torch["token_fill"] <= 1
    assert torch["cosine"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"items": 0}, "items=0"),
        ({"row_tokens": (0,)}, "row_tokens=0"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"kernel": ("flash",)}, r"kernel \['flash'\]"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(MarvelError, match=message):
        EncodeOptions(**options)


def test_an_architecture_that_does_not_exist_is_told_with_those_that_do():
    with pytest.raises(MarvelError, match=r"'Qwen/Qwen9' is neither .* Qwen/Qwen2-VL-7B-Instruct"):
        shapes.architecture("Qwen/Qwen9")
