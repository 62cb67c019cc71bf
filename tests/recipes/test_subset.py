"""A part of a corpus's queries is a corpus that everything reads like the whole one."""

import contextlib
import itertools
import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.data import mbeir_synthetic
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mbeir_synthetic import Size
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.subset import _share, write_subset


def ids(folder, split="train") -> list[str]:
    return [query.id for query in MbeirFolder(folder).source(split).queries]


def test_shares_of_one_seed_have_nothing_in_common_and_are_all_together(tiny_corpus, tmp_path):
    parts = [(0, 0.25), (0.25, 0.6), (0.6, 1)]
    found = []
    for number, shares in enumerate(parts):
        write_subset(tiny_corpus, tmp_path / str(number), split="train", shares=shares, seed=1)
        found.append(ids(tmp_path / str(number)))
    assert sorted(one for part in found for one in part) == sorted(ids(tiny_corpus))
    assert len(found[0]) == 36  # a quarter of each of three tasks of 48
    # A draw and not the head of the file; the order of the file.
    assert found[0] != ids(tiny_corpus)[:36]
    assert found[0] == sorted(found[0], key=ids(tiny_corpus).index)


def test_the_draw_hangs_on_the_seed_alone(tiny_corpus, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_subset(tiny_corpus, tmp_path / name, split="train", most=5, seed=seed)
    assert ids(tmp_path / "a") == ids(tmp_path / "b") != ids(tmp_path / "c")


def test_a_cap_holds_for_each_task_and_test_sets_keep_their_pools_and_qrels(tiny_corpus, tmp_path):
    count = write_subset(tiny_corpus, tmp_path / "part", split="test", most=5)
    sets = MbeirFolder(tmp_path / "part").test_sets()
    whole = {one.name: one for one in MbeirFolder(tiny_corpus).test_sets()}
    assert [len(one.queries) for one in sets] == [5, 5, 5] and count == 15
    for one in sets:
        assert len(one.pool) == len(whole[one.name].pool)
        assert set(one.qrels) == {query.id for query in one.queries}
        assert one.qrels.items() <= whole[one.name].qrels.items()
    # Pictures are found through the link.
    picture = sets[0].pool[0].item.parts[0]
    assert np.size(picture.source.read_bytes()) == 1


def test_sets_are_chosen_by_name(tiny_corpus, tmp_path):
    write_subset(tiny_corpus, tmp_path / "a", split="test", include=("task3",))
    assert [one.name for one in MbeirFolder(tmp_path / "a").test_sets()] == ["tiny_task3"]
    write_subset(tiny_corpus, tmp_path / "b", split="test", exclude=("task3",))
    found = [one.name for one in MbeirFolder(tmp_path / "b").test_sets()]
    assert found == ["tiny_task0", "tiny_task7"]


def test_a_subset_of_a_subset(tiny_corpus, tmp_path):
    write_subset(tiny_corpus, tmp_path / "a", split="train", shares=(0, 0.5))
    write_subset(tmp_path / "a", tmp_path / "b", split="train", shares=(0, 0.5))
    assert len(ids(tmp_path / "b")) == 36 and set(ids(tmp_path / "b")) < set(ids(tmp_path / "a"))


def test_a_line_alone_is_of_the_first_share_and_a_later_one_is_refused(tiny_corpus, tmp_path):
    write_subset(tiny_corpus, tmp_path / "one", split="train", most=1)
    write_subset(tmp_path / "one", tmp_path / "fitted", split="train", shares=(0, 0.1))
    assert ids(tmp_path / "fitted") == ids(tmp_path / "one")
    with pytest.raises(MarvelError, match=r"task 0, no query is left: it has 1.* 0\.1 and 1"):
        write_subset(tmp_path / "one", tmp_path / "judged", split="train", shares=(0.1, 1))


@given(count=st.integers(1, 40), ends=st.lists(st.floats(0.01, 0.99), max_size=4))
def test_shares_never_overlap_and_lose_nothing(count, ends):
    ends = [0.0, *sorted(set(ends)), 1.0]
    lines = np.zeros(count, int), np.zeros(count, int)
    taken = np.zeros(count, int)
    for shares in itertools.pairwise(ends):
        # Refused: nothing of it is left.
        with contextlib.suppress(MarvelError):
            taken += _share(*lines, lines[0] == 0, shares, None, 3, where="here")
    assert (taken == 1).all()


@pytest.fixture(scope="module")
def mbeir(tmp_path_factory):
    """A synthetic M-BEIR, with union files and pools as small as the real ones."""
    out = tmp_path_factory.mktemp("synthetic") / "mbeir"
    mbeir_synthetic.build(out, size=Size(train=160, test=64, short_side=28, text=0.1))
    return out


def test_of_validation_the_queries_with_judgements_are_taken_and_of_training_the_union(
    mbeir, tmp_path
):
    write_subset(mbeir, tmp_path / "val", split="val", most=2)
    sets = MbeirFolder(tmp_path / "val").test_sets("val")
    assert [len(one.queries) for one in sets] == [2] * 16
    assert all({*one.qrels} == {query.id for query in one.queries} for one in sets)
    assert not (tmp_path / "val/query/union_val").exists()
    write_subset(mbeir, tmp_path / "train", split="train")
    assert ids(tmp_path / "train") == ids(mbeir)


def test_candidates_of_other_data_sets_are_left_out_where_they_are_asked_to_be(mbeir, tmp_path):
    unseen = ("nights", "oven_task6", "oven_task8", "infoseek")
    write_subset(mbeir, tmp_path / "a", split="train", exclude=unseen, candidates="own")
    whole, part = MbeirFolder(mbeir).source("train"), MbeirFolder(tmp_path / "a").source("train")
    assert {query.dataset for query in part.queries} == {0, 1, 2, 3, 7, 8, 9}

    def of_others(id):
        return id.partition(":")[0] not in ("4", "5", "6")

    kept = [one.id for one in whole.candidates if of_others(one.id)]
    assert [one.id for one in part.candidates] == kept and len(kept) < len(whole.candidates)
    # Everything else is there as before, and a part of it too.
    assert len(list((tmp_path / "a/cand_pool/local").iterdir())) == 18
    assert len(MbeirFolder(tmp_path / "a").pool("test")) == len(MbeirFolder(mbeir).pool("test"))
    write_subset(tmp_path / "a", tmp_path / "b", split="train", shares=(0, 0.5))
    again = MbeirFolder(tmp_path / "b").source("train").candidates
    assert [one.id for one in again] == kept


def test_what_a_query_names_stays_whatever_data_set_it_is_of(mbeir, tmp_path):
    root = tmp_path / "mbeir"
    shutil.copytree(mbeir, root)
    path = root / "query/union_train/mbeir_union_up_train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    foreign = [one.id for one in MbeirFolder(root).pool("train") if one.id.startswith("5:")][:2]
    coco = next(row for row in rows if row["qid"].startswith("9:"))
    coco["pos_cand_list"].append(foreign[0])
    coco["neg_cand_list"].append({"did": foreign[1]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_subset(root, tmp_path / "a", split="train", include=("mscoco",), candidates="own")
    pool = MbeirFolder(tmp_path / "a").source("train").candidates
    assert {one.id for one in pool if not one.id.startswith("9:")} == set(foreign)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shares": (0.5, 0.5)}, "give 0 <= first < last <= 1"),
        ({"shares": (0, 1.5)}, "give 0 <= first < last <= 1"),
        ({"include": ("task4",)}, "no query is of 'task4'"),
        ({"split": "val"}, "holds no .jsonl"),
    ],
)
def test_what_cannot_be_is_refused_and_leaves_nothing(tiny_corpus, tmp_path, options, message):
    with pytest.raises(MarvelError, match=message):
        write_subset(tiny_corpus, tmp_path / "part", **{"split": "train", **options})
    assert not (tmp_path / "part").exists()
