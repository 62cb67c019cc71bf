"""Obedience, copies and comparisons against plain re-computations from the vectors themselves."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vector_stores import random_unit, unit, write_store

from marvel_jax.data import mbeir_write
from marvel_jax.data.items import Item
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import analysis_copies
from marvel_jax.retrieval.analysis import MODALITIES, Candidates, JudgedSet
from marvel_jax.retrieval.analysis_against import compare
from marvel_jax.retrieval.analysis_copies import collapse, copies
from marvel_jax.retrieval.analysis_gallery import gallery
from marvel_jax.retrieval.analysis_obedience import obedience
from marvel_jax.retrieval.exact import TopK

K, DEPTH = 5, 50
WIDTH = 12


class World(NamedTuple):
    """A pool of 90 candidates of three kinds and two data sets, and 40 queries for each kind."""

    vectors: np.ndarray
    kinds: np.ndarray
    datasets: np.ndarray
    texts: list[str]
    sets: list[JudgedSet]
    candidates: Candidates


def ranking(queries: np.ndarray, vectors: np.ndarray, rows: np.ndarray) -> TopK:
    scores = (queries.astype(np.float64) @ vectors[rows].T.astype(np.float64)).astype(np.float32)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH]
    found = TopK(np.take_along_axis(scores, order, axis=1), rows[order].astype(np.int32))
    width = DEPTH - order.shape[1]
    return TopK(
        np.pad(found.scores, ((0, 0), (0, width)), constant_values=-np.inf),
        np.pad(found.indices, ((0, 0), (0, width)), constant_values=-1),
    )


def build(folder: Path, *, copied: int = 0, seed: int = 0) -> World:
    rng = np.random.default_rng(seed)
    size = 90
    vectors = random_unit(size, WIDTH, seed=seed)
    kinds, datasets = rng.integers(0, 3, size), rng.integers(1, 3, size)
    texts = [f"text {number}" for number in range(size)]
    for copy in range(copied):  # copies of one another, a right answer of a query among them
        source, kind = 3 * copy, kinds[3 * copy]
        target = 3 * copy + 1
        vectors[target], kinds[target], texts[target] = vectors[source], kind, texts[source]
    ids = [f"{dataset}:{number}" for number, dataset in enumerate(datasets)]
    images = {0: {"image": "x.png", "text": None}, 1: {}, 2: {"image": "x.png"}}
    (folder / "query").mkdir(parents=True)
    (folder / "x.png").write_bytes(b"any")
    mbeir_write.write_union_pool(
        folder,
        split="test",
        records=[
            mbeir_write.candidate_record(id, **{"text": text, "image": None, **images[int(kind)]})
            for id, text, kind in zip(ids, texts, kinds, strict=True)
        ],
    )
    store = write_store(folder / "store", vectors, ids)
    sets = []
    for kind, wanted in enumerate(MODALITIES):
        pool = np.flatnonzero((kinds == kind) & (datasets == 1))
        targets = rng.choice(pool, 40)
        queries = unit(vectors[targets] + 0.35 * rng.normal(size=(40, WIDTH)))
        local = ranking(queries, vectors, pool)
        union = ranking(queries, vectors, np.arange(size))
        sets.append(
            JudgedSet(
                f"set{kind}",
                "t->i",
                K,
                wanted,
                [f"1:{number}" for number in range(40)],
                [np.array([target]) for target in targets],
                local,
                union,
                len(pool),
            )
        )
    candidates = Candidates(store, MbeirFolder(folder).pool("test"), datasets={1: "one"})
    return World(vectors, kinds, datasets, texts, sets, candidates)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world") / "plain")


@pytest.fixture(scope="module")
def doubled(tmp_path_factory):
    return build(tmp_path_factory.mktemp("world") / "doubled", copied=28)


def hit(rows, answers):
    return np.mean([bool(set(row) & set(right)) for row, right in zip(rows, answers, strict=True)])


def test_shares_are_those_of_the_first_k(world):
    found = obedience(world.sets, world.candidates)
    for kind, (one, told) in enumerate(zip(world.sets, found.sets, strict=True)):
        first = one.union.indices[:, :K]
        assert told.share.mean == pytest.approx((world.kinds[first] == kind).mean())
        assert told.first == pytest.approx((world.kinds[first[:, 0]] == kind).mean())
        assert sum(told.by_modality.values()) == pytest.approx(1)
        assert told.by_dataset["one"] == pytest.approx((world.datasets[first] == 1).mean())
        assert told.by_dataset["2"] == pytest.approx((world.datasets[first] == 2).mean())
        row = found.confusion[MODALITIES[kind]]
        assert row == pytest.approx(
            {name: told.by_modality.get(name, 0) for name in MODALITIES}, abs=1e-12
        )
    assert 0 < found.mean < 1


def test_the_drop_is_what_searching_without_the_other_kinds_gives_back(world):
    found = obedience(world.sets, world.candidates)
    for kind, (one, told) in enumerate(zip(world.sets, found.sets, strict=True)):
        rows = one.union.indices
        alone = [row[world.kinds[row] == kind][:K] for row in rows]
        filtered = hit(alone, one.relevant)
        assert told.union + told.to_modality == pytest.approx(filtered)
        assert told.local - told.to_datasets == pytest.approx(filtered)
        assert told.drop.mean == pytest.approx(told.to_modality + told.to_datasets)
        assert told.local == hit(one.local.indices[:, :K], one.relevant)
    assert sum(told.to_modality for told in found.sets) > 0
    assert sum(told.to_datasets for told in found.sets) > 0


def test_lists_that_cannot_tell_say_so(world):
    one = world.sets[0]
    short = TopK(one.union.scores[:, :K], one.union.indices[:, :K])
    cut = JudgedSet(**{**vars(one), "union": short})
    told, whole = (obedience([each], world.candidates).sets[0] for each in (cut, one))
    obeys = (world.kinds[short.indices] == 0).sum(axis=1)
    missed = one.hits()[1] == 0
    assert told.unsure == np.count_nonzero((obeys < K) & missed) > 0
    assert told.to_modality <= whole.to_modality <= told.to_modality + told.unsure / 40


def collapsed_plainly(rows, answers, groups, k):
    """Groups in the order of their first member; right where any member is."""
    order = list(dict.fromkeys(groups[row] for row in rows if row >= 0))
    return bool(set(order[:k]) & {groups[answer] for answer in answers})


@given(st.data())
def test_collapsing_is_counting_groups(data):
    size = data.draw(st.integers(2, 12))
    groups = data.draw(st.lists(st.integers(0, 4), min_size=size, max_size=size))
    rows = data.draw(st.permutations(range(size)))[: data.draw(st.integers(1, size))]
    answers = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
    k = data.draw(st.integers(1, size))
    same = frozenset(
        (a, b) for a in range(size) for b in range(a + 1, size) if groups[a] == groups[b]
    )
    found = TopK(np.zeros((1, len(rows)), np.float32), np.array([rows], np.int32))
    standard, collapsed, touched = collapse(found, [np.array(sorted(answers))], k=k, same=same)
    assert bool(standard[0]) == bool(set(rows[:k]) & answers)
    assert bool(collapsed[0]) == collapsed_plainly(rows, answers, groups, k)
    assert collapsed[0] >= standard[0]
    if collapsed[0] > standard[0]:
        assert touched[0]


def test_copies_are_found_by_their_scores_and_take_one_place(doubled):
    found = {(one.name, one.pool): one for one in copies(doubled.sets, doubled.candidates).sets}
    groups = [min(n for n, text in enumerate(doubled.texts) if text == t) for t in doubled.texts]
    gained = 0.0
    for one in doubled.sets:
        for pool, lists in (("local", one.local), ("global", one.union)):
            told = found[one.name, pool]
            wanted = np.mean(
                [
                    collapsed_plainly(row, right, groups, K)
                    for row, right in zip(lists.indices.tolist(), one.relevant, strict=True)
                ]
            )
            assert told.collapsed.mean == pytest.approx(wanted)
            assert told.standard == hit(lists.indices[:, :K], one.relevant)
            assert told.change.mean == pytest.approx(told.collapsed.mean - told.standard)
            gained += told.change.mean
    assert gained > 0


def test_a_right_answer_beyond_the_list_is_found_by_its_copy(doubled):
    # The list ends with the copy of an answer that it no longer holds.
    source, copy = 0, 1
    apart = doubled.vectors[source] - doubled.vectors[copy]
    assert np.abs(apart).max() == 0
    one = doubled.sets[0]
    rows = np.array([[7, 11, 19, 40, copy]], np.int32)
    lists = TopK(np.array([[0.9, 0.8, 0.7, 0.6, 0.5]], np.float32), rows)
    cut = JudgedSet(
        "cut", "t->i", K, one.wanted, ["1:0"], [np.array([source])], lists, lists, one.pool
    )
    for told in copies([cut], doubled.candidates).sets:
        assert (told.standard, told.collapsed.mean, told.queries) == (0, 1, 1)


def test_copies_are_found_where_bfloat16_computed_them_apart(tmp_path):
    """One content in two rows of a forward pass: the vectors are not the same."""
    world = build(tmp_path / "apart", copied=1)
    vectors = world.vectors.copy()
    away = random_unit(1, WIDTH, seed=5)
    vectors[1] = unit(vectors[:1] + 1e-3 * away)[0]
    store = write_store(tmp_path / "store", vectors, list(world.candidates.store.ids))
    candidates = Candidates(store, MbeirFolder(tmp_path / "apart").pool("test"), datasets={})
    query = unit(vectors[:1] + 0.5 * away)
    lists = ranking(query, vectors, np.arange(len(vectors)))
    assert set(lists.indices[0, :2]) == {0, 1}
    assert lists.scores[0, 0] - lists.scores[0, 1] > 2e-5
    second = int(lists.indices[0, 1])
    one = JudgedSet("one", "t->i", 1, "image", ["1:0"], [np.array([second])], lists, lists, 90)
    for compute, expected in (("float32", 0), ("bfloat16", 1)):
        told = copies([one], candidates, compute=compute).sets[0]
        assert (told.standard, told.collapsed.mean) == (0, expected)


def test_many_equal_scores_are_compared_some_queries_at_a_time(doubled, monkeypatch):
    most = []
    alike = analysis_copies._alike
    whole = copies(doubled.sets, doubled.candidates)

    def counted(ranking, *given, **more):
        most.append(len(ranking.indices))
        return alike(ranking, *given, **more)

    monkeypatch.setattr(analysis_copies, "_alike", counted)
    monkeypatch.setattr(analysis_copies, "_QUERIES", 7)
    assert copies(doubled.sets, doubled.candidates) == whole and max(most) == 7


def test_without_copies_nothing_changes(world):
    for one in copies(world.sets, world.candidates).sets:
        assert one.standard == one.collapsed.mean and one.queries == 0


def test_coarse_vectors_alone_make_no_copies(tmp_path):
    """Two texts whose signs agree have one binary code, but are not the same thing."""
    world = build(tmp_path / "coarse", copied=3)
    vectors = world.vectors.copy()
    vectors[30] = unit(vectors[31][None] * (1 + 0.5 * np.arange(WIDTH) / WIDTH))[0]
    ids = list(world.candidates.store.ids)
    store = write_store(tmp_path / "binary", vectors, ids, dtype="binary")
    pool = MbeirFolder(tmp_path / "coarse").pool("test")
    candidates = Candidates(store, pool, datasets={})
    lists = TopK(np.full((1, K), 0.5, np.float32), np.array([[30, 31, 0, 1, 50]], np.int32))
    one = JudgedSet(
        "binary", "t->i", 3, "image", ["1:0"], [np.array([50])], lists, lists, len(store)
    )
    assert (store.vectors(np.array([30])) == store.vectors(np.array([31]))).all()
    told = copies([one], candidates).sets[0]
    assert told.collapsed.mean == told.standard == 0


def test_runs_are_compared_query_by_query_whatever_their_order(world):
    one = world.sets[0]
    order = np.random.default_rng(0).permutation(40)
    shuffled = JudgedSet(
        **{
            **vars(one),
            "query_ids": [one.query_ids[n] for n in order],
            "relevant": [one.relevant[n] for n in order],
            "local": TopK(*(part[order] for part in one.local)),
            "union": TopK(*(part[order] for part in one.union)),
        }
    )
    same = compare([one], [shuffled], names=("a", "b"))
    assert all(found[0].test.wins == found[0].test.losses == 0 for found in same.sets.values())
    worse = JudgedSet(**{**vars(one), "union": TopK(one.union.scores, one.union.indices[:, ::-1])})
    found = compare([one], [worse], names=("a", "b")).sets["global"][0]
    assert found.test.difference.mean == pytest.approx(found.ours - found.theirs) != 0


def test_other_queries_or_no_common_set_are_refused(world):
    one, other = world.sets[:2]
    renamed = JudgedSet(**{**vars(one), "query_ids": [f"2:{n}" for n in range(40)]})
    with pytest.raises(MarvelError, match=r"set0.*'1:0' is ours alone"):
        compare([one], [renamed], names=("a", "b"))
    with pytest.raises(MarvelError, match="no test set in common"):
        compare([one], [other], names=("a", "b"))
    left = compare([one, other], [one], names=("a", "b"))
    assert "set1" in left.notes[0] and [found.name for found in left.sets["local"]] == ["set0"]


def test_a_gallery_holds_hits_and_misses_with_the_instruction(world):
    one = world.sets[1]
    found = gallery(
        one,
        world.candidates,
        query=lambda n: Item.of(text=one.query_ids[n], instruction="Find words."),
        count=3,
        seed=1,
    )
    _, hits = one.hits()
    assert found.num_successes == hits.sum() and found.num_failures == (1 - hits).sum()
    for examples, right in ((found.successes, True), (found.failures, False)):
        assert len(examples) == min(3, np.count_nonzero(hits == right)) > 0
        for example in examples:
            assert any(shown.right for shown in example.hits) == right
            assert example.wanted == "text" and example.query.instruction == "Find words."
            number = one.query_ids.index(example.id)
            assert example.query.parts == (example.id,)
            rows = one.union.indices[number]
            assert [shown.id for shown in example.hits] == [
                world.candidates.store.ids[int(rows[shown.rank - 1])] for shown in example.hits
            ]


def test_a_query_that_could_not_be_read_is_counted_and_not_shown(world):
    one = world.sets[1]
    nothing = one.union.indices.copy()
    lost = np.flatnonzero(one.hits()[1] == 0)[::2]
    nothing[lost] = -1
    cut = JudgedSet(**{**vars(one), "union": TopK(one.union.scores, nothing)})
    everyone = {"query": lambda n: Item.of(text=one.query_ids[n]), "count": 1000}
    found = gallery(cut, world.candidates, **everyone)
    assert len(lost) and found.num_failures == (1 - one.hits()[1]).sum()
    assert len(found.failures) == found.num_failures - len(lost)
    assert not {example.id for example in found.failures} & {one.query_ids[n] for n in lost}


def test_a_hit_below_what_is_shown_is_shown_last(world):
    one = world.sets[0]
    number = int(np.flatnonzero(one.hits()[1])[0])
    first = int(np.flatnonzero(np.isin(one.union.indices[number], one.relevant[number]))[0])
    alone = JudgedSet(
        **{
            **vars(one),
            "query_ids": one.query_ids[number : number + 1],
            "relevant": one.relevant[number : number + 1],
            "local": TopK(*(part[number : number + 1] for part in one.local)),
            "union": TopK(*(np.roll(part[number : number + 1], 4 - first) for part in one.union)),
        }
    )
    query = Item.of(text="q")
    found = gallery(alone, world.candidates, query=lambda n: query, shown=3)
    assert [shown.rank for shown in found.successes[0].hits] == [1, 2, 5]
    assert found.successes[0].hits[-1].right


def test_rankings_that_do_not_fit_are_refused(world):
    one = world.sets[0]
    with pytest.raises(MarvelError, match="expected the same number"):
        JudgedSet(**{**vars(one), "query_ids": one.query_ids[:3]})
    short = TopK(one.union.scores[:, :3], one.union.indices[:, :3])
    with pytest.raises(MarvelError, match=r"3 long.*first 5"):
        JudgedSet(**{**vars(one), "union": short})


def test_a_store_of_other_data_is_named(world, tmp_path):
    store = write_store(tmp_path / "other", random_unit(2, 4), ["7:1", "7:2"])
    pool = MbeirFolder(world.candidates.store.path.parent).pool("test")
    with pytest.raises(MarvelError, match=r"'7:1'.*other data"):
        Candidates(store, pool, datasets={}).modality(np.array([0]))
