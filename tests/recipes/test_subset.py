"""A part of a corpus's queries is a corpus that everything reads like the whole one."""

import numpy as np
import pytest

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.subset import write_subset


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
