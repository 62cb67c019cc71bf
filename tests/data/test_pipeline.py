import collections
import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.data import lengths
from marvel_jax.data.batch import Batch, Rows, RowShape, item_key
from marvel_jax.data.epoch_plan import Plan, PlanConfig, StepPlan
from marvel_jax.data.items import Item
from marvel_jax.data.lengths import LengthsIndex
from marvel_jax.data.pipeline import batches
from marvel_jax.errors import MarvelError
from tests.data import invented, samples

ROW = RowShape(tokens=128, patches=128, items=8)
CONFIG = PlanConfig(global_batch=16, seed=3, row=ROW)


@functools.cache
def source() -> samples.ListSource:
    return samples.source(texts=90, images=40)


@functools.cache
def counted() -> LengthsIndex:
    return lengths.index(source(), samples.processor(), cache=None)


def drawn(step: StepPlan) -> list[list[int]]:
    return [step.queries.tolist(), step.candidates.tolist(), step.prompts.tolist()]


def test_the_batch_is_the_same_for_any_number_of_shards() -> None:
    plans = [Plan(counted(), CONFIG, num_shards=shards) for shards in (1, 2, 4, 8)]
    for number in (0, 1, 17, 400):
        steps = [plan.step(number) for plan in plans]
        assert all(drawn(step) == drawn(steps[0]) for step in steps)
        assert all((step.positives == steps[0].positives).all() for step in steps)
        for plan, step in zip(plans, steps, strict=True):
            members = np.concatenate([shard.members for shard in step.shards])
            assert sorted(members.tolist()) == list(range(16))
            assert {len(shard.members) for shard in step.shards} == {16 // plan.num_shards}


def test_a_step_depends_on_seed_and_step_alone() -> None:
    plan = Plan(counted(), CONFIG, num_shards=2)
    expected = [drawn(plan.step(number)) for number in range(30)]
    backwards = Plan(counted(), CONFIG, num_shards=2)
    assert [drawn(backwards.step(number)) for number in reversed(range(30))] == expected[::-1]
    other = Plan(counted(), dataclasses.replace(CONFIG, seed=4), num_shards=2)
    assert drawn(other.step(0)) != expected[0]
    assert len({str(one) for one in expected}) == 30


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.sampled_from([0, 1, 4, 7]), st.integers(4, 90), min_size=1),
    st.integers(1, 24),
    st.integers(0, 5),
    st.data(),
)
def test_each_query_once_an_epoch_and_never_twice_a_batch(sizes, batch, seed, data) -> None:
    index = invented.index(sizes)
    weights = data.draw(st.sampled_from([None, dict.fromkeys(sizes, 1.0)]))
    config = PlanConfig(global_batch=batch, seed=seed, row=ROW, task_weights=weights)
    try:
        plan = Plan(index, config, num_shards=1)
    except MarvelError as error:
        assert "lower its weight" in str(error)
        return
    seen: dict[int, list[int]] = collections.defaultdict(list)
    for number in range(60):
        queries, candidates, *_ = plan._draw(number)
        assert len(queries) == batch == len(set(queries.tolist()))
        np.testing.assert_array_equal(candidates[:, 0], queries)
        for query in queries.tolist():
            seen[int(index.tasks[query])].append(query)
    for task, size in sizes.items():
        members = set(np.flatnonzero(index.tasks == task).tolist())
        for start in range(0, len(seen[task]) - size + 1, size):
            assert set(seen[task][start : start + size]) == members


@pytest.mark.parametrize("size", range(8, 24))
def test_a_task_hardly_larger_than_its_share_of_a_batch(size: int) -> None:
    for seed in range(4):
        config = PlanConfig(global_batch=8, seed=seed, row=ROW)
        plan = Plan(invented.index({0: size}), config, num_shards=1)
        walked: list[int] = []
        for number in range(40):
            queries = plan._draw(number)[0].tolist()
            assert len(set(queries)) == 8
            walked += queries
        for start in range(0, len(walked) - size + 1, size):
            assert len(set(walked[start : start + size])) == size


def test_epochs_differ_in_order() -> None:
    plan = Plan(invented.index({0: 64}), dataclasses.replace(CONFIG, global_batch=8), num_shards=1)
    assert plan.steps_per_epoch == 8
    epochs = [
        [query for number in range(first, first + 8) for query in plan.step(number).queries]
        for first in (0, 8, 16)
    ]
    assert epochs[0] != epochs[1] != epochs[2]
    assert sorted(epochs[0]) == sorted(epochs[1])


@pytest.mark.parametrize(
    ("weights", "shares"),
    [(None, {0: 0.75, 3: 0.2, 4: 0.05}), ({0: 1, 4: 3}, {0: 0.25, 4: 0.75})],
)
def test_tasks_are_mixed_in_every_batch_by_weight(weights, shares) -> None:
    index = invented.index({0: 750, 3: 200, 4: 50})
    config = PlanConfig(global_batch=30, seed=0, row=ROW, task_weights=weights)
    plan = Plan(index, config, num_shards=1)
    total: collections.Counter = collections.Counter()
    for number in range(120):
        counts = collections.Counter(index.tasks[plan.step(number).queries].tolist())
        assert set(counts) <= set(shares)
        for task, share in shares.items():
            assert abs(counts[task] - share * 30) < 2
        total += counts
    for task, share in shares.items():
        assert abs(total[task] - share * 30 * 120) <= 3


def test_positives_and_prompts_are_drawn_evenly() -> None:
    index = invented.index({0: 40}, positives=4)
    plan = Plan(index, dataclasses.replace(CONFIG, global_batch=20), num_shards=1)
    offsets, prompts = collections.Counter(), collections.Counter()
    for number in range(200):
        step = plan.step(number)
        offsets.update(((step.candidates[:, 0] - step.queries) % 40).tolist())
        prompts.update(step.prompts.tolist())
    assert set(offsets) == {0, 1, 2, 3} and set(prompts) == {0, 1, 2}
    assert min(offsets.values()) > 850 and min(prompts.values()) > 1150


def test_known_positives_are_all_that_the_batch_holds() -> None:
    index = invented.index({0: 40}, positives=12)
    config = dataclasses.replace(CONFIG, global_batch=20, max_positives=2)
    plan = Plan(index, config, num_shards=1)
    for number in range(20):
        step = plan.step(number)
        for query, found in zip(step.queries.tolist(), step.positives.tolist(), strict=True):
            expected = {(query + i) % 40 for i in range(12)} & set(step.candidates.ravel().tolist())
            listed = [one for one in found if one >= 0]
            assert len(listed) == len(set(listed)) and set(listed) == expected


def check_item(rows: Rows, item_key_at: np.ndarray, slot: int, item: Item, key: np.ndarray) -> None:
    """The slot of a shard's rows holds this item, and its key stands beside it."""
    row, segment = divmod(int(slot), ROW.items)
    encoded = samples.processor()(item)
    here = rows.segments[row] == segment + 1
    np.testing.assert_array_equal(rows.tokens[row][here], encoded.tokens)
    merged = rows.vision_index[row][here]
    pixels = rows.patches[row].reshape(-1, 4 * 48)[merged[merged >= 0]]
    np.testing.assert_array_equal(pixels, encoded.patches.reshape(-1, 4 * 48))
    np.testing.assert_array_equal(item_key_at[row, segment], key)


def check_batch(batch: Batch, step: StepPlan, shards: range, wanted: samples.ListSource) -> None:
    """Every slot leads to the item that the plan put there, with its ids beside it."""
    queries_each, brought = len(step.shards[0].members), step.candidates.shape[1]
    present = {wanted.candidates[one].id for one in step.candidates.ravel() if one >= 0}
    for place, shard in enumerate(shards):
        rows_at, queries_at, candidates_at = (
            slice(place * each, (place + 1) * each)
            for each in (step.num_rows, queries_each, queries_each * brought)
        )
        own = Batch(
            Rows(*(field[rows_at] for field in batch.rows)),
            batch.item_key[rows_at],
            **{
                field: getattr(batch, field)[
                    candidates_at if field.startswith("candidate") else queries_at
                ]
                for field in Batch._fields[2:]
                if getattr(batch, field) is not None  # lists and texts
            },
        )
        keys = 0
        for local, pair in enumerate(step.shards[shard].members.tolist()):
            query = wanted.queries[step.queries[pair]]
            prompt = wanted.instructions[query.instruction_key][step.prompts[pair]]
            item, key = query.item.with_instruction(prompt), item_key("query", query.id)
            check_item(own.rows, own.item_key, own.query_slot[local], item, key)
            keys += 1
            for column, drawn in enumerate(step.candidates[pair].tolist()):
                at = local * brought + column
                assert own.candidate_query[at] == local
                assert own.candidate_valid[at] == (drawn >= 0)
                if column < step.labels:
                    assert own.own_positive[local, column] == (at if drawn >= 0 else -1)
                if drawn < 0:
                    assert own.candidate_slot[at] == 0 and (own.candidate_id[at] == 0).all()
                    continue
                candidate = wanted.candidates[drawn]
                key = item_key("candidate", candidate.id)
                check_item(own.rows, own.item_key, own.candidate_slot[at], candidate.item, key)
                np.testing.assert_array_equal(own.candidate_id[at], key)
                keys += 1
            known = own.positive_ids[local][own.positive_valid[local]]
            expected = {
                item_key("candidate", one).tobytes() for one in set(query.positives) & present
            }
            assert {one.tobytes() for one in known} == expected
            assert (own.positive_ids[local][~own.positive_valid[local]] == 0).all()
        assert own.own_positive.shape == (queries_each, step.labels)
        assert (own.item_key != 0).any(axis=-1).sum() == keys
    assert batch.query_valid.all()


@pytest.mark.parametrize("shards", [1, 4])
def test_a_batch_is_what_the_plan_says(shards: int) -> None:
    plan = Plan(counted(), CONFIG, num_shards=shards)
    found = list(batches(source(), samples.processor(), plan, start_step=5, num_steps=3))
    assert [number for number, _ in found] == [5, 6, 7]
    for number, batch in found:
        assert batch.rows.tokens.shape == (shards * plan.step(number).num_rows, ROW.tokens)
        check_batch(batch, plan.step(number), range(shards), source())


@pytest.mark.parametrize("shards", [1, 4])
def test_a_batch_holds_several_positives_and_hard_negatives(shards: int) -> None:
    """Of the pictures' names up to three, and of each query none to two hard negatives."""
    pool = source().candidates
    queries = [
        dataclasses.replace(
            query,
            negatives=tuple(pool[(number + k) % len(pool)].id for k in range(number % 3)),
        )
        for number, query in enumerate(source().queries)
    ]
    wanted = dataclasses.replace(source(), queries=queries)
    index = lengths.index(wanted, samples.processor(), cache=None, hard_negatives=True)
    config = dataclasses.replace(CONFIG, positives_per_query=3, hard_negatives=2, chunk_rows=2)
    plan = Plan(index, config, num_shards=shards)
    for number, batch in batches(wanted, samples.processor(), plan, start_step=1, num_steps=2):
        step = plan.step(number)
        assert step.num_rows % 2 == 0 and not batch.candidate_valid.all()
        assert batch.rows.tokens.shape == (shards * step.num_rows, ROW.tokens)
        check_batch(batch, step, range(shards), wanted)


def test_a_host_reads_its_own_shards_of_the_same_batch() -> None:
    plan = Plan(counted(), CONFIG, num_shards=4)
    options = {"start_step": 2, "num_steps": 1}
    ((_, whole),) = batches(source(), samples.processor(), plan, **options)
    parts = [
        next(batches(source(), samples.processor(), plan, shards=shards, **options))[1]
        for shards in (range(2), range(2, 4))
    ]
    for whole_field, *part_fields in zip(
        jax.tree.leaves(whole), *map(jax.tree.leaves, parts), strict=True
    ):
        np.testing.assert_array_equal(whole_field, np.concatenate(part_fields))


@pytest.mark.parametrize("prefetch", [0, 3])
def test_a_run_resumes_at_any_step_with_the_same_batches(prefetch: int) -> None:
    plan = Plan(counted(), CONFIG, num_shards=1)

    def read(start: int, count: int) -> list[tuple[int, Batch]]:
        fresh = Plan(counted(), CONFIG, num_shards=1)
        options = {"start_step": start, "num_steps": count, "prefetch": prefetch}
        return list(batches(source(), samples.processor(cache_bytes=10**6), fresh, **options))

    whole, rest = read(0, 6), read(4, 2)
    assert plan.steps_per_epoch > 6
    for (number, batch), (expected_number, expected) in zip(rest, whole[4:], strict=True):
        assert number == expected_number
        for ours, theirs in zip(
            (*batch.rows, *batch[1:]), (*expected.rows, *expected[1:]), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)


def test_a_broken_picture_stops_the_pipeline_by_name() -> None:
    broken = samples.source(texts=90, images=40)
    plan = Plan(counted(), CONFIG, num_shards=1)
    candidate = int(plan.step(0).candidates[0, 0])
    pool = list(broken.candidates)
    pool[candidate] = dataclasses.replace(
        pool[candidate], item=samples.Item.of(image=samples.Image(b"x", name="bad.png"))
    )
    broken = dataclasses.replace(broken, candidates=pool)
    with pytest.raises(MarvelError, match=rf"{pool[candidate].id}: image bad\.png"):
        list(batches(broken, samples.processor(), plan, start_step=0, num_steps=1))


def test_bad_plans_are_told() -> None:
    def message(index: LengthsIndex = counted(), shards: int = 1, **changes: object) -> str:  # noqa: B008
        with pytest.raises(MarvelError) as error:
            Plan(index, dataclasses.replace(CONFIG, **changes), num_shards=shards)
        return str(error.value)

    assert "multiple of 3" in message(shards=3)
    assert "no query of it" in message(task_weights={7: 1.0})
    assert "give 0 or more" in message(task_weights={0: -1.0})
    assert "has 6 queries" in message(invented.index({0: 6, 3: 60}), task_weights={0: 1.0})
    assert "too small" in message(task_weights={0: 1.0, 3: 1e-9})
    assert "Query 10:" in message(row=RowShape(tokens=30, patches=128, items=4))
    assert "seed is -1" in message(seed=-1)
    assert "global_batch is 0" in message(global_batch=0)
