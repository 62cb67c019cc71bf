"""Lists for a reranker are those of the protocol: each set's own pool, and everything."""

import json
import shutil

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
from marvel_jax.retrieval.fusion import query_key
from marvel_jax.retrieval.store import VectorStore

DEPTH = 12


@pytest.fixture(scope="module")
def embedder(tiny_model) -> Embedder:
    return Embedder.from_pretrained(tiny_model)


def lists_of(embedder, folder, out, *, depth=DEPTH, split="test") -> dict[str, dict]:
    recall.write_lists(
        embedder,
        MbeirFolder(folder),
        split=split,
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
                places = ranking.indices[row, :DEPTH]
                expected = [evaluated.store.ids[int(place)] for place in places]
                assert list(line.candidates[: len(expected)]) == expected and len(expected) > 9
                assert len(line.candidates) == DEPTH and line.negatives == ()
                right = one.qrels[query.id]
                ranks = [n for n, id in enumerate(line.candidates, start=1) if id in right]
                assert line.positive_rank == (ranks[0] if ranks else None)


def test_one_that_was_killed_goes_on(found, embedder, tiny_corpus, tmp_path, monkeypatch):
    class KilledError(Exception):
        pass

    class Dying(recall.KeyedWriter):
        appended = 0

        def append(self, rows):
            if Dying.appended == 2:
                raise KilledError
            Dying.appended += 1
            super().append(rows)

    monkeypatch.setattr(recall, "KeyedWriter", Dying)
    with pytest.raises(KilledError):
        lists_of(embedder, tiny_corpus, tmp_path)
    unfinished = tmp_path / ".local.jsonl.unfinished"
    assert len(unfinished.read_text().splitlines()) == 24  # two of the three sets
    # What is written is not searched again: a mark in it is still there afterwards.
    first, *others = unfinished.read_text().splitlines(keepends=True)
    marked = json.dumps({**json.loads(first), "positive_rank": 99}) + "\n"
    unfinished.write_text("".join([marked, *others]))
    monkeypatch.undo()
    again = lists_of(embedder, tiny_corpus, tmp_path)
    qid = json.loads(first)["qid"]
    assert again["local"][qid].positive_rank == 99
    assert again["global"] == found[1]["global"]
    del again["local"][qid], (left := dict(found[1]["local"]))[qid]
    assert again["local"] == left


def test_no_training_takes_the_lists(found, tiny_corpus):
    with pytest.raises(MarvelError, match="queries without a negative"):
        with_negatives(MbeirFolder(tiny_corpus).source("test"), found[0] / "local.jsonl")


@pytest.fixture(scope="module")
def with_validation(tiny_corpus, tmp_path_factory):
    """The corpus with a validation split as M-BEIR has it: a union file of queries beside the
    sets', a union pool of the answers alone, one local pool shared with test and one of its own.
    """
    root = tmp_path_factory.mktemp("val") / "corpus"
    shutil.copytree(tiny_corpus, root)

    def read(path):
        return [json.loads(line) for line in (root / path).read_text().splitlines()]

    def write(path, rows):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def other(did):
        return f"90:{int(did.removeprefix('90:')) + 1000}"

    union = []
    for task, of_its_own in ((0, True), (3, False)):
        name = f"mbeir_tiny_task{task}"
        queries = read(f"query/test/{name}_test.jsonl")[:6]
        pool = {row["did"]: row for row in read(f"cand_pool/local/{name}_cand_pool.jsonl")}
        if of_its_own:  # the same pictures under other ids
            pool = {other(did): {**row, "did": other(did)} for did, row in pool.items()}
            pool = dict(list(pool.items())[:20])
            write(f"cand_pool/local/{name}_val_cand_pool.jsonl", pool.values())
        for query in queries:
            query["qid"] += "77"
            if of_its_own:
                query["pos_cand_list"] = [other(did) for did in query["pos_cand_list"]]
            query["neg_cand_list"] = []
        write(f"query/val/{name}_val.jsonl", queries)
        lines = [f"{q['qid']} 0 {did} 1 {task}\n" for q in queries for did in q["pos_cand_list"]]
        (root / "qrels/val").mkdir(parents=True, exist_ok=True)
        (root / f"qrels/val/{name}_val_qrels.txt").write_text("".join(lines))
        union += [(query, pool[did]) for query in queries for did in query["pos_cand_list"]]
    write("query/union_val/mbeir_union_val.jsonl", [query for query, _ in union])
    pool = {row["did"]: row for _, row in union}
    write("cand_pool/global/mbeir_union_val_cand_pool.jsonl", pool.values())
    return root


def test_validation_is_searched_in_its_own_pools_and_among_all_of_test(
    found, embedder, with_validation, tmp_path
):
    """Through a part of the corpus, and with the vectors of the test pool where they are."""
    write_subset(with_validation, tmp_path / "part", split="val", most=4, seed=1)
    layout = MbeirFolder(tmp_path / "part")
    assert [len(one.queries) for one in layout.test_sets("val")] == [4, 4]
    (tmp_path / "out/vectors").mkdir(parents=True)
    (tmp_path / "out/vectors/store").symlink_to(found[0] / "vectors/store")
    lines = lists_of(embedder, tmp_path / "part", tmp_path / "out", split="val", depth=30)
    everything = list(layout.judged_pool("val").all)
    assert len(everything) == 96 + 20
    vectors = embedder.encode([one.item for one in everything]).astype(np.float64)
    for one in layout.test_sets("val"):
        local = {candidate.id for candidate in one.pool}
        queries = VectorStore.open(tmp_path / "out/vectors/queries/seed-0" / one.name)
        for qid, query in zip(queries.ids, queries.vectors(), strict=True):
            cosines = (vectors @ query.astype(np.float64)).astype(np.float32)
            ranked = sorted(
                (-float(cosine), candidate.id)
                for cosine, candidate in zip(cosines, everything, strict=True)
            )
            for pool, right in (("global", None), ("local", local)):
                expected = [(id, -s) for s, id in ranked if right is None or id in right][:30]
                line = lines[pool][qid]
                # The same pictures under two ids have equal cosines but for rounding.
                assert_same_ranking(line, expected)
                (answer,) = one.qrels[qid]
                place = line.candidates.index(answer) + 1 if answer in line.candidates else None
                assert line.positive_rank == place
                assert line.positive_similarity == pytest.approx(
                    cosines[[one.id for one in everything].index(answer)], abs=1e-6
                )


def assert_same_ranking(line, expected) -> None:
    np.testing.assert_allclose(line.similarities, [s for _, s in expected], atol=1e-6)
    assert len(set(line.candidates)) == len(line.candidates) == len(expected)
    # Whoever is surely above the last one is in both.
    last = expected[-1][1] + 1e-6
    assert {id for id, s in expected if s > last} <= set(line.candidates)
    among = zip(line.candidates, line.similarities, strict=True)
    assert {id for id, s in among if s > last} <= {id for id, _ in expected}


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
    fitted = MbeirFolder(tmp_path / "val" / "corpus").judged_source("test").queries
    told = report["pools"]["local"]["weights"]["fitted_on"]
    assert told == sorted(query_key(query) for query in fitted) and len(told) == 18
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
