"""`marvel evaluate` on emoji as a whole: encode, ScaNN, exact, paraphrases, rerank, report."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from marvel_jax import cli
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.recipes import evaluate_command, reporting
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.reporting import report_evaluation
from marvel_jax.retrieval import evaluation_folder, metrics
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.store import VectorStore
from tests.recipes.evaluate_command.asked import TOP, WHOLE


def test_it_leaves_a_whole_folder_that_agrees_with_itself(ran, corpus, model):
    workdir, outcome = ran
    folder = evaluation_folder.read(workdir)
    layout = MbeirFolder(corpus)
    sets = {one.name: one for one in layout.test_sets()}
    assert folder.sets == tuple(sets) and len(sets) == 8
    assert json.loads((workdir / "scores.json").read_text()) == json.loads(
        json.dumps(dict(outcome.facts))
    )
    store = VectorStore.open(folder.store_path)
    assert len(store) == len(layout.pool("test"))
    assert folder.about["model"] == str(model) and folder.about["data"] == str(corpus)
    assert folder.about["store"] == store.content_hash
    scored = {one["name"]: one for one in folder.scores["sets"]}
    fused = {one["name"]: one for one in folder.scores["reranked"]["pools"]["global"]["sets"]}
    for name, one in sets.items():
        found = folder.rankings(name)
        assert found.query_ids == [query.id for query in one.queries]
        for query, rows in zip(one.queries, found.relevant, strict=True):
            assert {store.ids[row] for row in rows} == one.qrels[query.id]
        pool = {candidate.id for candidate in one.pool}
        local = found.retrieved.local_pool.indices
        assert {store.ids[row] for row in np.unique(local[local >= 0])} <= pool
        assert (local >= 0).sum(axis=1).tolist() == [min(50, len(pool))] * len(local)
        queries = VectorStore.open(folder.queries_path(name))
        cosine = (queries.vectors()[:, None] * store.vectors(local[:, 0])[None])[0].sum(-1)[0]
        assert found.retrieved.local_pool.scores[0, 0] == pytest.approx(cosine, abs=1e-6)
        for pool_name, ranking in zip(("local_pool", "global_pool"), found.retrieved, strict=True):
            hit = metrics.hit_at_k(ranking.indices, found.relevant, found.k).mean()
            assert scored[name][pool_name]["hit"][str(found.k)]["mean"] == pytest.approx(hit)
        after = found.reranked["fused"].global_pool
        hit = metrics.hit_at_k(after.indices, found.relevant, found.k).mean()
        assert fused[name]["fused"]["hit"][str(found.k)]["mean"] == pytest.approx(hit)
        # The first results are the same ones in another order, the others stay.
        before = found.retrieved.global_pool.indices
        np.testing.assert_array_equal(np.sort(after.indices[:, :TOP]), np.sort(before[:, :TOP]))
        np.testing.assert_array_equal(after.indices[:, TOP:], before[:, TOP:])


def test_scores_say_what_was_held_out_and_what_the_reranker_took(ran):
    workdir, outcome = ran
    facts = outcome.facts
    assert [group["name"] for group in facts["by_protocol"]] == ["seen", "held out"]
    assert facts["by_protocol"][1]["sets"] == ["emoji_task4", "emoji_task8"]
    assert facts["approximate"]["recall"] == pytest.approx(1)
    reranked = facts["reranked"]
    assert reranked["cost"]["seconds"] > 0 and reranked["cost"]["pairs"] > 8 * 3 * TOP
    assert reranked["pools"]["local"]["weights"]["validation_queries"] > 0
    assert evaluation_folder.read(workdir).about["reranker"]["weights"] == "fitted on val"
    text = "\n".join(outcome.lines)
    assert "mean of held out, 2" in text and "pairs/s" in text and "every paraphrase" in text


def test_every_paraphrase_is_scored_and_the_drawn_ones_lie_among_them(ran, corpus, model, tmp_path):
    workdir, outcome = ran
    found = {one["name"]: one for one in outcome.facts["paraphrases"]["sets"]}
    layout = MbeirFolder(corpus)
    one = layout.test_sets()[0]
    prompts = layout.instructions[one.queries[0].instruction_key]
    assert found[one.name]["instructions"] == list(prompts) and len(prompts) == 4
    local = found[one.name]["local_pool"]
    assert local["mean"] == pytest.approx(np.mean(local["values"]))
    assert local["deviation"] == pytest.approx(np.std(local["values"]))
    # The second paraphrase by hand.
    store = VectorStore.open(workdir / "store")
    items = [query.item.with_instruction(prompts[1]) for query in one.queries]
    vectors = Embedder.from_pretrained(model).encode(items)
    rows = np.unique(store.rows_of([candidate.id for candidate in one.pool]))
    best = np.argsort(-(vectors @ store.vectors(rows).T), axis=1)[:, : one.k]
    answers = [store.rows_of(sorted(one.qrels[query.id])) for query in one.queries]
    hit = metrics.hit_at_k(rows[best], answers, one.k).mean()
    assert local["values"][1] == pytest.approx(hit)


def test_the_report_of_a_reranked_evaluation_shows_all_of_it(ran, corpus, tmp_path):
    workdir, outcome = ran
    options = {"against": None, "data": None, "tradeoff": True, "tradeoff_queries": 2, "seed": 0}
    out = tmp_path / "report"
    report_evaluation(workdir, out=out, shown=2, **options)
    pools = outcome.facts["reranked"]["pools"]
    rows = table(out / "reranked.csv")
    assert {row["pool"] for row in rows} == {"local", "global"}
    fused = {
        (pool, one["name"]): one["fused"]["hit"][str(one["k"])]["mean"]
        for pool in pools
        for one in pools[pool]["sets"]
    }
    told = {
        (row["pool"], row["set"]): float(row["ours"])
        for row in rows
        if "fused" in row["order"] and (row["pool"], row["set"]) in fused
    }
    assert told == pytest.approx(fused, abs=1e-6)
    spread = {one["name"]: one for one in outcome.facts["paraphrases"]["sets"]}
    wordings = table(out / "paraphrases.csv")
    assert {row["set"] for row in wordings} >= set(spread)
    page = (out / "index.html").read_text()
    assert "fitted on val" in page and "pairs" in page


def test_the_commands_of_the_report_are_those_that_ran(ran, model, corpus, monkeypatch):
    """Read back by the command line, they ask for what was asked for."""
    workdir, _ = ran
    asked = []

    def note(model, **options):
        asked.append({"model": model, **options})
        return Outcome({}, [])

    monkeypatch.setattr(evaluate_command, "evaluate_model", note)
    folder = evaluation_folder.read(workdir)
    layout = MbeirFolder(corpus)
    *commands, last = reporting._commands(folder, str(model), layout, Path("other run"))
    for command in commands:
        program, *arguments = shlex.split(command)
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert program == "marvel" and stop.value.code == 0
    assert shlex.split(last)[:2] == ["marvel", "report"] and "other run" in shlex.split(last)
    assert [one["model"] for one in asked] == [str(model)] * 3
    assert {one["workdir"] for one in asked} == {workdir} and asked[0]["data"] == corpus
    assert all(tuple(one["held_out"]) == WHOLE["held_out"] for one in asked)
    assert [one["all_instructions"] for one in asked] == [False, True, False]
    reranker = asked[2]["reranker"]
    assert reranker.model == str(model)
    assert (reranker.options.top, reranker.options.fit_split) == (TOP, "val")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))
