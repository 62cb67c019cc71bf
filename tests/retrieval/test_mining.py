"""Mining over toy pools with known ranks: gold, copies, pools, draws, ScaNN, resuming."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from vector_stores import random_unit, unit, write_store

from marvel_jax.data.items import TASKS, Candidate, Image, Item, Query
from marvel_jax.data.keyed_lines import pool_hash, queries_hash
from marvel_jax.data.mined import read_mined, with_negatives
from marvel_jax.data.teacher import read_teacher, teacher_line, teacher_writer
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import mining
from marvel_jax.retrieval.mining import MiningConfig, mine
from marvel_jax.retrieval.mining_rules import PRESETS, Strategies, Strategy
from marvel_jax.retrieval.scann_index import ScannIndex
from tests import tiny

WIDTH = 16


class Toy:
    """Two data sets of texts and pictures; query i of task t->i or t->t has one known answer."""

    fingerprint = "toy"
    instructions: dict = {}  # noqa: RUF012

    def __init__(self, *, per_kind: int = 30, queries: int = 12, datasets=(1, 9)) -> None:
        self.candidates: Sequence[Candidate] = [
            self._candidate(dataset, number, modality)
            for dataset in datasets
            for number, modality in enumerate(["image"] * per_kind + ["text"] * per_kind)
        ]
        self.queries = [
            Query(
                id=f"{dataset}:{number}",
                item=Item.of(text=f"question {number}"),
                task=TASKS[task],
                positives=(f"{dataset}:{number % per_kind + (per_kind if task == 1 else 0)}",),
                dataset=dataset,
            )
            for dataset in datasets
            for number, task in enumerate([0, 1] * (queries // 2))
        ]
        self._places = {one.id: place for place, one in enumerate(self.candidates)}
        self.pool = random_unit(len(self.candidates), WIDTH)
        asked = random_unit(len(self.queries), WIDTH, seed=1)
        gold = [self.pool[self._places[query.positives[0]]] for query in self.queries]
        self.vectors = unit(asked + 0.8 * np.array(gold))

    def _candidate(self, dataset: int, number: int, modality: str) -> Candidate:
        content = (
            {"image": Image(f"{dataset} {number}".encode())}
            if modality == "image"
            else {"text": f"{dataset} answer {number}"}
        )
        return Candidate(f"{dataset}:{number}", Item.of(**content), modality)

    def candidate_index(self, id: str) -> int:
        if id not in self._places:
            raise MarvelError(f"no {id}")
        return self._places[id]

    def run(self, folder: Path, name: str = "x", **options):
        """(manifest, lines by query id)."""
        stores = {}
        for kind, vectors, ids in (
            ("queries", self.vectors, list(dict.fromkeys(q.id for q in self.queries))),
            ("pool", self.pool, [one.id for one in self.candidates]),
        ):
            path = folder / f"{name}-{kind}"
            stores[kind] = write_store(path, vectors, ids, source_hash=kind)
        config = MiningConfig(
            strategies=options.pop("strategies", Strategies(Strategy(threshold=None, k=3))),
            **{
                key: options.pop(key)
                for key in ("pool", "copies", "record", "seed")
                if key in options
            },
        )
        if options.pop("scann", False):
            options["index"] = ScannIndex.build(stores["pool"], path=folder / "index")
        out = folder / f"{name}.jsonl"
        mine(self, out, **stores, config=config, made_by={"model_hash": "m0"}, **options)
        manifest, lines = read_mined(out)
        return manifest, {line.qid: line for line in lines}

    def order(self, query: int, rows: np.ndarray) -> list[str]:
        """The ids of some candidates from the nearest to the farthest, ties by id."""
        scores = (self.vectors[query].astype(float) * self.pool[rows]).sum(1).astype(np.float32)
        ids = [self.candidates[row].id for row in rows]
        return [id for _, id in sorted(zip(-scores, ids, strict=True))]


EVERYTHING = np.arange(120)


def test_the_best_that_are_not_gold_are_chosen_in_order(tmp_path):
    toy = Toy()
    manifest, lines = toy.run(tmp_path)
    for number, query in enumerate(toy.queries):
        ranking = toy.order(number, EVERYTHING)[:100]
        line = lines[query.id]
        assert list(line.candidates) == ranking and line.ranks == tuple(range(1, 101))
        expected = [one for one in ranking if one not in query.positives][:3]
        assert list(line.negatives) == expected
        assert line.positive_rank == ranking.index(query.positives[0]) + 1
        assert line.modalities[0] == toy.candidates[toy.candidate_index(ranking[0])].modality
        assert line.task == f"{query.dataset}:{query.task.id}"
        gold = toy.pool[toy.candidate_index(query.positives[0])].astype(float)
        assert line.positive_similarity == pytest.approx(gold @ toy.vectors[number], abs=1e-6)
    counts = manifest["counts"]
    assert counts["reasons"] == {"left": 24 * 96, "top": 72, "positive": 24}
    assert counts["by_task"]["9:1"]["queries"] == 6 and counts["queries_with_fewer"] == 0
    source = with_negatives(toy, tmp_path / "x.jsonl", model_hash="m0")
    assert source.queries[5].negatives == lines[toy.queries[5].id].negatives


def test_equal_similarities_are_ordered_by_id_wherever_they_stand_in_the_pool(tmp_path):
    toy = Toy()
    tied = ["1:0", "1:3", "1:41", "1:9", "9:17"]  # 1:41 is a text, and pictures are asked for
    for id in tied[1:]:
        toy.pool[toy.candidate_index(id)] = toy.pool[0]
    toy.vectors[0] = toy.pool[0]
    first = toy.queries[0]
    _, lines = toy.run(tmp_path, "best")
    assert list(lines[first.id].candidates[:5]) == tied and lines[first.id].positive_rank == 1
    assert list(lines[first.id].negatives) == tied[1:4]
    # What stands above the positive, C1, is decided by the id too.
    by_modality = Strategies(Strategy(pick="modality", k=1, depth=50, threshold=None))
    for answer, above in (("1:3", False), ("1:9", True)):
        toy.queries[0] = dataclasses.replace(first, positives=(answer,))
        _, lines = toy.run(tmp_path, f"before {answer}", strategies=by_modality)
        line = lines[first.id]
        assert list(line.candidates[:5]) == tied
        assert (line.reasons[2] == "wrong_modality_below_positive") == (not above)
    # The same candidates in another order.
    places = np.random.default_rng(0).permutation(len(toy.candidates))
    toy.candidates, toy.pool = [toy.candidates[place] for place in places], toy.pool[places]
    toy._places = {one.id: place for place, one in enumerate(toy.candidates)}
    _, shuffled = toy.run(tmp_path, "shuffled", strategies=by_modality)
    assert shuffled[first.id] == line


def test_the_local_pool_is_of_the_data_set_and_the_modality_asked_for(tmp_path):
    toy = Toy()
    _, lines = toy.run(tmp_path, pool="local")
    for number, query in enumerate(toy.queries):
        rows = [
            place
            for place, one in enumerate(toy.candidates)
            if one.id.startswith(f"{query.dataset}:")
            and one.modality == query.task.candidate_modality
        ]
        assert list(lines[query.id].candidates) == toy.order(number, np.array(rows))


def test_oven_and_infoseek_share_their_local_pools(tmp_path):
    _, lines = Toy(datasets=(5, 6)).run(tmp_path, pool="local")
    assert all(len(line.candidates) == 60 for line in lines.values())
    assert {one.partition(":")[0] for one in lines["5:1"].candidates} == {"5", "6"}


def test_a_query_without_a_local_pool_is_named(tmp_path):
    toy = Toy()
    toy.queries[3] = dataclasses.replace(toy.queries[3], task=TASKS[2])
    with pytest.raises(MarvelError, match=r"query 1:3: .* modality 'image,text'"):
        toy.run(tmp_path, pool="local")


def test_a_positive_of_another_data_set_still_gives_the_similarity_of_the_best(tmp_path):
    toy = Toy()
    toy.queries[1] = dataclasses.replace(toy.queries[1], positives=("9:40", "9:45"))
    _, lines = toy.run(tmp_path, pool="local")
    gold = toy.pool[[toy.candidate_index(one) for one in ("9:40", "9:45")]]
    assert lines["1:1"].positive_rank is None
    best = float((gold @ toy.vectors[1]).max())
    assert lines["1:1"].positive_similarity == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("copies", ["content", "ids"])
def test_copies_of_the_answer_and_of_each_other_are_left_out(tmp_path, copies):
    toy = Toy()
    # Query 0's answer is picture 0; 5 and 70 show the same, and 6 and 7 show one other picture.
    toy.queries = toy.queries[:1]
    toy.vectors = toy.vectors[:1]
    for copy, of in ((5, 0), (70, 0), (7, 6)):
        toy.candidates[copy] = dataclasses.replace(
            toy.candidates[copy], item=toy.candidates[of].item
        )
    for place, distance in ((5, 0.1), (70, 0.2), (6, 0.3), (7, 0.4)):
        toy.pool[place] = unit(toy.vectors[0] + distance * toy.pool[place])
    _, lines = toy.run(tmp_path, copies=copies)
    line = lines["1:0"]
    reasons = dict(zip(line.candidates, line.reasons, strict=True))
    named = [toy.candidates[place].id for place in (5, 70, 6, 7)]
    found = [reasons[name] for name in named]
    if copies == "content":
        assert found == ["copy_of_positive", "copy_of_positive", "top", "copy"]
        assert not {named[0], named[1], named[3]} & set(line.negatives)
    else:
        assert found == ["top", "top", "top", "left"]


def test_what_is_drawn_is_no_copy_of_what_was_chosen(tmp_path):
    toy = Toy()
    same = Item.of(text="the same words")
    toy.candidates = [
        dataclasses.replace(one, item=same) if one.modality == "text" else one
        for one in toy.candidates
    ]
    toy.queries, toy.vectors = toy.queries[::2], toy.vectors[::2]  # those that want pictures
    # Of the two best at most one is a text, and four are drawn from a pool that is half of them.
    plan = Strategies(Strategy(k=6, depth=2, threshold=None))
    _, lines = toy.run(tmp_path, strategies=plan)
    kinds = [
        [toy.candidates[toy.candidate_index(one)].modality for one in line.negatives]
        for line in lines.values()
    ]
    assert all(len(line) == 6 and line.count("text") <= 1 for line in kinds)
    assert any("text" in line[:2] for line in kinds)


def test_pictures_are_compared_by_their_bytes_wherever_they_lie(tmp_path):
    toy = Toy()
    for name, seed in (("a.png", 0), ("b.png", 0), ("c.png", 1)):
        (tmp_path / name).write_bytes(tiny.picture(seed))
    for place, name in ((0, "a.png"), (1, "b.png"), (2, "c.png")):
        toy.candidates[place] = dataclasses.replace(
            toy.candidates[place], item=Item.of(image=tmp_path / name)
        )
    _, lines = toy.run(tmp_path)
    reasons = dict(zip(lines["1:0"].candidates, lines["1:0"].reasons, strict=True))
    assert reasons["1:0"] == "positive" and reasons["1:1"] == "copy_of_positive"
    assert reasons["1:2"] in ("top", "left")


def test_random_ones_of_the_pool_are_never_gold_copies_or_too_similar(tmp_path):
    toy = Toy()
    plan = Strategies(Strategy(pick="pool", k=4, depth=10, threshold=0.3))
    manifest, lines = toy.run(tmp_path, strategies=plan)
    seen = set()
    for number, query in enumerate(toy.queries):
        line = lines[query.id]
        rows = [toy.candidate_index(one) for one in line.negatives]
        assert len(set(rows)) == 4 and not set(line.negatives) & set(query.positives)
        assert (toy.pool[rows] @ toy.vectors[number]).max() <= 0.3 + 1e-6
        seen.update(rows)
        reasons = dict(zip(line.candidates, line.reasons, strict=True))
        assert {reasons[one] for one in line.negatives} == {"pool"}
        ranks = dict(zip(line.candidates, line.ranks, strict=True))
        assert all(
            (ranks[one] is None) == (one not in line.candidates[:10]) for one in line.negatives
        )
        measured = dict(zip(line.candidates, line.similarities, strict=True))
        for one, row in zip(line.negatives, rows, strict=True):
            assert measured[one] == pytest.approx(toy.pool[row] @ toy.vectors[number], abs=1e-6)
    assert len(seen) > 40 and manifest["counts"]["reasons"]["pool"] == 96
    other, _ = toy.run(tmp_path, "other", strategies=plan, seed=1)
    assert other["content_hash"] != manifest["content_hash"]


@pytest.mark.parametrize("copies", ["content", "ids"])
@pytest.mark.parametrize("pick", ["pool", "top"])
def test_in_a_small_pool_the_draw_still_avoids_gold_and_what_is_chosen(tmp_path, pick, copies):
    toy = Toy(per_kind=3, queries=40)
    # One result is looked at; the rest is drawn from twelve, of which one is gold.
    plan = Strategies(Strategy(pick=pick, k=6, depth=1, threshold=None))
    _, lines = toy.run(tmp_path, strategies=plan, copies=copies)
    for query in toy.queries:
        negatives = lines[query.id].negatives
        assert len(set(negatives)) == 6 and not set(negatives) & set(query.positives)
        if pick == "top" and lines[query.id].positive_rank is None:
            assert negatives[0] == lines[query.id].candidates[0]


def test_what_a_window_of_ranks_keeps_out_is_not_drawn_after_all(tmp_path):
    toy = Toy(per_kind=4, queries=8)
    _, lines = toy.run(
        tmp_path, strategies=Strategies(Strategy(first_rank=6, depth=16, k=16, threshold=None))
    )
    for number, query in enumerate(toy.queries):
        ranking = toy.order(number, np.arange(16))
        expected = [one for one in ranking[5:] if one not in query.positives]
        assert list(lines[query.id].negatives) == expected


def test_of_copies_in_the_pool_one_is_drawn_and_none_of_the_answers(tmp_path):
    toy = Toy(per_kind=6, queries=12)
    answers = {query.positives[0]: place for place, query in enumerate(toy.queries)}
    others = [place for place, one in enumerate(toy.candidates) if one.id not in answers]
    gold = toy.candidate_index(toy.queries[0].positives[0])
    for place in others:  # half of them show query 0's answer, the other half one other thing
        of = gold if place % 2 else others[0]
        toy.candidates[place] = dataclasses.replace(
            toy.candidates[place], item=toy.candidates[of].item
        )
    content = {one.id: one.item.parts for one in toy.candidates}
    plan = Strategies(Strategy(pick="pool", k=23, depth=1, threshold=None))
    _, lines = toy.run(tmp_path, strategies=plan)
    for query in toy.queries:
        drawn = [content[one] for one in lines[query.id].negatives]
        assert len(set(drawn)) == len(drawn)
        assert content[query.positives[0]] not in drawn
        assert set(drawn) | {content[query.positives[0]]} == set(content.values())


def test_what_filters_leave_too_few_of_is_filled_from_the_pool_or_counted(tmp_path):
    toy = Toy()
    plan = Strategies(Strategy(threshold=-0.2, k=3, depth=30))
    _, filled = toy.run(tmp_path, strategies=plan)
    for line in filled.values():
        assert len(line.negatives) == 3
    none = Strategies(Strategy(threshold=-2.0, k=3))
    manifest, _ = toy.run(tmp_path, "none", strategies=none)
    assert manifest["counts"]["queries_with_none"] == 24
    with pytest.raises(MarvelError, match="24 queries without a negative"):
        with_negatives(toy, tmp_path / "none.jsonl")


def test_every_task_has_its_own_strategy(tmp_path):
    toy = Toy()
    plan = Strategies(
        Strategy(threshold=None, k=2), {(9, 0): Strategy(pick="last", threshold=None, k=1, depth=7)}
    )
    _, lines = toy.run(tmp_path, strategies=plan)
    for number, query in enumerate(toy.queries):
        line = lines[query.id]
        if (query.dataset, query.task.id) == (9, 0):
            ranking = toy.order(number, EVERYTHING)[:7]
            assert list(line.candidates) == ranking and len(line.negatives) == 1
            assert line.negatives[0] == [one for one in ranking if one not in query.positives][-1]
        else:
            assert line.ranks[line.candidates.index(line.negatives[0])] <= 2


def test_modality_aware_mining_in_a_mixed_pool(tmp_path):
    toy = Toy(per_kind=60)
    _, lines = toy.run(tmp_path, strategies=PRESETS["modality_aware"])
    kinds = set()
    for number, query in enumerate(toy.queries):
        (negative,) = lines[query.id].negatives
        ranking = toy.order(number, np.arange(240))[:50]
        asked = [toy.candidates[toy.candidate_index(one)].modality for one in ranking]
        right = [modality == query.task.candidate_modality for modality in asked]
        gold = query.positives[0]
        above = ranking.index(gold) if gold in ranking else 50
        c1 = [one for one, fits in zip(ranking[:above], right, strict=False) if not fits]
        c2 = [one for one, fits in zip(ranking[45:], right[45:], strict=True) if fits]
        c2 = [one for one in c2 if one != gold]
        kind = "c1" if negative in c1 else "c2" if negative in c2 else "pool"
        assert negative != gold and (kind != "pool" or not c1 + c2)
        kinds.add(kind)
        line = lines[query.id]
        assert line.reasons[line.candidates.index(negative)] == kind
    assert kinds >= {"c1", "c2"}


def test_a_rerankers_yes_keeps_a_candidate_out(tmp_path):
    toy = Toy()
    origin = {
        "source_fingerprint": "toy",
        "queries_hash": queries_hash(toy),
        "pool_hash": pool_hash(toy),
    }
    writer = teacher_writer(tmp_path / "t.jsonl", origin)
    scored = {}
    for number, query in enumerate(toy.queries):
        ids = toy.order(number, EVERYTHING)[:20]
        scored[query.id] = ids
        yes = np.array([4.0 if place % 2 else -4.0 for place in range(20)], np.float32)
        zeros = np.zeros(20, np.float32)
        writer.append([teacher_line(query.id, ids, yes=yes, no=zeros, recall=zeros)])
    writer.finish({})
    teacher = read_teacher(tmp_path / "t.jsonl", toy)
    plan = Strategies(Strategy(threshold=None, teacher_above=0.5, k=30, fill="none"))
    with pytest.raises(MarvelError, match="teacher file"):
        toy.run(tmp_path, "without", strategies=plan)
    _, lines = toy.run(tmp_path, strategies=plan, teacher=teacher)
    for query in toy.queries:
        expected = [one for one in scored[query.id][::2] if one not in query.positives]
        assert list(lines[query.id].negatives) == expected
        assert (
            lines[query.id].reasons[20:] == ("unscored",) * 80
            or "positive" in lines[query.id].reasons[20:]
        )


def test_scann_by_brute_force_finds_what_exact_search_finds(tmp_path):
    toy = Toy()
    exact, lines = toy.run(tmp_path)
    approximate, found = toy.run(tmp_path, "scann", scann=True)
    assert found == lines
    assert (exact["search"], approximate["search"]) == ("exact", "scann")
    with pytest.raises(MarvelError, match="pool='local'"):
        toy.run(tmp_path / "other", scann=True, pool="local")


def test_neither_blocks_nor_a_kill_change_the_file(tmp_path, monkeypatch):
    toy = Toy()
    plan = {"strategies": PRESETS["umarvel_two_strategy"], "pool": "local"}
    whole, _ = toy.run(tmp_path / "whole", **plan)
    searches = 0
    original = mining.top_k

    def killed(*arguments, **options):
        nonlocal searches
        searches += 1
        if searches == 4:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(mining, "top_k", killed)
    folder = tmp_path / "killed"
    with pytest.raises(KeyboardInterrupt):
        toy.run(folder, **plan, block=4)
    assert not (folder / "x.jsonl").exists()
    for store in folder.glob("x-*"):
        store.rename(folder / f"old-{store.name}")
    seen = []
    resumed, _ = toy.run(folder, **plan, block=4, progress=lambda *done: seen.append(done))
    assert seen[0][0] > 8 and seen[-1] == (24, 24)
    assert resumed == whole
    assert (folder / "x.jsonl").read_bytes() == (tmp_path / "whole" / "x.jsonl").read_bytes()


def test_a_query_that_occurs_twice_is_mined_once(tmp_path):
    toy = Toy()
    toy.queries = [toy.queries[0], *toy.queries]
    toy.run(tmp_path)
    assert len((tmp_path / "x.jsonl").read_text().splitlines()) == 24
    assert len(with_negatives(toy, tmp_path / "x.jsonl").queries) == 25
    toy.queries = [dataclasses.replace(toy.queries[0], positives=("1:9",)), *toy.queries]
    with pytest.raises(MarvelError, match="1:0 occurs twice"):
        toy.run(tmp_path / "other")


def test_only_the_chosen_can_be_recorded(tmp_path):
    toy = Toy()
    _, every = toy.run(tmp_path)
    _, chosen = toy.run(tmp_path, "chosen", record="chosen")
    for qid, line in chosen.items():
        assert line.candidates == line.negatives == every[qid].negatives
        assert line.positive_rank == every[qid].positive_rank
    row = json.loads((tmp_path / "chosen.jsonl").read_text().splitlines()[0])
    assert row["reasons"] == ["top"] * 3


def test_stores_of_other_ids_or_of_two_models_are_refused(tmp_path):
    toy = Toy()
    queries = write_store(tmp_path / "q", toy.vectors, [query.id for query in toy.queries])
    other = write_store(tmp_path / "p", toy.pool, [f"x:{place}" for place in range(120)])
    ids = [one.id for one in toy.candidates]
    foreign = write_store(tmp_path / "f", toy.pool, ids, model_hash="m1")
    options = {"config": MiningConfig(), "made_by": {}}
    with pytest.raises(MarvelError, match="120 distinct candidates"):
        mine(toy, tmp_path / "x", queries=queries, pool=other, **options)
    with pytest.raises(MarvelError, match="'m1'"):
        mine(toy, tmp_path / "x", queries=queries, pool=foreign, **options)
