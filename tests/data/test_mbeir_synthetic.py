"""The synthetic M-BEIR: sixteen sets in the real layout, and something in them to learn."""

import collections
import itertools

import numpy as np
import pytest

from marvel_jax.data import mbeir_synthetic
from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.images import load_image
from marvel_jax.data.items import TASKS
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mbeir_sets import DATASETS, SETS
from marvel_jax.data.mbeir_synthetic import CAPTIONS_FILE, NLI_FILE, Size
from marvel_jax.data.pair_captions import CaptionPairs
from marvel_jax.data.pair_csv import NliTriplets
from marvel_jax.data.pairs import PairSource
from marvel_jax.data.synthetic_scenes import COLOURS, count_scenes, scene
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files

SIZE = Size(train=600, test=120, distractors=2, short_side=28, text=0.3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("synthetic") / "mbeir"
    mbeir_synthetic.build(out, size=SIZE, seed=4, with_pairs=True)
    return out


def content(folder):
    """Every file's hash by its path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hash_files(path) for path in files}


def test_the_layout_has_all_sets_tasks_and_splits(folder):
    layout = MbeirFolder(folder)
    names = sorted(one.full_name for one in SETS)
    assert len(names) == 16
    for split in ("train", "val", "test"):
        found = sorted(path.name for path in (folder / "query" / split).iterdir())
        assert found == sorted(f"mbeir_{name}_{split}.jsonl" for name in names)
    for split in ("val", "test"):
        sets = {one.name: one for one in layout.test_sets(split)}
        assert sorted(sets) == names
        pool = {one.id for one in layout.judged_pool(split).all}
        for one in SETS:
            found = sets[one.full_name]
            assert found.k == (10 if "fashion" in one.name else 5)
            assert {q.dataset for q in found.queries} == {one.dataset} == {DATASETS[one.name]}
            assert {q.item.modality for q in found.queries} == {TASKS[one.task].query_modality}
            wanted = TASKS[one.task].candidate_modality
            assert {c.modality for c in found.pool} == {c.item.modality for c in found.pool}
            assert {c.modality for c in found.pool} == {wanted}
            assert {c.id for c in found.pool} <= pool
            assert all(q.instruction_key in layout.instructions for q in found.queries)
        if split == "test":
            assert sum(len(one.pool) for one in sets.values()) == len(pool)
    local = {path.name for path in (folder / "cand_pool" / "local").iterdir()}
    assert "mbeir_mscoco_task0_val_cand_pool.jsonl" in local
    assert "mbeir_mscoco_task0_cand_pool.jsonl" not in local
    assert "mbeir_nights_task4_cand_pool.jsonl" in local
    assert len(layout.instructions) == 16
    assert sum(map(len, layout.instructions.values())) == 64


def test_the_union_of_validation_holds_its_answers_and_little_else(folder):
    layout = MbeirFolder(folder)
    union, judged = layout.source("val"), layout.judged_source("val")
    assert {q.id for q in union.queries} == {q.id for q in judged.queries}
    named = {one for q in judged.queries for one in (*q.positives, *q.negatives)}
    assert {one.id for one in union.candidates} == named
    # Where validation is judged: all of test, and MSCOCO's own pools.
    pool = layout.judged_pool("val")
    assert [one.id for one in pool.union] == [one.id for one in layout.pool("test")]
    sets = {one.name: one for one in layout.test_sets("val")}
    coco = {one.id for name in ("mscoco_task0", "mscoco_task3") for one in sets[name].pool}
    assert {one.id for one in pool.beside} == coco


@pytest.mark.parametrize("split", ["val", "test"])
def test_oven_and_infoseek_answer_for_each_other_and_queries_count_from_one(folder, split):
    sets = {one.name: one for one in MbeirFolder(folder).test_sets(split)}
    crossed = collections.Counter()
    for name, one in sets.items():
        pool = {candidate.id for candidate in one.pool}
        for query in one.queries:
            assert set(query.positives) == one.qrels[query.id]
            assert query.positives[0] in pool
            others = {did.split(":")[0] for did in one.qrels[query.id] - pool}
            crossed[name] += bool(others)
            assert others <= {"5": {"6"}, "6": {"5"}}.get(query.id.split(":")[0], set())
    assert all(crossed[f"{name}_task{task}"] for name in ("oven", "infoseek") for task in (6, 8))
    assert all(
        f"{one.dataset}:1" in {q.id for s in sets.values() for q in s.queries} for one in SETS
    )


def test_the_union_repeats_the_small_sets(folder):
    source = MbeirFolder(folder).source("train")
    assert abs(len(source.queries) - SIZE.train) < 30
    rows = collections.Counter((q.dataset, q.task.id) for q in source.queries)
    once = collections.Counter(
        (dataset, task)
        for dataset, task, _ in {(q.dataset, q.task.id, q.id) for q in source.queries}
    )
    for one in SETS:
        key = (one.dataset, one.task)
        assert rows[key] >= once[key] >= 8
        if one.name == "nights":
            assert 2.5 < rows[key] / once[key] < 3.5
        if one.name in ("oven", "visualnews"):
            assert rows[key] == once[key]
    # In the real proportions, as far as whole queries allow.
    assert rows[5, 6] > 3 * rows[1, 0] and rows[6, 8] > 2 * rows[7, 7]
    order = [q.dataset for q in source.queries]
    assert len(list(itertools.groupby(order))) > len(order) / 2
    assert {q.dataset for q in source.queries if q.negatives} == {2, 3}
    for query in source.queries:
        assert not set(query.negatives) & set(query.positives)
        for one in query.negatives:
            source.candidate_index(one)


def said(item):
    """The colours and shapes that a text names first, or None without a text."""
    texts = [part for part in item.parts if isinstance(part, str)]
    return texts[0] if texts else None


def ground(item):
    """The colour of a picture's border."""
    pixels = np.asarray(load_image(item.images[0]), float)
    border = np.concatenate([pixels[0], pixels[-1]]).mean(axis=0)
    return min(COLOURS, key=lambda name: np.abs(np.array(COLOURS[name]) - border).sum())


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_query_and_its_answers_show_the_same_scene(folder, split):
    source = MbeirFolder(folder).source(split)
    seen = collections.Counter()
    for query in source.queries:
        if seen[query.dataset, query.task.id] >= 6:
            continue
        seen[query.dataset, query.task.id] += 1
        answer = source.candidates[source.candidate_index(query.positives[0])].item
        text, reply = said(query.item), said(answer)
        if query.task.id == 7:
            if "same on" in text:
                assert ground(answer) == text.split("same on ")[1].split()[0].rstrip("?")
                assert ground(query.item) != ground(answer)
        elif query.item.images and answer.images:
            assert ground(query.item) == ground(answer)
        elif query.item.images:
            assert f" on {ground(query.item)}" in reply
        elif answer.images:
            assert f" on {ground(answer)}" in text
        else:
            core = text.removeprefix("where is ").split(" on ")[0]
            assert reply.startswith(core)
    assert len(seen) == 16


def test_no_test_scene_is_a_training_scene(folder):
    texts = {}
    for split in ("train", "test"):
        queries = MbeirFolder(folder).source(split, include=["mscoco_task0"]).queries
        texts[split] = {" ".join(said(q.item).rstrip(".").split()[:8]) for q in queries}
    assert not texts["train"] & texts["test"] and len(texts["test"]) > 2


def test_the_mix_of_texts_and_pictures_is_the_real_one(folder):
    source = MbeirFolder(folder).source("train")
    words = collections.defaultdict(list)
    for candidate in source.candidates:
        if text := said(candidate.item):
            words[candidate.id.split(":")[0]].append(len(text.split()))
    # Passages (OVEN, InfoSeek) are several times as long as captions (MSCOCO).
    assert np.median(words["5"]) > 2 * np.median(words["9"])
    sizes = [
        load_image(candidate.item.images[0]).size
        for candidate in source.candidates[::7]
        if candidate.item.images
    ]
    assert {min(size) for size in sizes} == {28}
    ratios = [max(size) / min(size) for size in sizes]
    assert 1.4 < np.mean(ratios) < 1.7 and min(ratios) >= 1.3


def test_pairs_lie_beside(folder):
    triplets = PairSource(NliTriplets(folder / NLI_FILE))
    captions = PairSource(CaptionPairs(folder / CAPTIONS_FILE))
    assert len(triplets.queries) == len(captions.queries) == 300
    assert all(query.negatives for query in triplets.queries)
    for index in (0, 100, 299):
        shown = captions.candidates[index].item
        assert f" on {ground(shown)}" in said(captions.queries[index].item)


def test_the_tokenizer_knows_the_words(folder):
    tokenizer = ChatTokenizer.from_folder(folder / "tokenizer")
    assert len(tokenizer.encode("a red circle beside a blue square on green.")) < 14


def test_a_seed_decides_every_byte(folder, tmp_path):
    again = mbeir_synthetic.build(tmp_path / "a", size=SIZE, seed=4, with_pairs=True)
    assert content(again.folder) == content(folder)
    other = mbeir_synthetic.build(
        tmp_path / "b", size=Size(train=128, test=64, short_side=28), seed=5
    )
    assert not (other.folder / NLI_FILE).exists()
    union = "query/union_train/mbeir_union_up_train.jsonl"
    assert content(other.folder)[union] != content(folder)[union]


def test_scenes_have_numbers_and_differ():
    some = [scene(number, things=2) for number in range(0, count_scenes(2), 7)]
    assert len({str(one) for one in some}) == len(some)
    assert all(one.ground not in {thing.colour for thing in one.things} for one in some)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: mbeir_synthetic.build(out, seed=-1), "seed -1 is negative"),
        (lambda out: mbeir_synthetic.build(out.parent), "exists already"),
        (lambda out: mbeir_synthetic.read_size("huge"), "'huge': choose one of tiny, small"),
        (lambda out: mbeir_synthetic.read_size("0"), "choose one of tiny"),
        (lambda out: Size(train=0, test=1), "train is 0"),
        (lambda out: Size(train=1, test=1, text=2.0), r"text is 2\.0"),
    ],
)
def test_what_cannot_be_made_is_refused(tmp_path, call, message):
    with pytest.raises(MarvelError, match=message):
        call(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_sizes_by_name_and_by_number():
    assert mbeir_synthetic.read_size("tiny").train < mbeir_synthetic.read_size("small").train
    assert mbeir_synthetic.read_size("5000").train == 5000
    assert mbeir_synthetic.read_size("full").train == 1_332_790
