"""Lists for a reranker are those of the protocol: each set's own pool, and everything."""

import numpy as np
import pytest

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mined import read_mined, with_negatives
from marvel_jax.data.teacher import teacher_line, teacher_writer
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json
from marvel_jax.recipes import fusing, recall
from marvel_jax.recipes.evaluation import evaluate_embedder
from marvel_jax.recipes.stages import Fuse, Judged
from marvel_jax.recipes.subset import write_subset
from marvel_jax.retrieval.embedder import Embedder

DEPTH = 12


@pytest.fixture(scope="module")
def embedder(tiny_model) -> Embedder:
    return Embedder.from_pretrained(tiny_model)


def lists_of(embedder, folder, out, *, depth=DEPTH) -> dict[str, dict]:
    recall.write_lists(
        embedder,
        MbeirFolder(folder),
        split="test",
        depth=depth,
        seed=0,
        vectors=out / "vectors",
        out={pool: out / f"{pool}.jsonl" for pool in recall.POOLS},
        say=lambda line: None,
    )
    return {
        pool: {line.qid: line for line in read_mined(out / f"{pool}.jsonl")[1]}
        for pool in recall.POOLS
    }


@pytest.fixture(scope="module")
def found(embedder, tiny_corpus, tmp_path_factory):
    out = tmp_path_factory.mktemp("recall")
    return out, lists_of(embedder, tiny_corpus, out)


def test_lists_are_what_the_evaluation_ranks(found, embedder, tiny_corpus, tmp_path):
    layout = MbeirFolder(tiny_corpus)
    evaluated = evaluate_embedder(embedder, layout, workdir=tmp_path, seed=0, scann=False)
    for one in layout.test_sets():
        rankings = evaluated.evaluation.rankings[one.name]
        for pool, ranking in (("local", rankings.local_pool), ("global", rankings.global_pool)):
            for row, query in enumerate(one.queries):
                line = found[1][pool][query.id]
                expected = [evaluated.store.ids[int(place)] for place in ranking.indices[row]]
                assert list(line.candidates[: len(expected)]) == expected
                assert len(line.candidates) == DEPTH and line.negatives == ()
                right = one.qrels[query.id]
                ranks = [n for n, id in enumerate(line.candidates, start=1) if id in right]
                assert line.positive_rank == (ranks[0] if ranks else None)


def test_a_killed_one_goes_on_and_no_training_takes_the_lists(
    found, embedder, tiny_corpus, tmp_path
):
    again = lists_of(embedder, tiny_corpus, tmp_path / "again")
    assert again == found[1]
    with pytest.raises(MarvelError, match="queries without a negative"):
        with_negatives(MbeirFolder(tiny_corpus).source("test"), found[0] / "local.jsonl")


def test_the_weight_is_fitted_on_other_queries_than_it_is_judged_on(
    embedder, tiny_corpus, tmp_path
):
    judged = {}
    for name, shares in (("val", (0.0, 0.5)), ("test", (0.5, 1.0))):
        folder = tmp_path / name
        write_subset(tiny_corpus, folder / "corpus", split="test", shares=shares)
        lines = lists_of(embedder, folder / "corpus", folder, depth=40)["local"]
        write_perfect_scores(folder, lines)
        judged[name] = {"local": Judged(str(folder / "scores.jsonl"), str(folder / "corpus"))}
    report = fusing.fit_and_judge(Fuse("fuse", judged["val"], judged["test"]))
    sets = {one["name"]: one for one in report["pools"]["local"]["sets"]}
    assert set(sets) == {"tiny_task0", "tiny_task3", "tiny_task7"}
    # A teacher that knows the answers brings every answer that is in the list.
    assert all(one["num_queries"] == 6 for one in sets.values())
    reached = np.mean([one["fused"]["mean"] for one in sets.values()])
    assert reached > np.mean([one["recall"]["mean"] for one in sets.values()])
    with pytest.raises(MarvelError, match="were used to fit"):
        fusing.fit_and_judge(Fuse("fuse", judged["val"], judged["val"]))


def write_perfect_scores(folder, lines) -> None:
    source = MbeirFolder(folder / "corpus").source("test")
    positives = {query.id: set(query.positives) for query in source.queries}
    manifest = read_json(folder / "local.manifest.json")
    names = ("model_hash", "source_fingerprint", "queries_hash", "pool_hash")
    writer = teacher_writer(
        folder / "scores.jsonl", {"teacher_hash": "x", **{name: manifest[name] for name in names}}
    )
    writer.append(
        teacher_line(
            qid,
            line.candidates,
            yes=np.array([20.0 if id in positives[qid] else -20.0 for id in line.candidates]),
            no=np.zeros(len(line.candidates)),
            recall=np.array(line.similarities),
        )
        for qid, line in lines.items()
    )
    writer.finish({})
