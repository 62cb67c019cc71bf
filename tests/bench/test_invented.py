"""Invented items have the lengths that they stand for, and hang together as real ones do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.bench import invented
from marvel_jax.bench.invented import InventedProcessor, InventedSource
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError

IMAGE, MERGE = 90, 2


def encoder(tokens: int, patches: int) -> InventedProcessor:
    lengths = {"0:q0": (tokens, patches)}
    return InventedProcessor(lengths, patch_values=12, image_token_id=IMAGE, merge=MERGE, seed=0)


@given(visual=st.integers(0, 300), text=st.integers(5, 80))
def test_an_item_has_its_length_and_its_picture(visual, text):
    process = encoder(visual + text, visual * MERGE**2)
    item = Item(id="0:q0", parts=("any",))
    found = process(item)
    assert (len(found.tokens), len(found.patches)) == process.lengths(item)
    assert (found.tokens == IMAGE).sum() == visual
    assert sorted(found.vision_index[found.tokens == IMAGE]) == list(range(visual))
    assert (found.vision_index[found.tokens != IMAGE] == -1).all()
    assert found.pooled.any() and not found.pooled.all()
    # Its patches fill a rectangle, each place once.
    assert len(np.unique(found.patch_hw, axis=0)) == len(found.patches)
    if visual:
        rows, columns = found.patch_hw.max(axis=0) + 1
        assert rows * columns == len(found.patches)
    again = process(item)
    assert all(np.array_equal(one, two) for one, two in zip(found, again, strict=True))


def test_the_emoji_mix_is_the_corpus_s():
    source = invented.source("emoji", queries=1000, brought=1, seed=3)
    lengths = np.array(list(source.lengths.values()))
    queries, candidates = lengths[:1000], lengths[1000:]
    # As counted over six batches of the quickstart's plan.
    assert queries[:, 0].mean() == pytest.approx(17.83, abs=0.3)
    assert candidates[:, 0].mean() == pytest.approx(10.70, abs=0.3)
    assert (queries[:, 1] == 16).mean() == pytest.approx(0.323, abs=0.01)
    assert (candidates[:, 1] == 16).mean() == pytest.approx(0.715, abs=0.01)


def test_each_query_brings_its_own_candidates():
    source = InventedSource(np.ones((2, 2), int), np.ones((6, 2), int), name="x")
    assert [query.positives for query in source.queries] == [("0:0",), ("0:3",)]
    assert source.queries[1].negatives == ("0:4", "0:5")
    assert source.candidate_index("0:4") == 4
    assert source.candidates[4].id == "0:4"


def test_an_unknown_mix_is_refused():
    with pytest.raises(MarvelError, match="tweets"):
        invented.source("tweets", queries=2, brought=1, seed=0)
