import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data.batch import RowShape, build_rows, id_hash, item_key, pack, row_batches
from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError
from tests.data import samples

SHAPE = RowShape(tokens=64, patches=64, items=5)
LENGTHS = st.lists(st.tuples(st.integers(1, 64), st.integers(0, 64)), max_size=80).map(
    lambda rows: np.array(rows, np.int32).reshape(-1, 2)
)


def check_placement(rows: list[list[int]], lengths: np.ndarray, shape: RowShape) -> None:
    assert sorted(itertools.chain.from_iterable(rows)) == list(range(len(lengths)))
    for row in rows:
        assert 1 <= len(row) <= shape.items
        tokens, patches = lengths[row].sum(axis=0)
        assert tokens <= shape.tokens and patches <= shape.patches


@given(LENGTHS)
def test_every_item_lies_in_one_row_that_holds_it(lengths: np.ndarray) -> None:
    check_placement(pack(lengths, SHAPE), lengths, SHAPE)


@given(LENGTHS, st.integers(1, 7), st.integers(8, 40))
def test_row_batches_hold_every_item_once(lengths, num_rows: int, window: int) -> None:
    groups = list(row_batches(lengths, SHAPE, num_rows=num_rows, window=window))
    assert all(len(group) == num_rows for group in groups[:-1])
    assert all(0 < len(group) <= num_rows for group in groups[-1:])
    check_placement([row for group in groups for row in group], lengths, SHAPE)


@pytest.mark.parametrize(("count", "least"), [(480, 0.94), (120, 0.87)])
def test_packing_fills_rows(count: int, least: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        lengths = np.stack([rng.gamma(2.0, 40.0, count).clip(8, 500).astype(int)] * 2, axis=1)
        lengths[:, 1] = 0
        rows = pack(lengths, RowShape(tokens=1024, patches=0, items=64))
        assert lengths[:, 0].sum() / (len(rows) * 1024) >= least


def test_packing_fills_tokens_and_patches_together() -> None:
    """Long texts, and pictures with a word: neither alone fills a row."""
    rng = np.random.default_rng(0)
    texts = np.stack([rng.integers(40, 200, 300), np.zeros(300, int)], axis=1)
    pictures = np.stack([rng.integers(20, 60, 300), rng.integers(100, 300, 300)], axis=1)
    lengths = np.concatenate([texts, pictures])
    totals = lengths.sum(axis=0)
    shape = RowShape(tokens=1000, patches=int(1000 * totals[1] / totals[0]), items=64)
    rows = pack(lengths, shape)
    check_placement(rows, lengths, shape)
    assert totals[0] / (len(rows) * shape.tokens) > 0.95


def test_row_batches_fill_rows() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 100, (3000, 2))
    shape = RowShape(tokens=512, patches=512, items=64)
    groups = list(row_batches(lengths, shape, num_rows=8))
    rows = sum(map(len, groups))
    assert lengths[:, 0].sum() / (rows * 512) > 0.92


@pytest.mark.parametrize("size", [(65, 0), (3, 65)])
def test_an_item_larger_than_a_row_is_named(size: tuple[int, int]) -> None:
    lengths = np.array([(3, 0), size, size])
    message = f"q2 .*1 more.* has {size[0]} tokens and {size[1]} patches.*64 tokens and 64 patches"
    with pytest.raises(MarvelError, match=message):
        pack(lengths, SHAPE, names=["q1", "q2", "q3"])
    with pytest.raises(MarvelError, match=message):
        list(row_batches(lengths, SHAPE, num_rows=2, names=["q1", "q2", "q3"]))


IMAGES = st.builds(
    lambda height, width: Image(samples.picture(height, width)),
    st.integers(4, 40),
    st.integers(4, 40),
)
ITEMS = st.lists(
    st.builds(
        lambda parts, instruction: Item(parts=tuple(parts), instruction=instruction),
        st.lists(st.one_of(st.sampled_from(["a", "green pear"]), IMAGES), min_size=1, max_size=3),
        st.sampled_from([None, "find it."]),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(ITEMS)
def test_a_row_gives_each_item_back_unchanged(items: list[Item]) -> None:
    shape = RowShape(tokens=500, patches=1500, items=4)
    encoded = [samples.processor()(item) for item in items]
    lengths = np.array([(len(one.tokens), len(one.patches)) for one in encoded])
    placement = pack(lengths, shape)
    rows, slots = build_rows(encoded, placement, shape, num_rows=len(placement) + 2)
    assert len(set(slots.tolist())) == len(items)
    merged_patches = rows.patches.reshape(len(rows.patches), -1, 4 * 48)
    for one, slot in zip(encoded, slots.tolist(), strict=True):
        row, segment = slot // shape.items, slot % shape.items + 1
        at = rows.segments[row] == segment
        np.testing.assert_array_equal(rows.tokens[row][at], one.tokens)
        np.testing.assert_array_equal(rows.positions[row][at], one.positions)
        np.testing.assert_array_equal(rows.pooled[row][at], one.pooled)
        # The row-local visual index leads to the item's own pixels, place and image.
        index = rows.vision_index[row][at]
        np.testing.assert_array_equal(index >= 0, one.vision_index >= 0)
        visual = index[index >= 0]
        np.testing.assert_array_equal(merged_patches[row][visual], one.patches.reshape(-1, 4 * 48))
        patches = (visual[:, None] * 4 + np.arange(4)).ravel()
        np.testing.assert_array_equal(rows.patch_hw[row][patches], one.patch_hw)
        images = rows.patch_segments[row][patches]
        assert (images > 0).all()
        np.testing.assert_array_equal(images - images.min(initial=10**6), one.patch_image)
    # Images of a row are told apart, and what belongs to nobody is padding.
    count = sum(len(item.images) for item in items)
    found = {
        (row, image) for row, line in enumerate(rows.patch_segments) for image in line if image
    }
    assert len(found) == count
    assert (rows.segments > 0).sum() == lengths[:, 0].sum()
    assert (rows.patch_segments > 0).sum() == lengths[:, 1].sum()
    padding = rows.segments == 0
    assert not rows.pooled[padding].any() and (rows.vision_index[padding] == -1).all()


def test_rows_of_texts_need_no_patches() -> None:
    encoded = [samples.processor()(Item.of(text=text)) for text in ("a pear", "b")]
    shape = RowShape(tokens=40, patches=0, items=2)
    rows, slots = build_rows(encoded, [[1, 0]], shape, num_rows=1)
    assert rows.patches.shape == (1, 0, 48) and rows.patch_segments.shape == (1, 0)
    assert slots.tolist() == [1, 0]
    assert (rows.vision_index == -1).all()


def test_a_wrong_placement_is_refused() -> None:
    encoded = [samples.processor()(Item.of(text="a pear"))] * 3
    shape = RowShape(tokens=len(encoded[0].tokens) * 2, patches=0, items=3)
    for placement, message in [
        ([[0, 1]], "exactly once"),
        ([[0, 1], [2, 2]], "exactly once"),
        ([[0, 1, 2]], "overflows"),
        ([[0], [1], [2]], "3 rows"),
    ]:
        with pytest.raises(MarvelError, match=message):
            build_rows(encoded, placement, shape, num_rows=2)
    with pytest.raises(MarvelError, match="at most 1"):
        build_rows(encoded[:2], [[0, 1]], RowShape(tokens=99, patches=0, items=1), num_rows=1)


def test_id_hash_is_the_same_everywhere() -> None:
    assert id_hash("10:123").tolist() == [1272505601, 1793696410]
    ids = [f"{dataset}:{number}" for dataset in range(10) for number in range(2000)]
    assert len({id_hash(one).tobytes() for one in ids}) == len(ids)


def test_a_query_and_a_candidate_of_one_id_are_told_apart() -> None:
    ids = [f"{dataset}:{number}" for dataset in range(4) for number in range(500)]
    keys = {item_key(kind, one).tobytes() for kind in ("query", "candidate") for one in ids}
    assert len(keys) == 2 * len(ids) and bytes(8) not in keys
