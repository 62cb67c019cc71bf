"""`marvel report` over an evaluation whose vectors are invented: everything but the model."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.recipes import reporting_tradeoff
from marvel_jax.recipes.reporting import report_evaluation
from marvel_jax.retrieval import evaluation_folder
from marvel_jax.retrieval.protocols import RetrievalSet, evaluate
from marvel_jax.retrieval.report_scores import read_scores
from marvel_jax.retrieval.store_writer import Manifest, StoreWriter

DIMENSION = 32
BESIDE = ("paraphrases", "reranked")


def write_store(path: Path, ids: list[str], vectors: np.ndarray):
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    made_by = dict.fromkeys(
        ("model_hash", "processor_hash", "template", "attention", "pooling", "positions"), "x"
    )
    manifest = Manifest(
        **made_by,
        min_pixels=1,
        max_pixels=2,
        dimension=DIMENSION,
        count=len(ids),
        source_hash="s",
    )
    writer = StoreWriter(path, manifest)
    writer.append(ids, vectors.astype(np.float32))
    return writer.finish()


def invent(workdir: Path, corpus: Path, *, noise: float, model: str) -> Path:
    """An evaluation of the tiny corpus by a model whose queries are noisy answers."""
    rng = np.random.default_rng(0)
    layout = MbeirFolder(corpus)
    pool = [candidate.id for candidate in layout.pool("test")]
    store = write_store(workdir / "store", pool, rng.normal(size=(len(pool), DIMENSION)))
    sets = [RetrievalSet.of(one) for one in layout.test_sets()]
    vectors = {}
    for one in sets:
        answers = store.vectors(store.rows_of([relevant[0] for relevant in one.relevant]))
        asked = answers + noise * rng.normal(size=answers.shape)
        path = workdir / "queries" / "seed-3" / one.name
        vectors[one.name] = write_store(path, list(one.query_ids), asked).vectors()
    kinds = {candidate.id: candidate.modality for candidate in layout.pool("test")}
    found = evaluate(
        sets, vectors, store, instruction_choice="seeded", modality_of=kinds.__getitem__
    )
    for one in sets:
        evaluation_folder.write_rankings(
            workdir,
            one.name,
            k=one.k,
            query_ids=one.query_ids,
            retrieved=found.rankings[one.name],
            relevant=found.rows[one.name].relevant,
            reranked={"fused": found.rankings[one.name]},
            origin="o",
        )
    about = {"model": model, "data": str(corpus), "seed": 3, "sets": [one.name for one in sets]}
    wordings = {"values": [0.25, 0.75], "mean": 0.5, "deviation": 0.25}
    wordings |= {"lowest": 0.25, "highest": 0.75}
    pools = {"local_pool": wordings, "global_pool": wordings}
    spread = {"sets": [{"name": sets[0].name, "instructions": ["find", "show"], **pools}]}
    spread |= {"mean_local": wordings, "mean_global": wordings}
    cost = {"pairs": 1800, "seconds": 90.0, "pairs_per_second": 20.0}
    scores = {**found.to_dict(), "paraphrases": spread, "reranked": {"cost": cost}}
    evaluation_folder.write(workdir, scores=scores, about=about)
    return workdir


@pytest.fixture(scope="module")
def good(tmp_path_factory, tiny_corpus) -> Path:
    return invent(tmp_path_factory.mktemp("good"), tiny_corpus, noise=0.25, model="org/good")


@pytest.fixture(scope="module")
def bad(tmp_path_factory, tiny_corpus) -> Path:
    return invent(tmp_path_factory.mktemp("bad"), tiny_corpus, noise=2.0, model="org/bad")


def report(workdir: Path, **changes):
    options = {
        "against": None,
        "out": None,
        "data": None,
        "tradeoff": False,
        "tradeoff_queries": 4,
        "shown": 1,
        "seed": 0,
    }
    return report_evaluation(workdir, **{**options, **changes})


def own(scores: dict) -> dict:
    """Without what comes beside the evaluation's own scores."""
    return {name: value for name, value in scores.items() if name not in BESIDE}


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text())))


def test_the_whole_report_is_there_and_agrees_with_itself(good, bad, tmp_path):
    outcome = report(good, against=bad, out=tmp_path / "out", tradeoff=True)
    out = tmp_path / "out"
    names = ["against", "copies", "obedience", "paraphrases", "reranked", "scores"]
    names += ["tradeoff"]
    files = {*(f"{name}.csv" for name in names), "index.html", "report.json"}
    assert {path.name for path in out.iterdir()} == files
    scores = evaluation_folder.read(good).scores
    record = json.loads((out / "report.json").read_text())
    assert record["evaluation"] == own(scores)
    assert record["published"] == []  # another corpus than M-BEIR
    hits = [row for row in table(out / "scores.csv") if row["metric"] == "hit" and row["k"] == "5"]
    wanted = {
        (one["name"], pool): one[f"{pool}_pool"]["hit"]["5"]["mean"]
        for one in scores["sets"]
        for pool in ("local", "global")
    }
    assert {(row["set"], row["pool"]): float(row["value"]) for row in hits} == wanted
    means = record["against"]["means"]["global"]
    assert means["ours"] == pytest.approx(scores["mean_global"]["mean"])
    assert outcome.facts["against"]["global"]["p"] == means["test"]["p"] < 0.01
    assert record["reranked"][0]["means"]["global"]["test"]["p"] == 1  # the order was not changed
    page = (out / "index.html").read_text()
    for told in ("org/bad", "Does it return what was asked for?", "Copies in the pool", "Missed"):
        assert told in page
    assert "1,800 pairs of question and candidate in 1 min 30 s, 20 a second" in page
    assert "25.0% to 75.0%" in page
    # The instruction that the query was evaluated under is on the page.
    example = record["galleries"]["tiny_task0"]["successes"][0]
    assert example["instruction"] in ("find the picture", "which picture is it")
    assert f"{example['instruction']}</q>" in page


def test_the_trade_off_starts_with_what_was_evaluated(good, tmp_path):
    report(good, out=tmp_path / "out", tradeoff=True, tradeoff_queries=100)
    points = json.loads((tmp_path / "out" / "report.json").read_text())["tradeoff"]["points"]
    whole = points[0]
    assert (whole["dtype"], whole["dimension"], whole["search"]) == ("float32", DIMENSION, "exact")
    scores = evaluation_folder.read(good).scores
    assert whole["score"]["mean"] == pytest.approx(scores["mean_global"]["mean"])
    assert whole["recall"] == 1
    exact = [one for one in points if one["search"] == "exact"]
    assert {(one["dtype"], one["dimension"]) for one in exact} == {
        (dtype, dimension)
        for dtype in ("float32", "bfloat16", "int8", "binary")
        for dimension in (32, 16)
    }
    assert not (good / "tradeoff").exists()


def test_a_killed_trade_off_goes_on_where_it_was(good, tmp_path, monkeypatch):
    measured, measure = [], reporting_tradeoff.measure_point

    def mortal(searcher, *given, **more):
        found = measure(searcher, *given, **more)
        measured.append((found.dtype, found.dimension, found.search))
        if len(measured) == 4:  # of int8 at its first dimension, without what is behind it
            raise KeyboardInterrupt
        return found

    with monkeypatch.context() as patched:
        patched.setattr(reporting_tradeoff, "_approximate", lambda *given, **more: [])
        patched.setattr(reporting_tradeoff, "measure_point", mortal)
        with pytest.raises(KeyboardInterrupt):
            report(good, out=tmp_path / "out", tradeoff=True)
        report(good, out=tmp_path / "out", tradeoff=True)
        again = measured[4:]
        assert again[0] == measured[3] and not set(again) & set(measured[:3])
        record = json.loads((tmp_path / "out" / "report.json").read_text())["tradeoff"]
        shown = [(one["dtype"], one["dimension"], one["search"]) for one in record["points"]]
        assert shown == measured[:3] + again and len(shown) == 8
        # Of other queries nothing is taken.
        report(good, out=tmp_path / "other", tradeoff=True, tradeoff_queries=3)
        assert len(measured) == 4 + 5 + 8


def test_a_run_beside_itself_differs_nowhere(good, tmp_path):
    report(good, against=good, out=tmp_path / "out")
    for row in table(tmp_path / "out" / "against.csv"):
        assert (row["difference"], row["p"], row["wins"], row["losses"]) == ("0.0", "1.0", "0", "0")


def test_scores_are_read_back_as_they_were_written(good):
    scores = evaluation_folder.read(good).scores
    again = read_scores(scores, where="scores.json").to_dict()
    assert json.loads(json.dumps(again)) == own(scores)
    with pytest.raises(MarvelError, match=r"scores\.json.*'chance'"):
        broken = json.loads(json.dumps(scores))
        del broken["sets"][0]["local_pool"]["chance"]
        read_scores(broken, where="scores.json")


def test_what_is_missing_is_named(good, tmp_path, tiny_corpus):
    with pytest.raises(MarvelError, match="no finished evaluation"):
        report(tmp_path)
    moved = tmp_path / "moved"
    shutil.copytree(good, moved)
    about = json.loads((moved / "evaluation.json").read_text())
    (moved / "evaluation.json").write_text(json.dumps({**about, "data": "/nowhere"}))
    with pytest.raises(MarvelError, match=r"/nowhere.*--data"):
        report(moved)
    assert report(moved, data=tiny_corpus).facts["mean_local"] > 0
    assert (moved / "evaluation-report" / "index.html").is_file()
    (moved / "rankings" / "tiny_task0.npz").unlink()
    with pytest.raises(MarvelError, match=r"tiny_task0\.npz does not exist"):
        report(moved, data=tiny_corpus)
