"""What a query brings into the batch: several of its positives, and its hard negatives."""

import collections
import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data.batch import RowShape
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.errors import MarvelError
from tests.data import invented

ROW = RowShape(tokens=128, patches=128, items=8)
CONFIG = PlanConfig(global_batch=12, seed=3, row=ROW, positives_per_query=2, hard_negatives=3)
CANDIDATES = 40


@st.composite
def lists(draw):
    """Positives and hard negatives of 24 queries, which do not meet."""
    positives, negatives = [], []
    for _ in range(24):
        some = draw(st.lists(st.integers(0, CANDIDATES - 1), min_size=1, max_size=9, unique=True))
        kept = draw(st.integers(1, len(some)))
        positives.append(some[:kept])
        negatives.append(some[kept:])
    negatives[0] = [one for one in range(CANDIDATES) if one not in positives[0]][:2]
    return positives, negatives


@settings(max_examples=30, deadline=None)
@given(lists(), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 2, 4]))
def test_a_query_brings_as_many_of_its_own_as_it_has(found, positives, negatives, shards) -> None:
    answers, hard = found
    index = invented.of_lists(answers, candidates=CANDIDATES, negatives=hard)
    config = dataclasses.replace(CONFIG, positives_per_query=positives, hard_negatives=negatives)
    plan = Plan(index, config, num_shards=shards)
    for number in range(4):
        step = plan.step(number)
        present = set(step.candidates.ravel().tolist()) - {-1}
        for query, brought, known in zip(
            step.queries.tolist(), step.candidates.tolist(), step.positives, strict=True
        ):
            for own, drawn in (
                (answers[query], brought[:positives]),
                (hard[query], brought[positives:]),
            ):
                count = min(len(own), len(drawn))
                assert set(drawn[:count]) <= set(own) and len(set(drawn[:count])) == count
                assert drawn[count:] == [-1] * (len(drawn) - count)
            listed = [one for one in known.tolist() if one >= 0]
            # Another query's hard negative may be this one's answer.
            assert len(listed) == len(set(listed)) and set(listed) == set(answers[query]) & present


def test_the_batch_is_the_same_for_any_number_of_shards() -> None:
    answers = [[i, (i + 9) % 40] for i in range(40)]
    hard = [[(i + k) % 40 for k in range(1, 1 + i % 6)] for i in range(40)]
    index = invented.of_lists(answers, candidates=40, negatives=hard)
    plans = [Plan(index, CONFIG, num_shards=shards) for shards in (1, 2, 4, 12)]
    for number in (0, 3, 50):
        steps = [plan.step(number) for plan in plans]
        for step in steps:
            np.testing.assert_array_equal(step.candidates, steps[0].candidates)
            np.testing.assert_array_equal(step.positives, steps[0].positives)
            packed = sum(len(row) for shard in step.shards for row in shard.placement)
            assert packed == len(step.queries) + (step.candidates >= 0).sum()


def test_hard_negatives_do_not_change_the_rest_of_the_batch() -> None:
    answers = [[i, (i + 9) % 40] for i in range(40)]
    index = invented.of_lists(answers, candidates=40, negatives=[[(i + 1) % 40] for i in range(40)])
    bare = dataclasses.replace(CONFIG, hard_negatives=0)
    for number in range(5):
        with_them, without = (
            Plan(index, config, num_shards=1).step(number) for config in (CONFIG, bare)
        )
        np.testing.assert_array_equal(with_them.queries, without.queries)
        np.testing.assert_array_equal(with_them.prompts, without.prompts)
        np.testing.assert_array_equal(with_them.candidates[:, :2], without.candidates)


def test_draws_are_even_and_change_with_the_step_and_the_seed() -> None:
    hard = [[40 + 5 * i + k for k in range(5)] for i in range(12)]
    index = invented.of_lists([[i] for i in range(12)], candidates=100, negatives=hard)
    config = dataclasses.replace(CONFIG, positives_per_query=1, hard_negatives=2)
    plan = Plan(index, config, num_shards=1)
    seen: collections.Counter = collections.Counter()
    for number in range(150):
        drawn = (plan.step(number).candidates[:, 1:] - 40) % 5
        seen.update(map(tuple, drawn.tolist()))
    # 1,800 draws of 20 ordered pairs: 90 of each.
    assert set(seen) == set(itertools.permutations(range(5), 2))
    assert min(seen.values()) > 50 and max(seen.values()) < 135
    other = Plan(index, dataclasses.replace(config, seed=4), num_shards=1)

    def by_query(of: Plan, number: int) -> list[list[int]]:
        step = of.step(number)
        return step.candidates[np.argsort(step.queries), 1:].tolist()

    assert by_query(plan, 0) != by_query(plan, 1) and by_query(plan, 0) != by_query(other, 0)
    assert by_query(plan, 7) == by_query(Plan(index, config, num_shards=4), 7)


def test_a_step_is_described_by_its_ids() -> None:
    answers, hard = [[i] for i in range(12)], [[(i + 1) % 12] if i % 2 else [] for i in range(12)]
    plan = Plan(invented.of_lists(answers, candidates=12, negatives=hard), CONFIG, num_shards=2)
    told = plan.describe(4)
    assert told["step"] == 4
    expected = [
        {
            "query": f"q{query}",
            "positives": [f"c{one}" for one in answers[query]],
            "hard_negatives": [f"c{one}" for one in hard[query]],
        }
        for query in plan.step(4).queries
    ]
    assert told["pairs"] == expected


def test_asking_for_hard_negatives_that_are_not_there_is_told() -> None:
    for index in (
        invented.of_lists([[i] for i in range(12)], candidates=12),
        invented.of_lists([[i] for i in range(12)], candidates=12, negatives=[[]] * 12),
    ):
        with pytest.raises(MarvelError, match="hard_negatives is 3, but no query"):
            Plan(index, CONFIG, num_shards=1)
    for field in ("chunk_rows", "row_sizes"):
        with pytest.raises(MarvelError, match=f"{field} is 0: give at least 1"):
            dataclasses.replace(CONFIG, **{field: 0})
    index = invented.of_lists([[i] for i in range(12)], candidates=12)
    with pytest.raises(MarvelError, match="positives_per_query is 0: give at least 1"):
        Plan(index, dataclasses.replace(CONFIG, positives_per_query=0), num_shards=1)
    with pytest.raises(MarvelError, match="hard_negatives is -1"):
        dataclasses.replace(CONFIG, hard_negatives=-1)
