import dataclasses
import json

import numpy as np
import pytest
from vector_stores import exact_reference, random_unit, unit, write_store

from marvel_jax.data.items import TASKS, Candidate, Item, Query
from marvel_jax.data.mbeir import TestSet
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import metrics, retrieval_sets
from marvel_jax.retrieval.exact import top_k
from marvel_jax.retrieval.protocols import RetrievalSet, evaluate
from marvel_jax.retrieval.scann_index import ScannIndex

POOLS = {"images": 40, "texts": 60}
IDS = [f"{pool}:{row}" for pool, size in POOLS.items() for row in range(size)]
CORPUS = random_unit(len(IDS), 12)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_store(tmp_path_factory.mktemp("protocols") / "store", CORPUS, IDS, shard_rows=37)


def a_set(name, pool, *, k=5, queries=30, seed=0, noise=0.5):
    """Queries near one candidate of the pool each; every third has a second right answer."""
    rng = np.random.default_rng(seed)
    ids = [name for name in IDS if name.startswith(pool)]
    targets = rng.integers(len(ids), size=queries)
    vectors = unit(
        CORPUS[[IDS.index(ids[t]) for t in targets]] + noise * rng.normal(size=(queries, 12))
    )
    relevant = [
        [ids[t], ids[(t + 1) % len(ids)]] if number % 3 == 0 else [ids[t]]
        for number, t in enumerate(targets)
    ]
    modality = "image" if pool == "images" else "text"
    names = [f"{name}:{number}" for number in range(queries)]
    return RetrievalSet(name, "t->i", k, modality, names, relevant, ids), vectors


SETS = [a_set("one", "images"), a_set("two", "texts", k=10, seed=1, noise=0.8)]
VECTORS = {test_set.name: vectors for test_set, vectors in SETS}


def run(store, sets=None, vectors=None, **options):
    return evaluate(
        [test_set for test_set, _ in SETS] if sets is None else sets,
        VECTORS if vectors is None else vectors,
        store,
        instruction_choice="the first of four",
        **options,
    )


def test_scores_equal_a_plain_recount_in_both_pools(store):
    evaluation = run(store, modality_of=lambda key: "image" if key.startswith("images") else "text")
    means = {"local": [], "global": []}
    for (test_set, vectors), scores in zip(SETS, evaluation.sets, strict=True):
        for pool, found in (("local", scores.local_pool), ("global", scores.global_pool)):
            ids = list(test_set.pool) if pool == "local" else IDS
            rows = [IDS.index(key) for key in ids]
            _, order = exact_reference(vectors, CORPUS[rows], ids, min(50, len(ids)))
            answers = [np.array([ids.index(key) for key in keys]) for keys in test_set.relevant]
            judged = metrics.judge(order, answers)
            assert found.mrr.mean == pytest.approx(judged.reciprocal_rank(50).mean())
            assert found.average_precision.mean == pytest.approx(
                judged.average_precision(50).mean()
            )
            assert found.ndcg.mean == pytest.approx(judged.ndcg(10).mean())
            assert found.recall[50].mean == pytest.approx(judged.recall(50).mean())
            retrieved = [[ids[row] for row in line] for line in order]
            assert found.size == len(ids)
            for cut in (1, 5, 10, 50):
                hits = [
                    any(key in answers for key in line[:cut])
                    for line, answers in zip(retrieved, test_set.relevant, strict=True)
                ]
                assert found.hit[cut].mean == pytest.approx(np.mean(hits))
                assert found.hit[cut].low <= found.hit[cut].mean <= found.hit[cut].high
                if cut == test_set.k:
                    means[pool].append(np.mean(hits))
        other = "texts" if test_set.candidate_modality == "image" else "images"
        wrong = [key.startswith(other) for line in retrieved for key in line[: test_set.k]]
        assert scores.global_pool.wrong_modality == pytest.approx(np.mean(wrong))
        assert scores.local_pool.wrong_modality is None
    assert evaluation.mean_local.mean == pytest.approx(np.mean(means["local"]))
    assert evaluation.mean_global.mean == pytest.approx(np.mean(means["global"]))
    assert evaluation.mean_local.low < evaluation.mean_local.mean < evaluation.mean_local.high


def test_the_global_pool_is_never_easier(store):
    for scores in run(store).sets:
        for cut, local in scores.local_pool.hit.items():
            assert scores.global_pool.hit[cut].mean <= local.mean
            assert scores.global_pool.chance[cut] < scores.local_pool.chance[cut]


def test_random_vectors_score_as_chance(store):
    test_set, _ = a_set("one", "images", queries=3000)
    scores = run(store, [test_set], {"one": random_unit(3000, 12, seed=9)}).sets[0].local_pool
    assert scores.hit[5].mean == pytest.approx(scores.chance[5], abs=0.04)


def test_the_queries_of_all_sets_are_sought_in_one_pass(store, monkeypatch):
    whole = run(store)
    asked = []

    def counted(queries, corpus, k, *, subset=None):
        asked.append((len(queries), subset is None))
        return top_k(queries, corpus, k, subset=subset)

    monkeypatch.setattr(retrieval_sets, "top_k", counted)
    run(store)
    assert asked == [(30, False), (30, False), (60, True)]
    # Seven queries' vectors at a time are as good, across the border between two sets too.
    monkeypatch.setattr(retrieval_sets, "_QUERY_BYTES", 7 * 12 * 4)
    again = run(store)
    assert max(count for count, _ in asked[3:]) == 7
    assert again.to_dict() == whole.to_dict()
    for name, found in whole.rankings.items():
        for one, other in zip(found, again.rankings[name], strict=True):
            np.testing.assert_array_equal(one.indices, other.indices)


def test_vectors_in_a_store_are_as_good_as_in_memory(store, tmp_path):
    stored = {
        one.name: write_store(tmp_path / one.name, vectors, one.query_ids, shard_rows=11)
        for one, vectors in SETS
    }
    assert run(store, vectors=stored).to_dict() == run(store).to_dict()


def test_what_was_retrieved_before_is_not_sought_again(store, monkeypatch):
    whole = run(store)

    def fail(*args, **options):
        pytest.fail("a query is sought again")

    monkeypatch.setattr(retrieval_sets, "top_k", fail)
    assert run(store, rankings=whole.rankings).to_dict() == whole.to_dict()


def test_an_answer_of_another_set_is_right_in_the_pool_of_everything_alone(store):
    """As M-BEIR has it for OVEN and InfoSeek, against a recount by ids."""
    test_set, vectors = SETS[0]
    rng = np.random.default_rng(5)
    # Each query: one image that it is far from, and the text that is nearest to it.
    _, texts = exact_reference(vectors, CORPUS[40:], IDS[40:], 1)
    far = (vectors @ CORPUS[:40].T).argmin(axis=1)
    relevant = [[IDS[a], IDS[40 + b]] for a, b in zip(far, texts[:, 0], strict=True)]
    relevant[3].append(IDS[40 + int(rng.integers(60))])
    crossed = dataclasses.replace(test_set, relevant=relevant)
    found = run(store, [crossed], {"one": vectors})
    scores, rows = found.sets[0], found.rows["one"]
    assert [rows.tolist() for rows in rows.relevant_local] == [[row] for row in far.tolist()]
    for pool, ids in ((scores.local_pool, IDS[:40]), (scores.global_pool, IDS)):
        _, order = exact_reference(vectors, CORPUS[: len(ids)], ids, min(50, len(ids)))
        there = [[one for one in right if one in ids] for right in relevant]
        answers = [np.array([ids.index(one) for one in right]) for right in there]
        judged = metrics.judge(order, answers)
        for cut in (1, 5, 10):
            assert pool.hit[cut].mean == pytest.approx(judged.hit(cut).mean())
            assert pool.recall[cut].mean == pytest.approx(judged.recall(cut).mean())
        assert pool.ndcg.mean == pytest.approx(judged.ndcg(10).mean())
        assert pool.chance[5] == pytest.approx(
            metrics.chance_hit_at_k(len(ids), [len(one) for one in there], 5).mean()
        )
    assert scores.local_pool.hit[5].mean == 0 and scores.global_pool.hit[5].mean > 0.9


def test_a_list_ends_where_its_pool_ends(store):
    test_set, vectors = SETS[0]
    pool = [f"images:{row}" for row in range(7)]
    small = dataclasses.replace(test_set, k=10, pool=pool, relevant=[["images:3"]] * 30)
    found = run(store, [small], {"one": vectors})
    indices = found.rankings["one"].local_pool.indices
    assert indices.shape == (30, 50)
    assert (indices[:, :7] >= 0).all() and (indices[:, 7:] == -1).all()
    scores = found.sets[0].local_pool
    assert scores.hit[10].mean == scores.recall[50].mean == scores.chance[50] == 1
    assert scores.chance[1] == pytest.approx(1 / 7)


def test_means_by_kind_of_task_and_of_what_was_held_out(store):
    sets = [
        dataclasses.replace(SETS[0][0], task="i->t", held_out=True),
        SETS[1][0],
        dataclasses.replace(SETS[1][0], name="three", held_out=True),
    ]
    found = run(store, sets, {**VECTORS, "three": VECTORS["two"][::-1]})
    local = {one.name: one.local_pool.hit[one.k].mean for one in found.sets}
    assert [(group.name, group.sets) for group in found.by_task] == [
        ("i->t", ("one",)),
        ("t->i", ("two", "three")),
    ]
    assert [(group.name, group.sets) for group in found.by_protocol] == [
        ("seen", ("two",)),
        ("held out", ("one", "three")),
    ]
    for group in (*found.by_task, *found.by_protocol):
        expected = np.mean([local[name] for name in group.sets])
        assert group.local_pool.mean == pytest.approx(expected)
        assert group.local_pool.low <= expected <= group.local_pool.high
    assert run(store).by_protocol == ()


def test_a_candidate_without_a_vector_is_never_found_and_still_counts(store):
    test_set = SETS[0][0]
    plain = run(store, [test_set]).sets[0]
    lost = [f"gone:{number}" for number in range(40)]
    # Every query has one more answer, that could not be encoded.
    both = [[*ids, lost[0]] for ids in test_set.relevant]
    more = dataclasses.replace(test_set, pool=[*test_set.pool, *lost], relevant=both)
    with pytest.raises(MarvelError, match=r"one, candidates of its pool.*no vector for 'gone:0'"):
        run(store, [more])
    found = run(store, [more], missing=lost).sets[0]
    assert found.missing == 40 and plain.missing == 0
    assert found.local_pool.hit == plain.local_pool.hit
    counts = np.array([len(ids) for ids in test_set.relevant])
    depth_5 = run(store, [test_set]).rankings["one"].local_pool.indices[:, :5]
    right = [
        sum(IDS[row] in ids for row in line)
        for line, ids in zip(depth_5, test_set.relevant, strict=True)
    ]
    assert found.local_pool.recall[5].mean == pytest.approx(np.mean(right / (counts + 1)))
    alone = dataclasses.replace(more, relevant=[[lost[1]]] * 30)
    nothing = run(store, [alone], missing=lost).sets[0].local_pool
    assert nothing.hit[50].mean == nothing.chance[50] == nothing.mrr.mean == 0


def test_a_query_without_a_vector_finds_nothing_and_still_counts(store):
    test_set, vectors = SETS[0]
    some = vectors.copy()
    some[::2] = 0
    found = run(store, [test_set], {"one": some}, modality_of=lambda key: "image")
    whole = run(store, [test_set], {"one": vectors})
    for now, before in zip(found.rankings["one"], whole.rankings["one"], strict=True):
        assert (now.indices[::2] == -1).all() and np.isneginf(now.scores[::2]).all()
        np.testing.assert_array_equal(now.indices[1::2], before.indices[1::2])
    assert found.sets[0].local_pool.hit[50].mean <= 0.5


def test_the_result_is_a_function_of_the_seed_and_serialises(store):
    first, again = run(store, seed=1).to_dict(), run(store, seed=1).to_dict()
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again)) == first
    assert first != run(store, seed=2).to_dict()
    assert first["instruction_choice"] == "the first of four"
    assert first["sets"][0]["local_pool"]["hit"]["5"].keys() == {"mean", "low", "high"}


def test_a_repeated_answer_or_pool_id_changes_nothing(store):
    test_set, _ = SETS[0]
    doubled = dataclasses.replace(
        test_set,
        relevant=[[*ids, *ids] for ids in test_set.relevant],
        pool=[*test_set.pool, *test_set.pool],
    )
    assert run(store, [doubled]).to_dict() == run(store, [test_set]).to_dict()


def test_a_test_set_of_an_mbeir_folder_is_read_with_its_answers_and_pool():
    task = TASKS[7]
    item = Item.of(text="in red")
    queries = [Query(f"10:{n}", item, task, ("10:5",), (), 10) for n in (2, 1, 3)]
    pool = [Candidate(f"10:{n}", item, "image") for n in (7, 5, 6)]
    qrels = {"10:1": frozenset({"10:6"}), "10:2": frozenset({"10:7", "10:5"})}
    found = RetrievalSet.of(TestSet("emoji_task7", "emoji", task, queries, pool, qrels, 5))
    assert (found.name, found.task, found.k) == ("emoji_task7", "(i,t)->i", 5)
    assert found.candidate_modality == "image"
    assert found.query_ids == ["10:2", "10:1", "10:3"]
    assert found.relevant == [["10:5", "10:7"], ["10:6"], []]  # the empty one is refused later
    assert list(found.pool) == ["10:7", "10:5", "10:6"]


def test_scann_is_measured_against_exact(store, tmp_path):
    pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")
    index = ScannIndex.build(store, path=tmp_path / "index")
    approximate = run(store, index=index).approximate
    assert approximate.recall == 1
    assert approximate.recall_by_set == {"one": 1, "two": 1}
    assert approximate.description == "brute force"
    assert approximate.speed.single > 0 and approximate.exact_speed.batched > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relevant": [[]] + [["images:1"]] * 29}, "query 'one:0' has no relevant"),
        (
            {"relevant": [["texts:1"]] + [["images:1"]] * 29},
            "no right answer of query 'one:0' .*'texts:1'",
        ),
        ({"relevant": [["nobody"]] + [["images:1"]] * 29}, "no vector for 'nobody'"),
        ({"relevant": [["images:1"]] * 29}, "answers for 29"),
        ({"pool": []}, "one: its pool holds no candidate"),
        ({"pool": [*IDS, "nobody"]}, "no vector for 'nobody'"),
        ({"name": "other"}, "other: expected 30 query vectors, found none"),
        ({"query_ids": ["q"], "relevant": [["images:1"]]}, "expected 1 query vectors, found 30"),
    ],
)
def test_a_set_that_cannot_be_scored_is_refused(store, changes, message):
    with pytest.raises(MarvelError, match=message):
        run(store, [dataclasses.replace(SETS[0][0], **changes)])
