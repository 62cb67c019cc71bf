"""The test sets beside M-BEIR after a reranker: what it lifts is known by hand, nothing is lost."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from marvel_jax.data.items import Item
from marvel_jax.data.protocols import reading, registry, videos
from marvel_jax.data.protocols.protocol import Answers, Metric, Protocol, SetData, Test
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.protocol_evaluation import evaluate_protocol
from marvel_jax.recipes.protocol_reranking import check_reranking, rerank_protocol
from marvel_jax.recipes.reranking import RerankOptions
from marvel_jax.retrieval.rerank import Scores
from tests.protocol_folders import FIXTURES, ColourEmbedder

COLOURS = ColourEmbedder()


class Judge:
    """Stands for a reranker: P(Yes) of a pair is what `opinion` says; it counts what it scores."""

    def __init__(self, opinion, *, name: str = "j0", dies_at: int | None = None) -> None:
        self.model_hash, self.opinion, self.dies_at = name, opinion, dies_at
        self.calls = self.scored = 0

    def manifest_fields(self) -> dict[str, str]:
        return {"teacher_hash": self.model_hash, "prompt": "marvel"}

    def score(self, pairs, *, batch_tokens: int) -> Scores:
        self.calls += 1
        if self.calls == self.dies_at:
            raise KeyboardInterrupt
        self.scored += len(pairs)
        said = np.array([self.opinion(query, candidate) for query, candidate in pairs])
        return Scores(np.log(said).astype(np.float32), np.log1p(-said).astype(np.float32))


def differs(query: Item, candidate: Item) -> float:
    """0.9 where the colours have nothing in common, else 0.1."""
    return 0.9 if COLOURS.vector(query) @ COLOURS.vector(candidate) < 1e-6 else 0.1


def same(*_: Item) -> float:
    return 0.5


def by_id(**said: float):
    """An opinion of candidates by their ids, 0.01 of all others."""
    return lambda query, candidate: said.get(f"_{candidate.id}", 0.01)


def load(name: str, folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    FIXTURES[name].write(folder)
    return registry.find(name).load(folder)


def run(
    loaded, workdir: Path, judge: Judge, *, told=None, seed: int = 0, dimension=None, **options
):
    evaluated = evaluate_protocol(
        ColourEmbedder(), loaded, workdir=workdir, seed=seed, dimension=dimension
    )
    say = (lambda line: None) if told is None else told.append
    return rerank_protocol(
        judge,
        evaluated,
        RerankOptions(**options),
        model="judge",
        workdir=workdir,
        seed=seed,
        say=say,
    )


def lines_of(workdir: Path, test: str) -> list[dict]:
    text = (workdir / "rankings" / f"{test}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


# --- what it lifts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "fused"),
    # The caption of each picture names the other's colour: cosine 0 of the right one, 1 of the
    # wrong one. With 0.4 of the cosine 0.6 * 0.9 = 0.54 beats 0.4 + 0.6 * 0.1 = 0.46; with 0.5
    # it is 0.45 against 0.55.
    [("0.4", 1.0), ("0.5", 0.0), (None, 0.0)],
)
def test_a_weight_lifts_a_set_or_does_not(weights, fused, tmp_path):
    loaded = load("coco", tmp_path / "data")
    found = run(loaded, tmp_path / "run", Judge(differs), weights=weights)
    to_image, to_text = found.tests
    for test in found.tests:
        assert test.main == "R@1"
        assert test.retrieval.mean == 0 and test.reranked["R@1"].mean == 1
        assert test.fused["R@1"].mean == fused
        assert tuple(test.change_fused) == (fused, fused, fused)
        assert tuple(test.change_reranked) == (1, 1, 1)
        assert test.verdict == ("helps" if fused else "undecided")
        assert test.weight == float(weights or 0.5)
    assert (to_image.pairs, to_text.pairs) == (10 * 2, 2 * 10) and found.cost.pairs == 40
    written = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert written["reranked"] == found.to_dict()
    assert [one["scores"]["R@1"]["mean"] for one in written["tests"]] == [0, 0]
    assert written["about"]["reranker"]["hash"] == "j0"
    assert written["about"]["reranker"]["top"] == 50
    (first, *_) = lines_of(tmp_path / "run", "t2i")
    assert first["right"] == ["0"] and first["found"][0] == "1"
    assert first["reranked"]["found"] == ["0", "1"]
    assert first["reranked"]["scores"] == pytest.approx([0.9, 0.1], abs=1e-6)
    share = float(weights or 0.5)
    wanted = {"0": (1 - share) * 0.9, "1": share + (1 - share) * 0.1}
    order = sorted(wanted, key=lambda id: -wanted[id])
    assert first["fused"]["found"] == order
    assert first["fused"]["scores"] == pytest.approx([wanted[id] for id in order], abs=1e-6)
    text = "\n".join(found.lines())
    assert "reranker: 40 pairs in" in text and "s a query)" in text


def test_a_change_is_paired_and_its_interval_covers_it(tmp_path):
    # Of the ten captions the last one alone is of the other colour: retrieval misses it, and a
    # reranker that always says the other colour gets it and loses the nine.
    loaded = load("flickr30k", tmp_path / "data")
    found = run(loaded, tmp_path / "run", Judge(differs), weights="0")
    to_image = found.tests[0]
    assert to_image.retrieval.mean == 0.9 and to_image.fused["R@1"].mean == pytest.approx(0.1)
    change = to_image.change_fused
    assert change.mean == pytest.approx(-0.8) and change.low < -0.8 < change.high < 0
    assert to_image.verdict == "hurts"
    # Nine losses and one gain of ten, resampled: not the interval of two independent scores.
    assert change.low == pytest.approx(-1, abs=0.01) and change.high > -0.6


def test_a_querys_own_gallery_is_reranked_and_a_tie_is_no_choice(tmp_path):
    loaded = load("genecis", tmp_path / "data")
    knows = run(loaded, tmp_path / "knows", Judge(by_id(_000000000005=0.8, _000000000006=0.9)))
    by_name = {one.name: one for one in knows.tests}
    # The second target is as near as the other picture of its gallery, and found by P(Yes).
    assert by_name["change_object"].retrieval.mean == 0.5
    assert by_name["change_object"].fused["R@1"].mean == 1
    assert by_name["change_object"].pairs == 3 + 2
    (mean,) = knows.groups
    assert (mean.retrieval.mean, mean.fused.mean, mean.change_fused.mean) == (0.75, 1, 0.25)
    assert mean.of == 4 and len(mean.tests) == 2
    alike = run(loaded, tmp_path / "alike", Judge(same))
    for test in alike.tests:
        assert test.reranked["R@1"].mean == 0  # who finds all alike has chosen nothing
        assert test.fused["R@1"] == test.retrieval


def test_true_captions_are_chosen_by_p_yes_alone(tmp_path):
    loaded = load("ccneg", tmp_path / "data")
    right = Judge(lambda query, caption: 0.9 if caption.id.endswith("right") else 0.1)
    (test,) = run(loaded, tmp_path / "run", right, weights="0").tests
    assert test.retrieval.mean == pytest.approx(1 / 3)
    assert test.reranked["accuracy"].mean == test.fused["accuracy"].mean == 1


def test_what_is_behind_the_depth_stays_behind_in_its_order(tmp_path):
    loaded = load("multiturn_fashioniq", tmp_path / "data")
    last = Judge(lambda query, candidate: 0.1 + 0.8 * (ord(str(candidate.id)) - 97) / 7)
    (whole,) = run(loaded, tmp_path / "whole", last, weights="0").tests
    assert whole.top == 7 and whole.pairs == 14
    (test,) = run(loaded, tmp_path / "run", last, weights="0", top=2).tests
    assert test.top == 2 and test.pairs == 4
    for line in lines_of(tmp_path / "run", "val"):
        fused = line["fused"]
        assert fused["found"][:2] == sorted(line["found"][:2], reverse=True)
        assert fused["found"][2:] == line["found"][2:]
        assert fused["scores"][2:] == [None] * 5


@pytest.fixture
def _videos_are_pictures(monkeypatch):
    def first_frame(path: Path, *, id: str, **sampling: object) -> Item:
        return reading.picture(path, id=id)

    monkeypatch.setattr(videos, "video", first_frame)


@pytest.mark.usefixtures("_videos_are_pictures")
@pytest.mark.parametrize("name", FIXTURES)
def test_a_reranker_without_weight_leaves_every_rank(name, tmp_path):
    loaded = load(name, tmp_path / "data")
    opinion = Judge(lambda query, candidate: 0.1 + (len(repr(candidate)) % 7) / 9)
    found = run(loaded, tmp_path / "run", opinion, weights="1")
    assert found.cost.pairs == opinion.scored > 0
    for test in found.tests:
        assert test.fused[test.main] == test.retrieval
        assert tuple(test.change_fused) == (0, 0, 0) and test.verdict == "undecided"
        for line in lines_of(tmp_path / "run", test.name):
            assert line["fused"]["found"] == line["found"]
            assert line["fused"]["scores"] == line["scores"]


def test_a_submission_is_written_in_both_orders(tmp_path):
    loaded = load("circo", tmp_path / "data")
    found = run(loaded, tmp_path / "run", Judge(by_id(_4=0.9, _2=0.8)), weights="0.5")
    (path,) = found.submissions
    assert Path(path).name == "test.fused.json"
    # Cosines 1, 0.71, 0, 0 with P(Yes) 0.01, 0.8, 0.01, 0.9: halves of 1.01, 1.51, 0.01, 0.9.
    assert json.loads(Path(path).read_text()) == {"7": [2, 1, 4, 3]}
    kept = tmp_path / "run" / "submissions" / "test.json"
    assert json.loads(kept.read_text()) == {"7": [1, 2, 3, 4]}
    # Of val, {1, 2} are found in 2, 4, 1, 3, and {2} in 4, 2, 3, 1; by P(Yes) alone 4 and 2 lead.
    (val,) = found.tests
    assert val.fused["mAP@5"].mean == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert val.reranked["mAP@5"].mean == pytest.approx(((1 / 2 + 2 / 3) / 2 + 1 / 2) / 2)


# --- kept from one command to the next -----------------------------------------------------------


def many(root: Path) -> SetData:
    """More queries than a block of the reranker's scores has."""
    found = [Item.of(text="red" + " blue" * (n % 3), id=str(n)) for n in range(70)]
    sought = [Item.of(text=colour, id=colour) for colour in ("red", "green", "blue")]
    answers = [Answers(("red",))] * len(found)
    collections = {"texts": found, "colours": sought}
    tests = (Test("one", "texts", "colours", answers), Test("two", "colours", "colours", ASKED))
    return SetData(collections, tests)


ASKED = [Answers((colour,)) for colour in ("red", "green", "blue")]
MANY = Protocol("many", "Many", many, Metric(), source="here", layout=())


def test_a_killed_run_goes_on_and_nothing_is_scored_twice(tmp_path):
    loaded = MANY.load(tmp_path)
    whole = run(loaded, tmp_path / "whole", Judge(differs))
    killed = Judge(differs, dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, tmp_path / "run", killed)
    assert killed.scored == 64 * 3
    scores = json.loads((tmp_path / "run" / "scores.json").read_text())
    assert "reranked" not in scores and scores["tests"]  # retrieval's own are there already
    (left,) = (tmp_path / "run" / "rerank" / "one").glob(".*.unfinished")
    with left.open("ab") as stream:
        stream.write(b'{"qid": "6')  # what a power cut leaves
    again, told = Judge(differs), []
    found = run(loaded, tmp_path / "run", again, told=told)
    assert again.scored == 6 * 3 + 3 * 3
    assert [one.fused for one in found.tests] == [one.fused for one in whole.tests]
    for test in ("one", "two"):
        assert lines_of(tmp_path / "run", test) == lines_of(tmp_path / "whole", test)
    third = Judge(differs)
    assert run(loaded, tmp_path / "run", third, told=told).to_dict() == found.to_dict()
    assert third.calls == 0 and not any("aside" in line for line in told)
    # Another weight asks the reranker nothing, either.
    run(loaded, tmp_path / "run", third, weights="0.1")
    assert third.calls == 0


@pytest.mark.parametrize("changed", ["reranker", "depth", "data", "vectors"])
def test_scores_of_another_reranker_depth_data_or_vectors_stay_aside(changed, tmp_path):
    loaded = load("coco", tmp_path / "data")
    first = run(loaded, tmp_path / "run", Judge(differs))
    judge, told, options = Judge(differs, name="j1"), [], {}
    if changed != "reranker":
        judge.model_hash = "j0"
    if changed == "depth":
        options = {"top": 1}
    if changed == "data":  # the same vectors, but another word in a caption
        file = tmp_path / "data" / "coco_text.json"
        file.write_text(file.read_text().replace('"green"', '"a green"', 1))
        loaded = registry.find("coco").load(tmp_path / "data")
    if changed == "vectors":
        options = {"dimension": 2}
    if changed in ("data", "vectors"):
        (tmp_path / "run" / "vectors").rename(tmp_path / "before")
    run(loaded, tmp_path / "run", judge, told=told, **options)
    assert judge.scored == (12 if changed == "depth" else 40)
    aside = [line for line in told if "left aside" in line]
    assert len(aside) == 2 and all("1 files of scores in" in line for line in aside)
    if changed == "reranker":
        unasked = Judge(differs)
        assert run(loaded, tmp_path / "run", unasked).to_dict() == first.to_dict()
        assert unasked.calls == 0


def test_scores_that_were_changed_by_hand_are_refused(tmp_path):
    loaded = load("coco", tmp_path / "data")
    run(loaded, tmp_path / "run", Judge(differs))
    (file,) = (tmp_path / "run" / "rerank" / "t2i").glob("*.jsonl")
    file.write_text(file.read_text().replace("-0.1", "-0.2", 1))
    with pytest.raises(MarvelError, match="is damaged or was changed"):
        run(loaded, tmp_path / "run", Judge(differs))


def test_a_picture_that_cannot_be_read_is_not_asked_about(tmp_path):
    loaded = load("coco", tmp_path / "data")
    (tmp_path / "data" / "coco_images" / "1.png").write_bytes(b"no picture")
    evaluated = evaluate_protocol(ColourEmbedder(), loaded, workdir=tmp_path / "run", tolerate=1)
    judge = Judge(differs)
    found = rerank_protocol(
        judge,
        evaluated,
        RerankOptions(weights="0"),
        model="judge",
        workdir=tmp_path / "run",
        say=lambda line: None,
    )
    to_image, to_text = found.tests
    assert (to_image.pairs, to_text.pairs) == (10, 10)
    assert to_image.fused["R@1"].mean == 0.5  # the captions of the picture that is lacking
    assert to_text.fused["R@1"].mean == 0.5  # a query without a vector finds nothing


# --- refusals ------------------------------------------------------------------------------------


def fusion_file(path: Path, *, scope: str) -> str:
    weights = {
        "form": "add",
        "scope": scope,
        "weights": {"mscoco_task0": 2.0},
        "validation_score": {"mscoco_task0": 0.5},
        "grid": [0.0, 2.0],
        "fitted_on": ["x"],
    }
    pools = {pool: {"weights": weights} for pool in ("local", "global")}
    path.write_text(json.dumps({"pools": pools}))
    return str(path)


def test_a_runs_weight_serves_if_it_is_one_for_all_sets(tmp_path):
    loaded = load("coco", tmp_path / "data")
    fitted = fusion_file(tmp_path / "fusion.json", scope="global")
    found = run(loaded, tmp_path / "run", Judge(differs), weights=fitted)
    # 0 + 2 * 0.9 against 1 + 2 * 0.1.
    assert [one.fused["R@1"].mean for one in found.tests] == [1, 1]
    assert found.weights.form == "add" and math.isclose(found.tests[0].weight, 2.0)
    by_task = fusion_file(tmp_path / "by_task.json", scope="task")
    with pytest.raises(MarvelError, match="t2i: no fusion weight was fitted for this set, only"):
        check_reranking(RerankOptions(weights=by_task), loaded)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "1.5"}, "weight 1.5: give the cosine's share of the score, 0 to 1"),
        ({"weights": "none.json"}, r"none\.json"),
        ({"fit_split": "val"}, "--fit-split val: COCO 5K has no split to fit a weight on"),
        ({"top": 0}, "--top 0: rerank 1 result or more"),
        ({"top": 51}, "--top 51: 50 results of a query are kept"),
        ({"weights": "0.5", "fit_split": "val"}, "choose one"),
    ],
)
def test_what_cannot_be_is_refused(options, message, tmp_path):
    loaded = load("coco", tmp_path)
    with pytest.raises(MarvelError, match=message):
        check_reranking(RerankOptions(**options), loaded)


@pytest.mark.parametrize("name", ["msrvtt", "msvd"])
def test_videos_are_refused_before_anything_is_encoded(name, tmp_path):
    loaded = load(name, tmp_path)
    with pytest.raises(MarvelError, match="of videos is a video, and a reranker reads none"):
        check_reranking(RerankOptions(), loaded)
