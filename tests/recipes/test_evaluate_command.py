"""`marvel evaluate` on emoji from end to end: encode, ScaNN, exact, every paraphrase, rerank.

The models have random weights: what is tested is that all parts fit together, go on where they
stopped and refuse what cannot be.
"""

import csv
import json
import shlex
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from marvel_jax import cli
from marvel_jax.data import emoji
from marvel_jax.data.emoji_tasks import Sizes
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.recipes import evaluate_command, evaluation, reporting, reranked_lists
from marvel_jax.recipes.evaluate_command import evaluate_model, with_reranker
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.reporting import report_evaluation
from marvel_jax.recipes.stage_runs import run_stage
from marvel_jax.recipes.stages import Base
from marvel_jax.retrieval import evaluation_folder, metrics, protocols, retrieval_sets
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.fusion import query_key
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.store import VectorStore
from tests import tiny

FEW = Sizes(
    train_tone=40,
    train_tone_card=40,
    test_picture=8,
    test_translation=8,
    test_card=8,
    test_named=8,
    test_tone=8,
    test_tone_card=8,
)
TOP = 5
WHOLE = {"all_instructions": True, "held_out": ("task4", "emoji_task8"), "fit_split": "val"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Emoji with a validation split: of each test set every other query."""
    folder = tmp_path_factory.mktemp("corpora") / "emoji"
    emoji.build(folder, seed=3, limit=60, sizes=FEW, vocabulary=1000)
    (folder / "query" / "val").mkdir()
    (folder / "qrels" / "val").mkdir()
    for file in sorted((folder / "query" / "test").iterdir()):
        lines = file.read_text().splitlines(keepends=True)[:8]
        qrels = folder / "qrels" / "test" / file.name.replace(".jsonl", "_qrels.txt")
        judged = qrels.read_text().splitlines(keepends=True)
        for split, part in (("val", lines[::2]), ("test", lines[1::2])):
            ids = {json.loads(line)["qid"] for line in part}
            kept = [line for line in judged if line.split()[0] in ids]
            name = file.name.replace("_test", f"_{split}")
            (folder / "query" / split / name).write_text("".join(part))
            path = folder / "qrels" / split / name.replace(".jsonl", "_qrels.txt")
            path.write_text("".join(kept))
    return folder


@pytest.fixture(scope="module")
def model(corpus, tmp_path_factory) -> Path:
    """A Qwen2-VL of random weights, which serves as embedder and as reranker."""
    folder = tmp_path_factory.mktemp("models")
    stage = Base("base", data=str(corpus), architecture=tiny.architecture(), max_pixels=28 * 28)
    run_stage(stage, folder, print)
    return folder / "model"


def evaluate(model, corpus, workdir, *, reranker=None, scann=False, **options):
    asked = {"top": TOP, "weights": None, "fit_split": None, "prompt": None}
    asked |= {name: options.pop(name) for name in list(options) if name in asked}
    chosen = with_reranker(None if reranker is None else str(reranker), **asked)
    given = {"seed": 0, **options}
    return evaluate_model(
        str(model), data=corpus, workdir=workdir, scann=scann, reranker=chosen, **given
    )


@pytest.fixture(scope="module")
def ran(model, corpus, tmp_path_factory):
    """(folder, outcome) of a run with everything."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    outcome = evaluate(
        model,
        corpus,
        workdir,
        scann=True,
        reranker=model,
        **WHOLE,
    )
    return workdir, outcome


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


def test_p_yes_is_the_rerankers_own(ran, corpus, model):
    workdir, _ = ran
    folder, layout = evaluation_folder.read(workdir), MbeirFolder(corpus)
    store = VectorStore.open(folder.store_path)
    source = layout.judged_source("test")
    one = layout.test_sets()[0]
    found = folder.rankings(one.name)
    query = retrieval_item(one.queries[2], layout)
    rows = found.reranked["reranked"].local_pool.indices[2, :TOP]
    items = [source.candidates[source.candidate_index(store.ids[row])].item for row in rows]
    expected = Reranker.from_pretrained(model).score([(query, item) for item in items]).p_yes
    scores = found.reranked["reranked"].local_pool.scores[2, :TOP]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert (np.diff(scores) <= 0).all()


def retrieval_item(query, layout):
    from marvel_jax.retrieval.encode import instructed

    return instructed(query, layout.instructions, seed=0)


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


def test_a_second_run_makes_nothing_again(ran, model, corpus, monkeypatch):
    workdir, first = ran

    def fail(*args, **options):
        pytest.fail("something is made again")

    monkeypatch.setattr(Embedder, "encode", fail)
    monkeypatch.setattr(Reranker, "score", fail)
    monkeypatch.setattr(retrieval_sets, "top_k", fail)
    monkeypatch.setattr(protocols, "_approximate", fail)
    before = written(workdir)
    again = evaluate(model, corpus, workdir, scann=True, reranker=model, **WHOLE)
    assert again.facts == first.facts
    assert written(workdir) == before and len(before) == 8 + 3


def written(workdir: Path) -> dict[str, tuple[int, int]]:
    """The files of results; one that is written again is another file."""
    files = [*(workdir / "rankings").iterdir(), *workdir.glob("*.json")]
    names = {"paraphrases.json"}
    states = {file.name: file.stat() for file in files if file.name not in names}
    return {name: (state.st_ino, state.st_mtime_ns) for name, state in states.items()}


def test_a_command_that_asks_for_less_keeps_what_was_found_before(ran, model, corpus, tmp_path):
    workdir, first = ran
    shutil.copytree(workdir, tmp_path / "run")
    again = evaluate(model, corpus, tmp_path / "run", scann=True, held_out=WHOLE["held_out"])
    assert again.facts == first.facts
    folder, before = (evaluation_folder.read(path) for path in (tmp_path / "run", workdir))
    assert folder.about["reranker"] == before.about["reranker"] is not None
    assert folder.rankings("emoji_task0").reranked.keys() == {"reranked", "fused"}
    commands = folder.about["commands"]
    assert [("--all-instructions" in one, "--reranker" in one) for one in commands] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    # What is of other answers is not kept.
    layout = tmp_path / "corpus"
    shutil.copytree(corpus, layout)
    (file,) = (layout / "qrels" / "test").glob("*task0_*")
    lines = file.read_text().splitlines(keepends=True)
    first_query = lines[0].split()[0]
    other = next(line.split()[2] for line in lines if line.split()[0] != first_query)
    file.write_text("".join(lines) + " ".join([first_query, "0", other, "1", "0"]) + "\n")
    left = evaluate(model, layout, tmp_path / "run", held_out=WHOLE["held_out"])
    assert {"paraphrases", "reranked"}.isdisjoint(left.facts)
    folder = evaluation_folder.read(tmp_path / "run")
    assert folder.about["reranker"] is None and not folder.rankings("emoji_task4").reranked


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


def test_another_seed_encodes_queries_only(ran, model, corpus, tmp_path, monkeypatch):
    workdir, _ = ran
    shutil.copytree(workdir, tmp_path / "run")
    encoded = []
    encode = Embedder.encode

    def counted(self, items, **options):
        items = list(items)
        encoded.extend(item.instruction for item in items)
        return encode(self, items, **options)

    monkeypatch.setattr(Embedder, "encode", counted)
    before = evaluation_folder.read(tmp_path / "run").rankings("emoji_task0").origin
    evaluate(model, corpus, tmp_path / "run", seed=5)
    assert encoded and None not in encoded
    folder = evaluation_folder.read(tmp_path / "run")
    assert folder.about["seed"] == 5 and folder.about["reranker"] is None
    assert folder.rankings("emoji_task0").origin != before
    assert folder.rankings("emoji_task0").reranked == {}


def test_what_fails_after_the_search_loses_none_of_it(ran, model, corpus, tmp_path, monkeypatch):
    workdir, first = ran
    run = tmp_path / "run"
    run.mkdir()
    for name in ("store", "queries"):
        shutil.copytree(workdir / name, run / name)

    def fail(*_, **__):
        raise MarvelError("something after the search")

    local: list[int] = []
    top_k = retrieval_sets.top_k

    def searched(queries, store, k, *, most, subset=None):
        if subset is None or len(local) == most:
            raise MarvelError("something in the search")
        local.append(len(subset))
        return top_k(queries, store, k, subset=subset)

    for most in (3, 8):  # in the fourth set's own pool, and then in the pool of everything
        with monkeypatch.context() as patched:
            patched.setattr(retrieval_sets, "top_k", partial(searched, most=most))
            with pytest.raises(MarvelError, match="in the search"):
                evaluate(model, corpus, run)
        assert len(local) == most  # no pool is searched twice
    with monkeypatch.context() as patched:
        patched.setattr(evaluation, "evaluate", fail)
        with pytest.raises(MarvelError, match="after the search"):
            evaluate(model, corpus, run)
    with pytest.raises(MarvelError, match="holds no finished evaluation"):
        evaluation_folder.read(run)
    monkeypatch.setattr(retrieval_sets, "top_k", lambda *_, **__: pytest.fail("searched again"))
    again = evaluate(model, corpus, run)
    assert again.facts["mean_global"] == first.facts["mean_global"]
    assert again.facts["mean_local"] == first.facts["mean_local"]


def test_a_killed_reranker_goes_on(ran, model, corpus, tmp_path, monkeypatch):
    workdir, first = ran
    shutil.copytree(workdir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "rerank")
    score, calls = Reranker.score, []

    def dies(self, pairs, **options):
        calls.append(len(pairs))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return score(self, pairs, **options)

    score_lists = reranked_lists.score_lists
    monkeypatch.setattr(
        reranked_lists, "score_lists", lambda *args, **kw: score_lists(*args, **kw, block=20)
    )
    monkeypatch.setattr(Reranker, "score", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, corpus, tmp_path / "run", reranker=model, weights="0.3")
    # Vectors, scores and rankings are whole; the reranker's are still those of the run before.
    found = evaluation_folder.read(tmp_path / "run").about["reranker"]
    assert found["weights"] == "fitted on val"
    again = evaluate(model, corpus, tmp_path / "run", reranker=model, weights="0.3")
    assert calls[0] + sum(calls[2:]) == first.facts["reranked"]["cost"]["pairs"]
    pools, other = again.facts["reranked"]["pools"], first.facts["reranked"]["pools"]
    for pool in ("local", "global"):
        assert pools[pool]["mean_reranked"] == pytest.approx(other[pool]["mean_reranked"])
    assert pools["local"]["sets"][0]["weight"] == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "0.5", "fit_split": "val"}, "choose one"),
        ({"fit_split": "test"}, "judged on the queries that it was fitted on"),
        ({"weights": "1.5"}, "1.5: give the cosine's share"),
        ({"weights": "nothing.json"}, "nothing.json does not exist"),
        ({"top": 0}, "--top 0"),
        ({"top": 51}, "--top 51: 50 results of a query are kept"),
        ({"reranker": None, "weights": "0.5"}, "--weights without --reranker"),
        ({"held_out": ("nights",)}, "--held-out nights: there is no such test set"),
        ({"top": 2}, "--top 2: .* looks at the first 5"),
    ],
)
def test_what_cannot_be_is_refused(ran, model, corpus, options, message):
    workdir, _ = ran
    with pytest.raises(MarvelError, match=message):
        evaluate(model, corpus, workdir, **{"reranker": model, **options})


def test_pictures_that_cannot_be_read_count_as_never_found(model, corpus, tmp_path):
    other, workdir = tmp_path / "corpus", tmp_path / "run"
    shutil.copytree(corpus, other)
    layout = MbeirFolder(other)
    one = next(one for one in layout.test_sets() if one.name == "emoji_task4")
    answers = [id for query in one.queries for id in one.qrels[query.id]]
    source = layout.judged_source("test")
    broken = source.candidates[source.candidate_index(answers[0])].item.images[0].source
    Path(str(broken)).write_bytes(b"no picture")
    pictured = next(one for one in layout.test_sets() if one.name == "emoji_task3")
    shown = next(iter(pictured.queries)).item.images[0].source
    Path(str(shown)).write_bytes(b"no picture")
    with pytest.raises(MarvelError, match="pictures that cannot be used"):
        evaluate(model, other, workdir, dtype="bfloat16", dimension=16)
    found = evaluate(model, other, workdir, dtype="bfloat16", dimension=16, tolerate=30)
    folder = evaluation_folder.read(workdir)
    store = VectorStore.open(folder.store_path)
    lacking = len(layout.pool("test")) - len(store)
    assert 0 < folder.about["missing"] == lacking and folder.about["dtype"] == "bfloat16"
    assert store.dimension == folder.about["dimension"] == 16
    assert {scores["name"]: scores["missing"] for scores in found.facts["sets"]}[one.name] > 0
    beyond = [rows for rows in folder.rankings(one.name).relevant if (rows >= len(store)).any()]
    assert beyond
    # A query whose picture is broken has no results.
    nothing = sum(
        int((folder.rankings(name).retrieved.local_pool.indices == -1).all(axis=1).sum())
        for name in folder.sets
    )
    listed = [len(path.read_text().splitlines()) for path in workdir.glob("queries/*/*.jsonl")]
    assert nothing == sum(listed) > 0


def test_weights_of_a_recipe_are_used_and_must_have_every_set(ran, model, corpus, tmp_path):
    workdir, first = ran
    fitted = json.loads(json.dumps(first.facts["reranked"]["pools"]))
    file = tmp_path / "fusion.json"
    with pytest.raises(MarvelError, match="with the queries that they were fitted on"):
        file.write_text(json.dumps({"fusion": "add", "pools": fitted}))
        evaluate(model, corpus, workdir, reranker=model, weights=str(file))
    layout = MbeirFolder(corpus)
    for pool in fitted.values():
        queries = layout.judged_source("val").queries
        pool["weights"]["fitted_on"] = [query_key(query) for query in queries]
    file.write_text(json.dumps({"fusion": "add", "pools": fitted}))
    found = evaluate(model, corpus, workdir, reranker=model, weights=str(file))
    assert found.facts["reranked"]["pools"]["global"]["sets"] == fitted["global"]["sets"]
    del fitted["local"]["weights"]["weights"]["emoji_task7"]
    file.write_text(json.dumps({"fusion": "add", "pools": fitted}))
    with pytest.raises(MarvelError, match="emoji_task7: no fusion weight was fitted"):
        evaluate(model, corpus, workdir, reranker=model, weights=str(file))
    file.write_text("{}")
    with pytest.raises(MarvelError, match="holds no fitted weights"):
        evaluate(model, corpus, workdir, reranker=model, weights=str(file))


def test_what_would_judge_a_weight_on_its_own_queries_is_told_first(
    ran, model, corpus, tmp_path, monkeypatch
):
    _, first = ran
    monkeypatch.setattr(Embedder, "encode", lambda *_, **__: pytest.fail("something is encoded"))
    weights = json.loads(json.dumps(first.facts["reranked"]["pools"]))
    for pool in weights.values():
        pool["weights"]["fitted_on"] = []
    query = MbeirFolder(corpus).judged_source("test").queries[2]
    weights["global"]["weights"]["fitted_on"] = ["0" * 16, query_key(query)]
    file = tmp_path / "fusion.json"
    file.write_text(json.dumps({"fusion": "add", "pools": weights}))
    with pytest.raises(MarvelError, match=rf"1 of \d+ queries were used to fit.*{query.id}"):
        evaluate(model, corpus, tmp_path / "new", reranker=model, weights=str(file))
    # The same lines in both splits, under other ids; and a set without validation.
    other = tmp_path / "corpus"
    shutil.copytree(corpus, other, symlinks=True)
    line = json.loads(
        (other / "query/test/mbeir_emoji_task0_test.jsonl").read_text().split("\n")[0]
    )
    with (other / "query/val/mbeir_emoji_task0_val.jsonl").open("a") as lines:
        lines.write(json.dumps({**line, "qid": "10:999999"}) + "\n")
    with (other / "qrels/val/mbeir_emoji_task0_val_qrels.txt").open("a") as lines:
        lines.write(f"10:999999 0 {line['pos_cand_list'][0]} 1 0\n")
    with pytest.raises(MarvelError, match=rf"emoji_task0: 1 of .* to fit.*{line['qid']}"):
        evaluate(model, other, tmp_path / "new", reranker=model, fit_split="val")
    (other / "query/val/mbeir_emoji_task0_val.jsonl").unlink()
    with pytest.raises(MarvelError, match="has no such queries of emoji_task0"):
        evaluate(model, other, tmp_path / "new", reranker=model, fit_split="val")
    assert not (tmp_path / "new").exists()


def test_a_store_of_another_pool_is_refused(ran, model, corpus, tmp_path):
    workdir, _ = ran
    other = tmp_path / "corpus"
    shutil.copytree(corpus, other, symlinks=True)
    pool = other / "cand_pool" / "global" / "mbeir_union_test_cand_pool.jsonl"
    pool.write_text("".join(pool.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(MarvelError, match="source_hash"):
        evaluate(model, other, workdir)
