"""`marvel evaluate --reranker`: its scores, its weights, what it refuses, and going on."""

import json
import shutil

import numpy as np
import pytest

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.recipes import reranked_lists
from marvel_jax.retrieval import evaluation_folder
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import instructed
from marvel_jax.retrieval.fusion import query_key
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.store import VectorStore
from tests.recipes.evaluate_command.asked import TOP, evaluate


def test_p_yes_is_the_rerankers_own(ran, corpus, model):
    workdir, _ = ran
    folder, layout = evaluation_folder.read(workdir), MbeirFolder(corpus)
    store = VectorStore.open(folder.store_path)
    source = layout.judged_source("test")
    one = layout.test_sets()[0]
    found = folder.rankings(one.name)
    query = instructed(one.queries[2], layout.instructions, seed=0)
    rows = found.reranked["reranked"].local_pool.indices[2, :TOP]
    items = [source.candidates[source.candidate_index(store.ids[row])].item for row in rows]
    expected = Reranker.from_pretrained(model).score([(query, item) for item in items]).p_yes
    scores = found.reranked["reranked"].local_pool.scores[2, :TOP]
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert (np.diff(scores) <= 0).all()


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
def test_what_cannot_be_is_refused_first(model, corpus, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr(Embedder, "encode", lambda *_, **__: pytest.fail("something is encoded"))
    with pytest.raises(MarvelError, match=message):
        evaluate(model, corpus, tmp_path / "new", **{"reranker": model, **options})
    assert not (tmp_path / "new").exists()


def test_weights_of_a_recipe_are_used_and_must_have_every_set(ran, model, corpus, tmp_path):
    whole, first = ran
    workdir = tmp_path / "run"
    shutil.copytree(whole, workdir)
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
