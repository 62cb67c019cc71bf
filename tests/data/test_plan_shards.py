"""Few sizes of a batch, each of which is full: what a compiled step is asked to hold."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.bench.pack import MBEIR_ROW
from marvel_jax.data.batch import RowShape
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.mbeir_lengths import MbeirMix, mbeir_lengths
from marvel_jax.data.plan_shards import batch_shapes
from tests.data import invented


@given(
    st.lists(st.integers(1, 90), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(1, 9),
    st.integers(90, 500),
    st.integers(1, 8),
    st.integers(1, 200),
    st.data(),
)
def test_at_most_six_sizes_hold_any_batch(packed, sizes, chunk, most, known, most_known, data):
    shapes = batch_shapes(
        packed,
        sizes=sizes,
        chunk=chunk,
        most_rows=most,
        known_positives=known,
        most_known=most_known,
    )
    assert 1 <= len(shapes) <= 6
    for smaller, larger in itertools.pairwise(shapes):
        assert smaller != larger
        assert smaller.num_rows <= larger.num_rows
        assert smaller.known_positives <= larger.known_positives
    assert all(shape.num_rows % chunk == 0 for shape in shapes)
    assert shapes[-1].num_rows >= most and shapes[-1].known_positives >= most_known
    # A usual batch is rounded up to one of the chosen sizes, of usual width.
    usual = data.draw(st.sampled_from(packed))
    first = next(shape for shape in shapes if shape.num_rows >= usual)
    assert first.known_positives == min(known, most_known)
    assert first.num_rows <= -(-max(packed) // chunk) * chunk


def test_sizes_are_chosen_so_that_little_is_padded() -> None:
    def usual(packed: list[int], sizes: int) -> list[int]:
        shapes = batch_shapes(
            packed, sizes=sizes, chunk=1, most_rows=500, known_positives=1, most_known=1
        )
        return [shape.num_rows for shape in shapes if shape.num_rows <= max(packed)]

    assert usual([18] * 4 + [19] + [25] * 5, 2) == [19, 25]
    assert usual([18, 19, 20], 3) == [18, 19, 20]
    # Hardly anything to win: no more compilations.
    assert usual([300, 301, 302], 3) == [302]


def test_one_known_positive_too_many_does_not_need_the_largest_batch() -> None:
    shapes = batch_shapes(
        [18, 19, 20], sizes=3, chunk=1, most_rows=500, known_positives=8, most_known=174
    )
    roomier = next(shape for shape in shapes if shape.known_positives >= 9)
    assert roomier.num_rows <= 22


def test_a_run_has_six_sizes_however_uneven_its_items_and_their_positives() -> None:
    rng = np.random.default_rng(0)
    count = 600
    answers = [
        rng.choice(count, 40 if query % 50 == 0 else 1, replace=False).tolist()
        for query in range(count)
    ]
    hard = [rng.choice(count, query % 4, replace=False).tolist() for query in range(count)]
    # One item in twenty fills half a row: what a batch needs varies wildly.
    sizes = np.where(rng.random((count, 1)) < 0.05, 500, rng.integers(4, 30, (count, 1)))
    index = invented.of_lists(answers, candidates=count, negatives=hard)._replace(
        queries=np.repeat(sizes, 2, axis=1).astype(np.int32)
    )
    row = RowShape(tokens=1000, patches=1000, items=64)
    for chunk, shards in ((1, 1), (3, 4)):
        config = PlanConfig(
            48, 0, row, max_positives=1, hard_negatives=2, positives_per_query=2, chunk_rows=chunk
        )
        plan = Plan(index, config, num_shards=shards)
        seen = set()
        for number in range(150):
            step = plan.step(number)
            needed = max(len(shard.placement) for shard in step.shards)
            assert needed <= step.num_rows and step.num_rows % chunk == 0
            seen.add((step.num_rows, step.positives.shape[1]))
        assert 1 < len(seen) <= 6
        assert {rows for rows, _ in seen} <= set(plan.row_counts)
        assert len(plan.row_counts) <= 6


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("items", "least"), [(480, 0.93), (120, 0.87)])
@pytest.mark.parametrize("shards", [1, 4])
def test_rows_are_full_on_the_mix_of_mbeir(items, least, shards, seed) -> None:
    index = mbeir_lengths(MbeirMix(queries=12_000, seed=seed))
    tokens, patches = np.concatenate([index.queries, index.candidates]).T
    assert tokens.min() >= 5 and tokens.max() <= 480 + 300 + 40
    assert patches[patches > 0].min() >= 400 and patches.max() <= 1200
    assert (patches % 4 == 0).all()
    config = PlanConfig(items // 2 * shards, seed, MBEIR_ROW)
    plan = Plan(index, config, num_shards=shards)
    filled = []
    for number in range(3, 18):
        step = plan.step(number)
        real = index.queries[step.queries, 0].sum() + index.candidates[step.candidates, 0].sum()
        filled.append(real / (MBEIR_ROW.tokens * step.num_rows * shards))
        np.testing.assert_allclose(1 - step.stats.padded_tokens, filled[-1])
    assert np.mean(filled) >= least


def test_shards_carry_alike_even_where_pairs_differ_in_kind() -> None:
    """Half the pairs are all text and half all picture, in no order."""
    rng = np.random.default_rng(0)
    count = 640
    pictured = rng.random(count) < 0.5
    index = invented.of_lists([[i] for i in range(count)], candidates=count)
    sizes = np.stack([np.where(pictured, 20, 100), np.where(pictured, 320, 0)], axis=1)
    sizes = (sizes * rng.uniform(0.5, 1.5, (count, 1))).astype(np.int32)
    index = index._replace(queries=sizes, candidates=sizes)
    config = PlanConfig(640, 0, RowShape(tokens=512, patches=1536, items=64))
    shards = 16
    step = Plan(index, config, num_shards=shards).step(0)
    loads = np.array([sizes[step.queries[shard.members]].sum(axis=0) for shard in step.shards])
    assert (loads.max(axis=0) < 1.1 * loads.mean(axis=0)).all()
    assert len({len(shard.members) for shard in step.shards}) == 1
    alone = Plan(index, dataclasses.replace(config), num_shards=1).step(0)
    assert step.num_rows * shards <= 1.1 * alone.num_rows
