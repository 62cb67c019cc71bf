import pytest

from marvel_jax.data.mbeir_sets import SETS
from marvel_jax.retrieval.published import SetSize, beside, published_names, published_tables

WHOLE = sum(one.pool for one in SETS)
MBEIR = [SetSize(one.full_name, one.test_queries, one.pool) for one in SETS]


def test_every_score_is_a_percentage_of_a_set_that_the_table_names():
    names = [table.name for table in published_tables()]
    assert len(set(names)) == len(names) == 6
    for table in published_tables():
        assert table.source and table.metric
        for system in table.systems:
            assert set(system.scores) <= set(table.sets)
            assert all(0 < score < 100 for score in system.scores.values())
        if table.pool is not None:
            assert table.sets == tuple(one.full_name for one in SETS)
            assert all(set(system.scores) == set(table.sets) for system in table.systems)


def test_printed_averages_follow_from_the_scores_or_the_note_says_that_they_do_not():
    told = []
    for table in published_tables():
        for system in table.systems:
            if system.average is None:
                continue
            mean = sum(system.scores.values()) / len(system.scores)
            if abs(mean - system.average) > 0.05 + 1e-9:
                exact = f"{mean:.4f}".rstrip("0")  # sixteenths of tenths have four digits
                assert f"average to {exact}, the printed average is {system.average}" in system.note
                told.append((table.pool, system.name))
    assert sorted(told) == [
        ("global", "U-MARVEL+ Qwen2-VL-7B (reranked)"),
        ("local", "U-MARVEL 7B, + distillation"),
    ]


def test_the_figures_that_the_field_knows():
    tables = {table.name: table for table in published_tables()}
    found = {
        (name, system.name): system.average
        for name, table in tables.items()
        for system in table.systems
    }
    assert found["M-BEIR, local pools", "U-MARVEL Qwen2-VL-7B"] == 63.2
    assert found["M-BEIR, global pool", "U-MARVEL Qwen2-VL-7B"] == 60.7
    assert found["M-BEIR, global pool", "MM-Embed"] == 52.7
    drop = [
        next(s for s in tables[name].systems if s.name == "U-MARVEL Qwen2-VL-7B").scores
        for name in ("M-BEIR, local pools", "M-BEIR, global pool")
    ]
    assert drop[0]["mscoco_task0"] - drop[1]["mscoco_task0"] == pytest.approx(11.6)


def test_only_m_beir_itself_gets_published_columns():
    assert len(beside(MBEIR, global_size=WHOLE)) == 4
    assert beside([SetSize("emoji_task0", 19_995, 542_246)], global_size=WHOLE) == ()
    # The same names, as a synthetic or a cut folder has them, are not enough.
    for changes in ({"queries": 200, "pool": 400}, {"queries": 1}):
        assert beside([one._replace(**changes) for one in MBEIR], global_size=WHOLE) == ()
    # Whole local pools in a cut union: an easier search than the published one.
    cut = beside(MBEIR, global_size=1_000_000)
    assert cut and {one.table.pool for one in cut} == {"local"}
    assert len(beside(MBEIR, global_size=WHOLE - 4_000)) == 4
    assert published_names([MBEIR[0]._replace(pool=542_000)]) == ("visualnews_task0",)
    assert published_names([MBEIR[0]._replace(pool=540_000)]) == ()


def test_means_are_over_the_sets_that_were_evaluated():
    held_out = [one for one in MBEIR if one.name in ("nights_task4", "oven_task8")]
    for one in beside(held_out, global_size=WHOLE):
        assert one.sets == ("nights_task4", "oven_task8")
        for system in one.table.systems:
            mean = (system.scores["nights_task4"] + system.scores["oven_task8"]) / 2
            assert one.means[system.name] == pytest.approx(mean)
            assert set(one.to_dict()["systems"][0]["scores"]) == set(one.sets)
