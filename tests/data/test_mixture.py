"""A mixture keeps its parts' ids and instructions apart and reads what they read."""

import dataclasses
import pickle

import numpy as np
import pytest

from marvel_jax.data import lengths
from marvel_jax.data.batch import RowShape
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.items import TASKS, Candidate, Item, Query
from marvel_jax.data.mixture import PART_RANGE, Mixture, Part
from marvel_jax.data.pipeline import build_batch
from marvel_jax.data.plan_groups import PartShare
from marvel_jax.errors import MarvelError
from tests.data import samples

SHOWN = samples.source(texts=12, images=6)
SAID = samples.ListSource(
    [
        Query(f"10:{n}", Item.of(text=f"said {n}"), TASKS[1], (f"10:i{n}",), (f"10:i{n + 1}",), 10)
        for n in range(5)
    ],
    [Candidate(f"10:i{n}", Item.of(text=f"true {n}"), "text") for n in range(6)],
)


def mixed():
    return Mixture([Part("shown", SHOWN), Part("said", SAID)])


def test_parts_follow_each_other_under_their_names():
    mixture = pickle.loads(pickle.dumps(mixed()))
    assert len(mixture.queries) == len(SHOWN.queries) + 5
    assert len(mixture.candidates) == len(SHOWN.candidates) + 6
    query = mixture.queries[-4]
    assert query.id == query.item.id == "said/10:1" and query.item.parts == ("said 1",)
    assert query.positives == ("said/10:i1",) and query.negatives == ("said/10:i2",)
    assert query.dataset == PART_RANGE + 10
    # Both parts have a candidate 10:i1.
    for name, part in (("shown", SHOWN), ("said", SAID)):
        place = mixture.candidate_index(f"{name}/10:i1")
        found, own = mixture.candidates[place], part.candidates[part.candidate_index("10:i1")]
        assert found.id == f"{name}/10:i1" and found.item.parts == own.item.parts
    ids = [one.id for one in mixture.candidates]
    assert [mixture.candidate_index(one) for one in ids] == list(range(len(ids)))


def test_instructions_are_each_parts_own():
    mixture = mixed()
    for query in mixture.queries:
        name, own = query.id.split("/")
        part = {"shown": SHOWN, "said": SAID}[name]
        original = next(one for one in part.queries if one.id == own)
        found = mixture.instructions[query.instruction_key]
        assert found == part.instructions.get(original.instruction_key, ())
    assert (PART_RANGE + 10, "text", "text") in mixture.instructions
    assert (10, "text", "text") not in mixture.instructions
    assert (2 * PART_RANGE, "text", "text") not in mixture.instructions


def test_a_batch_of_both_parts_holds_what_they_say():
    mixture, processor = mixed(), samples.processor()
    index = lengths.index(mixture, processor, cache=None, hard_negatives=True)
    config = PlanConfig(
        global_batch=8,
        seed=1,
        row=RowShape(tokens=256, patches=1024, items=8),
        hard_negatives=1,
        parts=(PartShare(weight=3.0), PartShare(weight=1.0)),
    )
    plan = Plan(index, config, num_shards=1)
    for number in range(4):
        step = plan.step(number)
        from_said = index.datasets[step.queries] >= PART_RANGE
        assert from_said.sum() == 2
        np.testing.assert_array_equal(step.prompts < 0, from_said)
        np.testing.assert_array_equal(step.candidates[:, 1] >= 0, from_said)
        batch = build_batch(mixture, processor, step, range(1))
        assert batch.query_valid.all() and batch.candidate_valid.sum() == 10


def test_a_query_without_instruction_is_still_told_from_a_forgotten_one():
    lost = dataclasses.replace(SHOWN, instructions={(10, "text", "image"): ("Find it.",)})
    with pytest.raises(MarvelError, match=r"there is no instruction for data set 10, .*'image'"):
        lengths.index(Mixture([Part("a", lost), Part("b", SAID)]), samples.processor(), cache=None)


def test_the_fingerprint_follows_the_parts():
    first = mixed().fingerprint
    assert first == mixed().fingerprint
    assert first != Mixture([Part("said", SAID), Part("shown", SHOWN)]).fingerprint
    assert first != Mixture([Part("shown", SHOWN), Part("told", SAID)]).fingerprint


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "at least one part"), (("a", "a"), "named 'a': rename"), (("a/b",), "no slash")],
)
def test_parts_need_names(names, message):
    with pytest.raises(MarvelError, match=message):
        Mixture([Part(name, SAID) for name in names])


def test_unknown_candidates_are_named():
    with pytest.raises(MarvelError, match=r"10:i1 belongs to no part .* shown/, said/"):
        mixed().candidate_index("10:i1")
    with pytest.raises(MarvelError, match="no candidate 10:99"):
        mixed().candidate_index("said/10:99")
    far = dataclasses.replace(SAID.queries[0], dataset=PART_RANGE)
    with pytest.raises(MarvelError, match="has data set 1000000: in a mixture"):
        Mixture([Part("far", dataclasses.replace(SAID, queries=[far]))]).queries[0]
