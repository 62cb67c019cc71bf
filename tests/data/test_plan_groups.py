"""How tasks meet in a batch, the shares of a mixture's parts, and copies kept apart."""

import collections
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data.batch import RowShape, item_key
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.mixture import PART_RANGE
from marvel_jax.data.plan_groups import PartShare
from marvel_jax.errors import MarvelError
from tests.data import invented

ROW = RowShape(tokens=128, patches=128, items=8)
CONFIG = PlanConfig(global_batch=12, seed=3, row=ROW)


def of_sets(sets, *, positives=1):
    """An index with so many queries of each (data set, task)."""
    index = invented.index(dict(enumerate(sets.values())), positives=positives)
    of = np.repeat(list(sets), list(sets.values()), axis=0).astype(np.int32)
    return index._replace(datasets=of[:, 0], tasks=of[:, 1])


def drawn(plan, steps):
    return [plan._draw(number)[0].tolist() for number in range(steps)]


SETS = {(0, 0): 100, (9, 0): 200, (0, 3): 60, (4, 4): 40}


@pytest.mark.parametrize(("mode", "run"), [("homogeneous", 12), ("interleaved", 4)])
def test_runs_are_of_one_task_of_one_set_in_its_share(mode, run):
    index = of_sets(SETS)
    config = dataclasses.replace(
        CONFIG, batches=mode, sub_batch=run if mode == "interleaved" else None
    )
    plan = Plan(index, config, num_shards=1)
    total = collections.Counter()
    seen = collections.defaultdict(list)
    for queries in drawn(plan, 200):
        assert len(set(queries)) == 12
        kinds = [(int(index.datasets[q]), int(index.tasks[q])) for q in queries]
        counts = collections.Counter(kinds)
        assert all(count % run == 0 for count in counts.values())
        total += counts
        for query, kind in zip(queries, kinds, strict=True):
            seen[kind].append(query)
    for kind, size in SETS.items():
        assert abs(total[kind] - 200 * 12 * size / 400) <= 2 * run
        for start in range(0, len(seen[kind]) - size + 1, size):
            assert len(set(seen[kind][start : start + size])) == size


def test_any_step_can_be_the_first_in_every_mode():
    index = of_sets(SETS)
    for mode, run in (("mixed", None), ("homogeneous", None), ("interleaved", 6)):
        config = dataclasses.replace(CONFIG, batches=mode, sub_batch=run, duplicates="avoid")
        there = drawn(Plan(index, config, num_shards=1), 90)
        late = Plan(index, config, num_shards=3)
        assert [late._draw(number)[0].tolist() for number in (89, 41, 0)] == [
            there[89],
            there[41],
            there[0],
        ]


def test_task_weights_are_split_among_the_sets_of_a_task():
    config = dataclasses.replace(CONFIG, batches="homogeneous", task_weights={0: 1.0, 4: 1.0})
    plan = Plan(of_sets(SETS), config, num_shards=1)
    groups = {group.name: group.share for group in plan._order._groups}
    assert groups == pytest.approx(
        {
            "Task 0 of data set 0": 1 / 6,
            "Task 0 of data set 9": 1 / 3,
            "Task 4 of data set 4": 1 / 2,
        }
    )


def test_parts_come_by_their_weights_and_their_own_tasks():
    sets = {(0, 0): 100, (0, 3): 100, (PART_RANGE, 1): 30, (PART_RANGE, 0): 50}
    index = of_sets(sets)
    parts = (PartShare(1.0), PartShare(3.0, task_weights={1: 1.0}))
    plan = Plan(index, dataclasses.replace(CONFIG, parts=parts), num_shards=1)
    total = collections.Counter()
    for queries in drawn(plan, 80):
        counts = collections.Counter(index.datasets[queries].tolist())
        assert counts == {0: 3, PART_RANGE: 9}
        total.update(zip(index.datasets[queries], index.tasks[queries], strict=True))
    assert total[PART_RANGE, 0] == 0 and total[0, 0] == total[0, 3] == 120
    by_size = dataclasses.replace(CONFIG, parts=(PartShare(), PartShare()))
    shares = [group.share for group in Plan(index, by_size, num_shards=1)._order._groups]
    assert shares == pytest.approx([100 / 280, 100 / 280, 50 / 280, 30 / 280])
    # A task that is left out does not count, whether it is not named or weighs nothing.
    for left_out in ({3: 1.0}, {3: 1.0, 0: 0.0}):
        named = dataclasses.replace(CONFIG, parts=(PartShare(task_weights=left_out), PartShare()))
        shares = [group.share for group in Plan(index, named, num_shards=1)._order._groups]
        assert shares == pytest.approx([100 / 180, 50 / 180, 30 / 180])


@pytest.mark.parametrize(
    ("changes", "sets", "message"),
    [
        ({"batches": "homogeneous"}, {(0, 0): 50, (4, 4): 9}, "Task 4 of data set 4 has 9 .* 12"),
        ({"batches": "interleaved", "sub_batch": 5}, SETS, "sub_batch is 5, .* batch of 12"),
        ({"parts": (PartShare(1.0), PartShare())}, SETS, "2 parts 1 have a weight"),
        ({"parts": (PartShare(),)}, {(PART_RANGE, 0): 50}, "2 parts, but shares .* 1"),
        (
            {"parts": (PartShare(task_weights={6: 1.0}), PartShare())},
            {(0, 0): 50, (PART_RANGE, 0): 50},
            "task_weights of part 0 names task 6",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(changes, sets, message):
    with pytest.raises(MarvelError, match=message):
        Plan(of_sets(sets), dataclasses.replace(CONFIG, **changes), num_shards=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batches": "interleaved"}, "give sub_batch with"),
        ({"sub_batch": 4}, "give sub_batch with"),
        ({"parts": (PartShare(),), "task_weights": {0: 1.0}}, "give task_weights to the parts"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(changes, message):
    with pytest.raises(MarvelError, match=message):
        dataclasses.replace(CONFIG, **changes)
    with pytest.raises(MarvelError, match=r"weight is 0\.0"):
        PartShare(weight=0.0)


# --- copies ------------------------------------------------------------------------------------


def repeats(plan, steps):
    """Copies within batches: (queries whose key comes again, candidates that come again)."""
    again = [0, 0]
    for number in range(steps):
        step = plan.step(number)
        for place, keys in ((0, step.query_keys), (1, step.candidate_keys[:, 0])):
            again[place] += len(keys) - len(np.unique(keys, axis=0))
    return again


def with_copies(sizes, *, answers_shared, copied):
    """Queries of which `answers_shared` neighbours share their one answer, the first copied."""
    count = sum(sizes.values())
    index = invented.of_lists(
        [[query // answers_shared] for query in range(count)], candidates=count
    )._replace(tasks=np.repeat(list(sizes), list(sizes.values())).astype(np.int32))
    keys = np.array([item_key("query", f"{q % (count - copied)}") for q in range(count)])
    return index._replace(query_keys=keys)


@pytest.mark.parametrize(
    ("sizes", "shared", "copied", "batch"),
    [
        ({0: 300}, 5, 0, 24),  # as MSCOCO: five captions of a picture
        ({0: 331}, 1, 80, 25),  # as the small sets of M-BEIR's union file
        ({0: 201, 3: 90}, 3, 0, 32),
        ({0: 400}, 2, 100, 7),
    ],
)
def test_copies_are_kept_apart(sizes, shared, copied, batch):
    index = with_copies(sizes, answers_shared=shared, copied=copied)
    if copied:  # a copy has the same answer
        answers = np.arange(sum(sizes.values())) % (sum(sizes.values()) - copied) // shared
        index = index._replace(positives=answers.astype(np.int32))
    config = dataclasses.replace(CONFIG, global_batch=batch)
    steps = 3 * sum(sizes.values()) // batch
    masked = repeats(Plan(index, config, num_shards=1), steps)
    avoiding = Plan(index, dataclasses.replace(config, duplicates="avoid"), num_shards=1)
    assert sum(masked) > 10 and repeats(avoiding, steps) == [0, 0]


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from([0, 3, 7]), st.integers(10, 90), min_size=1),
    st.integers(1, 4),
    st.integers(2, 20),
    st.integers(0, 5),
    st.sampled_from([("mixed", None), ("interleaved", 2), ("homogeneous", None)]),
)
def test_each_query_still_comes_once_an_epoch(sizes, shared, batch, seed, mode):
    index = with_copies(sizes, answers_shared=shared, copied=5)
    batch += batch % 2
    config = dataclasses.replace(
        CONFIG,
        global_batch=batch,
        seed=seed,
        duplicates="avoid",
        batches=mode[0],
        sub_batch=mode[1],
    )
    try:
        plan = Plan(index, config, num_shards=1)
    except MarvelError as error:
        assert "queries, but" in str(error)
        return
    seen = collections.defaultdict(list)
    for queries in drawn(plan, 60):
        assert len(set(queries)) == batch
        for query in queries:
            seen[int(index.tasks[query])].append(query)
    for task, size in sizes.items():
        members = set(np.flatnonzero(index.tasks == task).tolist())
        for start in range(0, len(seen[task]) - size + 1, size):
            assert set(seen[task][start : start + size]) == members


def test_where_nothing_is_shared_the_order_is_the_same():
    index = invented.index({0: 100, 3: 60})
    avoiding = Plan(index, dataclasses.replace(CONFIG, duplicates="avoid"), num_shards=1)
    assert drawn(avoiding, 40) == drawn(Plan(index, CONFIG, num_shards=1), 40)


def test_a_query_with_several_answers_takes_one_that_nobody_has():
    # Task 0 has one answer each, task 3 those and others: across tasks only a choice can help.
    answers = [[query] for query in range(40)] + [[query, 40 + query] for query in range(40)]
    index = invented.of_lists(answers, candidates=80)._replace(
        tasks=np.repeat([0, 3], 40).astype(np.int32)
    )
    config = dataclasses.replace(CONFIG, global_batch=40)
    assert repeats(Plan(index, config, num_shards=1), 20)[1] > 20
    avoiding = Plan(index, dataclasses.replace(config, duplicates="avoid"), num_shards=1)
    assert repeats(avoiding, 20) == [0, 0]
    for number in range(20):
        step = avoiding.step(number)
        for query, brought in zip(step.queries, step.candidates[:, 0], strict=True):
            assert brought in answers[query]
