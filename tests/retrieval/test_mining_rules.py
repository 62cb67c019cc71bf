"""Toy rankings whose right answer is written out: filters, picks, C1 and C2."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.mining_rules import (
    DROPPED,
    KEPT,
    LEFT,
    PRESETS,
    Ranked,
    Strategy,
    choose,
    stream,
    too_similar,
)


def ranking(similarities, *, positives=(), wrong=(), best=None, p_yes=None, **masks) -> Ranked:
    """Ranks, counted from 1, of the positives and of the candidates of another modality."""
    values = np.array(similarities, np.float32)

    def at(ranks):
        return np.isin(np.arange(1, len(values) + 1), list(ranks))

    found = values[at(positives)]
    return Ranked(
        similarities=values,
        positive=at(positives),
        copy_of_positive=at(masks.get("copy_of_positive", ())),
        copy=at(masks.get("copy", ())),
        right_modality=~at(wrong),
        positive_similarity=best if best is not None else float(found.max()),
        p_yes=None if p_yes is None else np.array(p_yes, float),
    )


def ranks(choice) -> list[int]:
    return [place + 1 for place in choice.chosen]


def decide(ranked, seed=0, **fields):
    return choose(ranked, Strategy(**fields), stream(seed, "3:17"))


# --- filters ---------------------------------------------------------------------------------


def test_the_threshold_drops_what_is_above_it_and_keeps_what_is_on_it():
    found = decide(ranking([0.9, 0.8, 0.7, 0.69, 0.5, 0.4], positives=[2]), k=2)
    assert found.reasons == ["above_threshold", "positive", "top", "top", LEFT, LEFT]
    assert ranks(found) == [3, 4] and found.missing == 0


def test_relative_and_absolute_margins_are_taken_from_the_best_positive():
    ranked = ranking([0.9, 0.8, 0.77, 0.76, 0.75, 0.5, 0.4], positives=[2, 6])
    relative = decide(ranked, threshold=None, relative=0.95, k=2)
    # 0.95 x 0.8 = 0.76
    assert relative.reasons[:3] == ["above_relative", "positive", "above_relative"]
    assert ranks(relative) == [4, 5]
    margin = decide(ranked, threshold=None, margin=-0.04, k=2)
    assert margin.reasons[:3] == ["above_margin", "positive", "above_margin"]
    assert ranks(decide(ranked, threshold=None, margin=0.05, k=2)) == [3, 4]


def test_the_window_counts_ranks_of_all_that_was_found():
    ranked = ranking([0.6, 0.5, 0.4, 0.3, 0.2, 0.1], positives=[1, 3])
    found = decide(ranked, first_rank=2, last_rank=4, k=5, fill="none")
    assert ranks(found) == [2, 4] and found.missing == 0
    assert found.reasons[4:] == ["outside_ranks"] * 2


def test_a_reranker_vetoes_and_what_it_has_not_seen_is_not_taken():
    ranked = ranking([0.6, 0.5, 0.4, 0.3], positives=[4], p_yes=[0.9, np.nan, 0.2, 1])
    found = decide(ranked, teacher_above=0.5, k=2)
    assert found.reasons == ["teacher_says_yes", "unscored", "top", "positive"]
    assert found.missing == 1


def test_copies_go_whatever_their_similarity():
    ranked = ranking([0.6, 0.5, 0.4, 0.3], best=0.6, copy_of_positive=[1], copy=[3])
    assert decide(ranked, k=2).reasons == ["copy_of_positive", "top", "copy", "top"]


# --- picks -----------------------------------------------------------------------------------


def test_top_last_and_random_take_what_passes():
    ranked = ranking([0.9, 0.6, 0.5, 0.4, 0.3, 0.2], positives=[3])
    assert ranks(decide(ranked, k=2)) == [2, 4]
    assert ranks(decide(ranked, k=2, pick="last")) == [6, 5]
    draws = [tuple(ranks(decide(ranked, seed, k=2, pick="random"))) for seed in range(400)]
    # All ordered pairs of the four that pass, about equally often.
    counts = Counter(draws)
    assert set(counts) == {(a, b) for a in (2, 4, 5, 6) for b in (2, 4, 5, 6) if a != b}
    assert max(counts.values()) < 3 * min(counts.values())
    pool = decide(ranked, k=2, pick="pool")
    assert pool.chosen == [] and pool.missing == 2


def test_what_is_missing_is_drawn_from_the_pool_only_where_asked():
    ranked = ranking([0.9, 0.8, 0.6], positives=[2])
    assert decide(ranked, k=3).missing == 2
    assert decide(ranked, k=3, fill="none").missing == 0


def test_a_querys_draw_is_its_own():
    one, same, other = (stream(0, id).random(3).tolist() for id in ("3:1", "3:1", "3:2"))
    assert one == same != other
    assert stream(1, "3:1").random(3).tolist() != one


# --- MM-Embed's two classes ------------------------------------------------------------------


def mm(ranked, seed=0, **fields):
    return choose(ranked, Strategy(**fields), stream(seed, f"q:{seed}"))


OPTIONS = {"pick": "modality", "threshold": None, "depth": 10, "c2_below": 7, "k": 20}


def test_c1_is_wrong_modality_above_the_positive_and_c2_right_modality_below_the_floor():
    similarities = np.linspace(0.9, 0.1, 10)
    found = mm(ranking(similarities, positives=[5], wrong=[1, 3, 6, 9]), **OPTIONS)
    assert found.reasons == [
        "c1",
        "right_modality_too_high",
        "c1",
        "right_modality_too_high",
        "positive",
        "wrong_modality_below_positive",
        "right_modality_too_high",
        "c2",
        "wrong_modality_below_positive",
        "c2",
    ]
    assert sorted(ranks(found)) == [1, 3, 8, 10] and found.missing == 16


def test_without_a_positive_in_the_list_everything_counts_as_above_it():
    found = mm(ranking(np.linspace(0.9, 0.1, 10), wrong=[1, 6, 10], best=0.0), **OPTIONS)
    assert [rank for rank in (1, 6, 10) if found.reasons[rank - 1] == "c1"] == [1, 6, 10]
    assert [rank for rank in (8, 9) if found.reasons[rank - 1] == "c2"] == [8, 9]


def test_with_several_positives_the_first_one_decides_and_none_is_chosen():
    ranked = ranking(np.linspace(0.9, 0.1, 10), positives=[2, 9], wrong=[1, 4, 9])
    found = mm(ranked, **OPTIONS)
    assert found.reasons[0] == "c1" and found.reasons[3] == "wrong_modality_below_positive"
    assert found.reasons[1] == found.reasons[8] == "positive"


def test_c1_and_c2_are_drawn_with_equal_chance_though_one_is_larger():
    ranked = ranking(np.linspace(0.9, 0.1, 10), positives=[8], wrong=[1, 2, 3, 4, 5])
    draws = [mm(ranked, seed, **OPTIONS | {"k": 1}) for seed in range(600)]
    of_c1 = sum(ranks(one)[0] <= 5 for one in draws)
    assert 250 < of_c1 < 350  # five deviations of a fair coin are 61
    within = Counter(rank for one in draws for rank in ranks(one))
    assert set(within) == {1, 2, 3, 4, 5, 9, 10}


def test_the_other_class_stands_in_and_then_the_pool():
    only_c2 = ranking(np.linspace(0.9, 0.1, 10), positives=[3])
    only_c1 = ranking(np.linspace(0.9, 0.1, 10), positives=[3], wrong=[1, 8, 9, 10])
    neither = ranking(np.linspace(0.9, 0.1, 10), positives=[3], wrong=[8, 9, 10])
    for seed in range(20):
        assert ranks(mm(only_c2, seed, **OPTIONS | {"k": 1}))[0] > 7
        assert ranks(mm(only_c1, seed, **OPTIONS | {"k": 1})) == [1]
        found = mm(neither, seed, **OPTIONS | {"k": 1})
        assert found.chosen == [] and found.missing == 1


def test_mm_embeds_preset_has_its_constants():
    strategy = PRESETS["modality_aware"].default
    right = mm(ranking(np.linspace(0.9, 0.1, 50), positives=[1]), **vars(strategy) | {"k": 9})
    assert sorted(ranks(right)) == [46, 47, 48, 49, 50]
    assert strategy.k == 1


# --- always ----------------------------------------------------------------------------------


@given(data=st.data())
def test_a_positive_is_never_chosen_and_every_place_has_one_reason(data):
    count = data.draw(st.integers(0, 30))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    ranked = Ranked(
        np.sort(rng.uniform(-1, 1, count).round(1)).astype(np.float32)[::-1],
        *(rng.random(count) < 0.3 for _ in range(4)),
        positive_similarity=float(rng.uniform(-1, 1)),
        p_yes=np.where(rng.random(count) < 0.2, np.nan, rng.random(count)),
    )
    fields = {
        "pick": data.draw(st.sampled_from(["top", "random", "last", "pool", "modality"])),
        "k": data.draw(st.integers(1, 8)),
        "threshold": data.draw(st.sampled_from([None, 0.0, 0.7])),
        "relative": data.draw(st.sampled_from([None, 0.95])),
        "margin": data.draw(st.sampled_from([None, 0.1])),
        "teacher_above": data.draw(st.sampled_from([None, 0.5])),
        "depth": 30,
        "c2_below": data.draw(st.integers(0, 29)),
    }
    strategy = Strategy(**fields)
    found = choose(ranked, strategy, stream(0, "q"))
    assert len(found.reasons) == count and set(found.reasons) <= {*DROPPED, *KEPT, LEFT}
    assert len(set(found.chosen)) == len(found.chosen) <= strategy.k
    assert len(found.chosen) + found.missing == strategy.k
    assert found.chosen == sorted(found.chosen) or strategy.pick != "top"
    for place, reason in enumerate(found.reasons):
        assert (place in found.chosen) == (reason in KEPT)
    bad = ranked.positive | ranked.copy_of_positive | ranked.copy
    for mask in too_similar(
        ranked.similarities, strategy, positive_similarity=ranked.positive_similarity
    ).values():
        bad = bad | mask
    assert not bad[found.chosen].any()
    # The choice hangs on nothing but the ranking and the query's own numbers.
    assert choose(ranked, strategy, stream(0, "q")) == found


def test_the_released_models_table():
    table = PRESETS["umarvel_two_strategy"]
    mined = {(0, 0), (2, 1), (2, 2), (0, 3), (5, 6), (5, 8), (7, 7)}
    random = {(9, 0), (1, 0), (3, 2), (9, 3), (1, 3), (4, 4), (6, 6), (8, 7), (6, 8)}
    assert {table.of(*key).pick for key in mined} == {"top"}
    assert {table.of(*key).pick for key in random} == {"pool"}
    assert {table.of(*key).threshold for key in mined | random} == {None}
    assert {table.of(*key).k for key in mined | random} == {5} and len(mined | random) == 16


@pytest.mark.parametrize(
    "fields",
    [
        {"k": 0},
        {"first_rank": 0},
        {"first_rank": 5, "last_rank": 4},
        {"first_rank": 101},
        {"pick": "modality", "c2_below": 100},
    ],
)
def test_a_strategy_that_cannot_choose_is_refused(fields):
    with pytest.raises(MarvelError):
        Strategy(**fields)
