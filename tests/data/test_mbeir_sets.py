"""Parts of M-BEIR chosen by name: for training without what is held out."""

import collections

import numpy as np
import pytest

from marvel_jax.data import mbeir_synthetic
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mbeir_sets import SETS
from marvel_jax.data.mbeir_synthetic import Size
from marvel_jax.errors import MarvelError


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    out = tmp_path_factory.mktemp("sets") / "mbeir"
    mbeir_synthetic.build(out, size=Size(train=160, test=64, short_side=28, text=0.1))
    return MbeirFolder(out)


def kinds(source):
    return {(query.dataset, query.task.id) for query in source.queries}


ALL = {(one.dataset, one.task) for one in SETS}
HELD_OUT = {(4, 4), (5, 6), (5, 8), (6, 6), (6, 8)}


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ((), ("nights", "OVEN", "infoseek"), ALL - HELD_OUT),
        (("nights",), (), {(4, 4)}),
        (("oven_task6", "task7"), (), {(5, 6), (7, 7), (8, 7)}),
        (("webqa", "oven"), ("webqa_task2", "task8"), {(2, 1), (5, 6)}),
        (("9_task3",), (), {(9, 3)}),
    ],
)
def test_sets_are_chosen_by_name_or_task(layout, include, exclude, expected):
    whole = layout.source("train")
    some = layout.source("train", include=include, exclude=exclude)
    assert kinds(some) == expected
    wanted = [q for q in whole.queries if (q.dataset, q.task.id) in expected]
    # In the same order, read by place and one after the other, with the line that it stands on.
    assert list(some.queries) == wanted == [some.queries[i] for i in range(len(wanted))]
    assert some.queries[-1] == wanted[-1] and some.queries[1:3] == wanted[1:3]
    place = next(i for i, q in enumerate(whole.queries) if q == wanted[-1])
    lines = [i for i, q in enumerate(whole.queries) if q == wanted[-1]]
    assert some.queries.where(len(some.queries) - 1) in map(whole.queries.where, lines), place
    ids = [int(q.id.split(":")[0]) * 10**9 + int(q.id.split(":")[1]) for q in wanted]
    assert some.queries.ids("qid").tolist() == ids
    assert some.queries.choose(np.array([1, 3]))[1] == wanted[3]
    assert some.fingerprint != whole.fingerprint
    assert len(some.candidates) == len(whole.candidates)


def test_two_ways_to_name_the_same_queries_are_the_same_source(layout):
    first = layout.source("train", include=["nights"])
    assert first.fingerprint == layout.source("train", include=["task4"]).fingerprint
    counted = collections.Counter(query.id for query in first.queries)
    assert max(counted.values()) >= 2  # copies of the union file stay


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (
            ("night",),
            (),
            "include: 'night' names no data set: there are cirr, edis, .*nights_task4",
        ),
        ((), ("task5",), "exclude: 'task5' names task 5; M-BEIR has 0, 1, 2"),
        (("nights_task0",), (), "no query is of 'nights_task0'"),
        ((), ("",), "exclude: '' names no set"),
        (("nights",), ("task4",), "leave no query"),
        (("77",), (), "no query is of '77'"),
    ],
)
def test_a_choice_that_finds_nothing_is_refused(layout, include, exclude, message):
    with pytest.raises(MarvelError, match=message):
        layout.source("train", include=include, exclude=exclude)


def test_a_query_without_a_whole_task_number_is_named(layout, tmp_path):
    source = layout.root / "query/union_train/mbeir_union_up_train.jsonl"
    first = source.read_text().splitlines()[0]
    folder = tmp_path / "query" / "train"
    folder.mkdir(parents=True)
    (folder / "a.jsonl").write_text(first.replace('"task_id": ', '"task_id": "x", "was": ') + "\n")
    (tmp_path / "instructions").symlink_to(layout.root / "instructions")
    with pytest.raises(MarvelError, match=r"a.jsonl, line 1: expected task_id as a whole number"):
        MbeirFolder(tmp_path).source("train", include=["nights"])
