"""Lists of a teacher in a plan: which of them, which candidates, and from which part."""

import dataclasses

import numpy as np
import pytest

from marvel_jax.data import lengths
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.mixture import Mixture, Part
from marvel_jax.data.pipeline import build_batch
from marvel_jax.data.plan_groups import PartShare
from marvel_jax.data.taught import TaughtSource, lists_of, with_teachers
from marvel_jax.data.teacher import teacher_line, teacher_writer
from marvel_jax.errors import MarvelError
from tests import tiny
from tests.data.test_mined import origin
from tests.training.tiny_steps import teacher

SOURCE = tiny.TinySource()
FILES = tuple(teacher(SOURCE, width=5, seed=seed) for seed in (0, 1))
TAUGHT = TaughtSource(SOURCE, FILES, (0.25, 1.0))
CONFIG = PlanConfig(global_batch=16, seed=3, row=tiny.ROW, hard_negatives=3)


def plan_of(source, shards=1, **changes) -> Plan:
    index = lengths.index(source, tiny.processor(), cache=None, hard_negatives=True)
    config = dataclasses.replace(CONFIG, **changes)
    return Plan(index, config, num_shards=shards, lists=lists_of(source, depth=4))


def test_the_best_by_recall_are_used_and_short_lists_are_padded():
    found = lists_of(TAUGHT, depth=3)
    for file, rows in zip(FILES, (found.candidates[:96], found.candidates[96:]), strict=True):
        for own, recall, kept in zip(file.candidates, file.recall, rows, strict=True):
            order = sorted(np.flatnonzero(own >= 0), key=lambda place: -recall[place])[:3]
            assert kept.tolist() == [*own[order], *[-1] * (3 - len(order))]
    assert lists_of(TAUGHT, depth=9).width == 9


def test_each_list_is_drawn_as_often_as_its_share_says_and_the_same_on_any_shards():
    plan, again = plan_of(TAUGHT), plan_of(TAUGHT, shards=4)
    taken = []
    for number in range(60):
        step, other = plan.step(number), again.step(number)
        np.testing.assert_array_equal(step.candidates, other.candidates)
        for leaf, same in zip(step.lists, other.lists, strict=True):
            np.testing.assert_array_equal(leaf, same)
        lists = plan.lists.candidates
        for query, listed in zip(step.queries, step.candidates[:, -4:], strict=True):
            first, second = lists[query], lists[96 + query]
            assert (listed == first).all() or (listed == second).all()
            taken.append((listed == first).all())
    assert np.mean(taken) == pytest.approx(0.25, abs=0.05)  # of 960


def test_a_batch_has_the_scores_beside_the_candidates_and_no_negative_twice():
    plan = plan_of(TAUGHT, shards=2)
    step = plan.step(2)
    negatives, listed = step.candidates[:, 1:4], step.candidates[:, 4:]
    pairs = zip(negatives, listed, strict=True)
    assert not any(set(one[one >= 0]) & set(other) for one, other in pairs)
    batch = build_batch(TAUGHT, tiny.processor(), step, range(2))
    members = np.concatenate([shard.members for shard in step.shards])
    brought = step.candidates[members]
    np.testing.assert_array_equal(batch.candidate_valid.reshape(brought.shape), brought >= 0)
    np.testing.assert_array_equal(batch.lists.valid, brought[:, 4:] >= 0)
    rows = {(int(q), *c): n for n, (q, c) in enumerate(_listed(plan))}
    for place, query in enumerate(step.queries[members]):
        row = rows[(int(query), *brought[place, 4:].tolist())]
        np.testing.assert_array_equal(batch.lists.yes[place], plan.lists.scores[0, row])
        np.testing.assert_array_equal(batch.lists.recall[place], plan.lists.scores[2, row])


def _listed(plan):
    for row, candidates in enumerate(plan.lists.candidates.tolist()):
        yield row % 96, candidates


def test_a_query_need_not_bring_its_positives():
    step = plan_of(TAUGHT, positives_per_query=0, hard_negatives=0).step(0)
    assert step.candidates.shape == (16, 4) and step.labels == 0


def test_a_part_without_a_teacher_has_no_lists():
    other = dataclasses.replace(SOURCE, fingerprint="other")
    mixture = Mixture([Part("plain", other), Part("taught", TAUGHT)])
    shares = (PartShare(weight=1.0), PartShare(weight=1.0))
    plan = plan_of(mixture, parts=shares)
    step = plan.step(0)
    taught = step.queries >= 96
    assert taught.sum() == 8
    np.testing.assert_array_equal(step.lists.valid.any(axis=1), taught)
    assert (step.candidates[~taught, 4:] == -1).all()
    assert (step.candidates[taught, 4:].max(axis=1) >= 96).all()  # of the second part's pool
    assert "listed" in plan.describe(0)["pairs"][0]
    with pytest.raises(MarvelError, match="No source has a teacher"):
        lists_of(Mixture([Part("plain", SOURCE)]), depth=4)


def test_a_weight_is_that_of_the_task():
    weights = lists_of(TAUGHT, depth=4, weight=1.0, task_weights={"90:3": 0.1}).weight
    np.testing.assert_allclose(weights, [1.0] * 48 + [0.1] * 48)
    with pytest.raises(MarvelError, match="no query is of 9:0"):
        lists_of(TAUGHT, depth=4, task_weights={"90:0": 0.5, "9:0": 0.5})


def write(path, source, **changes):
    writer = teacher_writer(path, origin(source) | changes)
    ids = ["90:1", "90:3"]
    scores = {name: np.zeros(2, np.float32) for name in ("yes", "no", "recall")}
    writer.append(teacher_line(query.id, ids, **scores) for query in source.queries)
    writer.finish({})
    return path


def test_shares_that_round_below_one_leave_no_draw_without_a_list(tmp_path):
    """Ten tenths are 0.9999999999999999."""
    source = tiny.TinySource(size=6)
    files = [write(tmp_path / f"{number}.jsonl", source) for number in range(10)]
    found = with_teachers(source, files, shares=[0.1] * 10)
    assert found.ends[-1] == 1.0
    drawn, _ = lists_of(found, depth=2).draw(np.arange(12), np.full(12, np.nextafter(1.0, 0.0)))
    assert (drawn >= 0).all()


def test_files_of_other_models_are_refused_all_at_once(tmp_path):
    source = tiny.TinySource(size=6)
    ours = write(tmp_path / "a.jsonl", source)
    found = with_teachers(source, [ours], retrieved_by="m0", taught_by="t0")
    assert found.fingerprint != source.fingerprint and found.ends == (1.0,)
    other = write(tmp_path / "b.jsonl", source, teacher_hash="t1")
    with pytest.raises(MarvelError, match=r"different teachers: .*a.jsonl \(t0\), .*b.jsonl \(t1"):
        with_teachers(source, [ours, other])
    pool = write(tmp_path / "c.jsonl", source, pool_hash="p1", source_fingerprint="f1")
    with pytest.raises(MarvelError) as refused:
        with_teachers(source, [ours, other, pool], taught_by="t0", retrieved_by="m0")
    told = str(refused.value)
    assert "b.jsonl was made for another model" in told and "c.jsonl was made for another" in told
