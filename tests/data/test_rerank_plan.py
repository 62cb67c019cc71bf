"""The plan of a reranker's training and the batches that carry it out."""

import functools

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from marvel_jax.data.batch import RowShape
from marvel_jax.data.epoch_plan import PlanConfig
from marvel_jax.data.items import Item, Query
from marvel_jax.data.rerank import PairProcessor
from marvel_jax.data.rerank_batch import RerankBatch, build_rerank_batch
from marvel_jax.data.rerank_lengths import PairLengths, index_pairs
from marvel_jax.data.rerank_plan import Draws, Frames, RerankPlan
from marvel_jax.errors import MarvelError
from tests.data import samples

ROW = RowShape(tokens=512, patches=256, items=4)
BATCH = 12


@functools.cache
def source() -> samples.ListSource:
    """Each query with four negatives of its positive's kind, but every fifth with one."""
    made = samples.source(texts=24, images=16)
    pool = [one.id for one in made.candidates]

    def mined(number: int, query: Query) -> Query:
        kind = query.positives[0][:4]
        others = [name for name in pool if name.startswith(kind) and name not in query.positives]
        chosen = np.random.default_rng(number).permutation(others)[: 1 if number % 5 == 0 else 4]
        # A known positive among them must never be a "No".
        return samples.Query(
            query.id,
            query.item,
            query.task,
            query.positives,
            (*map(str, chosen), query.positives[0]),
            query.dataset,
        )

    queries = [mined(number, query) for number, query in enumerate(made.queries)]
    return samples.ListSource(queries, made.candidates, made.instructions)


@functools.cache
def processor(*, whole_reply: bool = False) -> PairProcessor:
    return PairProcessor(samples.chat_tokenizer(), samples.SMALL, whole_reply=whole_reply)


@functools.cache
def index(*, whole_reply: bool = False) -> PairLengths:
    return index_pairs(source(), processor(whole_reply=whole_reply), cache=None)


def plan(
    *,
    shards: int = 1,
    seed: int = 0,
    negatives: int = 1,
    listed: int = 0,
    whole_reply: bool = False,
    row: RowShape = ROW,
) -> RerankPlan:
    return RerankPlan(
        index(whole_reply=whole_reply),
        PlanConfig(BATCH, seed, row),
        draws=Draws(negatives, listed),
        frames=Frames.of(processor(whole_reply=whole_reply), listed),
        num_shards=shards,
    )


def batch_of(made: RerankPlan, step: int, *, whole_reply: bool = False) -> RerankBatch:
    return build_rerank_batch(
        source(), processor(whole_reply=whole_reply), made.step(step), range(made.num_shards)
    )


def sequences(batch: RerankBatch) -> set[tuple]:
    """What a batch asks, wherever it stands: (tokens, patches, covered tokens, wrong answer)."""
    found = []
    rows = batch.rows
    for row in range(len(rows.tokens)):
        for slot in range(batch.judged.shape[1]):
            own = np.flatnonzero(rows.segments[row] == slot + 1)
            if not len(own):
                assert not batch.supervised[row, slot].any()
                continue
            covered = batch.places[row, slot][batch.supervised[row, slot]]
            assert np.isin(covered, own).all()
            assert np.isin(covered + 1, own).all()
            targets = batch.targets[row, slot][batch.supervised[row, slot]]
            np.testing.assert_array_equal(rows.tokens[row, covered + 1], targets)
            marked = own[rows.pooled[row, own]]
            assert sorted(covered + 1) == marked.tolist()
            found.append(
                (
                    rows.tokens[row, own].tobytes(),
                    rows.positions[row, own].tobytes(),
                    int((rows.vision_index[row, own] >= 0).sum()),
                    tuple(covered - own[0]),
                    int(batch.other[row, slot]),
                    bool(batch.judged[row, slot]),
                    batch.item_key[row, slot].tobytes(),
                )
            )
    assert len(set(found)) == len(found)
    return set(found)


def test_a_query_brings_a_positive_and_negatives_of_its_own():
    made = plan(negatives=3)
    for step in range(2 * made.steps_per_epoch):
        drawn = made.step(step)
        assert len(set(drawn.queries.tolist())) == BATCH
        for query, brought in zip(drawn.queries, drawn.candidates, strict=True):
            asked = source().queries[query]
            ids = [source().candidates[place].id for place in brought if place >= 0]
            assert ids[0] in asked.positives
            assert set(ids[1:]) <= set(asked.negatives) - set(asked.positives)
            assert len(set(ids)) == len(ids) == (2 if int(query) % 5 == 0 else 4)


def test_an_epoch_has_every_query_and_another_seed_other_draws():
    made = plan()
    seen = [one for step in range(made.steps_per_epoch) for one in made.step(step).queries.tolist()]
    assert len(set(seen)) == len(seen) >= len(source().queries) - BATCH
    other = plan(seed=1).step(0)
    assert not np.array_equal(made.step(0).candidates, other.candidates)


def test_every_negative_and_positive_is_drawn_some_time():
    made = plan()
    drawn: dict[int, set[int]] = {}
    for step in range(60 * made.steps_per_epoch):
        for query, brought in zip(*made.step(step)[1:3], strict=True):
            drawn.setdefault(int(query), set()).update(brought.tolist())
    for query, places in drawn.items():
        asked = source().queries[query]
        names = {source().candidates[place].id for place in places}
        assert names == set(asked.negatives) | set(asked.positives)


@hypothesis.given(
    step=st.integers(0, 40),
    listed=st.sampled_from([0, 2, 5]),
    negatives=st.integers(1, 3),
    whole_reply=st.booleans(),
)
@hypothesis.settings(max_examples=8)
def test_a_step_is_the_same_on_any_number_of_shards(step, listed, negatives, whole_reply):
    options = {"listed": listed, "negatives": negatives, "whole_reply": whole_reply}
    contents = []
    for shards in (1, 3):
        made = plan(shards=shards, **options)
        batch = batch_of(made, step, whole_reply=whole_reply)
        assert len(batch.rows.tokens) == shards * made.step(step).num_rows
        assert made.step(step).num_rows in made.row_counts
        contents.append(sequences(batch))
        again = batch_of(plan(shards=shards, **options), step, whole_reply=whole_reply)
        for left, right in zip(batch.rows, again.rows, strict=True):
            np.testing.assert_array_equal(left, right)
    assert contents[0] == contents[1]
    assert len(made.row_counts) <= 6


def test_planned_lengths_are_those_of_the_sequences():
    """With one instruction a query, to the token: nothing is estimated."""
    made = source()
    prompts = {key: prompts[:1] for key, prompts in made.instructions.items()}
    one = samples.ListSource(made.queries, made.candidates, prompts)
    frames = Frames.of(processor(), 0)
    exact = RerankPlan(
        index_pairs(one, processor(), cache=None),
        PlanConfig(BATCH, 0, ROW),
        draws=Draws(),
        frames=frames,
        num_shards=1,
    )
    step = exact.step(0)
    planned, present = exact._lengths(step)
    assert present.all()
    batch = build_rerank_batch(one, processor(), step, range(1))
    found = sorted(
        int((batch.rows.segments[row] == slot + 1).sum())
        for row in range(step.num_rows)
        for slot in range(ROW.items)
        if batch.judged[row, slot]
    )
    assert found == sorted(planned[..., 0].ravel().tolist())
    assert int((batch.rows.patch_segments > 0).sum()) == planned[..., 1].sum()
    assert step.stats.padded_tokens == pytest.approx(1 - (batch.rows.segments > 0).mean(), abs=1e-9)


def test_answers_are_yes_for_positives_and_no_for_the_rest():
    step = plan(negatives=2).step(3)
    batch = build_rerank_batch(source(), processor(), step, range(1))
    yes, no = processor().answer_ids
    answers = batch.targets[..., 0][batch.judged]
    assert (answers == yes).sum() == BATCH
    assert (answers == no).sum() == (step.candidates[:, 1:] >= 0).sum()
    assert set(zip(answers.tolist(), batch.other[batch.judged].tolist(), strict=True)) == {
        (yes, no),
        (no, yes),
    }


def test_lists_hold_the_positive_at_every_place():
    made = plan(listed=4)
    sizes, places = set(), set()
    for step in range(30):
        drawn = made.step(step)
        for query, members, number in zip(drawn.queries, drawn.lists, drawn.numbers, strict=True):
            ids = [source().candidates[place].id for place in members[members >= 0]]
            asked = source().queries[query]
            assert [one in asked.positives for one in ids].index(True) == number - 1
            assert sum(one in asked.positives for one in ids) == 1
            assert len(set(ids)) == len(ids)
            sizes.add(len(ids))
            places.add(int(number))
    assert sizes == {2, 3, 4}
    assert places == {1, 2, 3, 4}
    described = made.describe(0)["pairs"][0]
    assert described["positives"][0] in described["listed"]


# --- refusals ------------------------------------------------------------------------------------


def test_a_row_that_cannot_hold_a_pair_is_refused_with_the_query():
    with pytest.raises(
        MarvelError, match=r"Query 10:\d+ and a candidate of its own .* a row holds"
    ):
        plan(row=RowShape(tokens=130, patches=256, items=4))
    with pytest.raises(MarvelError, match="5 candidates of its own"):
        plan(listed=5, row=RowShape(tokens=512, patches=16, items=4))


def test_every_query_that_cannot_be_reranked_is_told_at_once():
    made = source()
    bare = [
        samples.Query(one.id, one.item, one.task, one.positives, ("10:none",), one.dataset)
        for one in made.queries[:7]
    ]
    broken = samples.ListSource([*bare, *made.queries[7:]], made.candidates, made.instructions)
    with pytest.raises(
        MarvelError, match=r"7 negatives that are no candidate: 10:0 -> 10:none.*7 "
    ):
        index_pairs(broken, processor(), cache=None)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(MarvelError, match="global_batch 12 does not divide among 5"):
        plan(shards=5)


def test_lengths_are_kept_and_found_again(tmp_path, monkeypatch):
    first = index_pairs(source(), processor(), cache=tmp_path)
    monkeypatch.setattr(PairProcessor, "query_lengths", None)  # not to be called again
    for left, right in zip(first, index_pairs(source(), processor(), cache=tmp_path), strict=True):
        np.testing.assert_array_equal(left, right)
    (kept,) = tmp_path.glob("pair-lengths-*.npz")
    kept.write_bytes(kept.read_bytes()[:100])  # a writer that was killed
    monkeypatch.undo()
    assert index_pairs(source(), processor(), cache=tmp_path).fingerprint == first.fingerprint


def test_an_item_without_text_has_its_instruction_read():
    asked = processor().query(Item(parts=(source().candidates[0].item.parts[0],), instruction="x"))
    assert len(asked.tokens) > len(processor().query(source().candidates[0].item).tokens)
