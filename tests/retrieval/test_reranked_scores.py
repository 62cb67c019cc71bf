"""Reranked and fused orders against plain Python, and their scores beside retrieval's."""

import dataclasses
import json

import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import metrics
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.fusion import FusionWeights
from marvel_jax.retrieval.protocols import Evaluation, GroupScores, SetScores, score_pool, seed_of
from marvel_jax.retrieval.reranked_scores import (
    Cost,
    Judgement,
    fixed_weights,
    score_reranked,
)
from marvel_jax.retrieval.retrieval_sets import Rankings, SetRows

DEPTH, TOP, QUERIES = 12, 8, 40


def ranking(rng, *, ends: int = DEPTH) -> TopK:
    rows = np.array([rng.permutation(60)[:DEPTH] for _ in range(QUERIES)], np.int32)
    scores = np.sort(rng.uniform(0.2, 0.9, rows.shape))[:, ::-1].astype(np.float32)
    rows[:, ends:], scores[:, ends:] = -1, -np.inf
    return TopK(scores, rows)


def evaluation(names=("a", "b"), *, ends=DEPTH) -> tuple[Evaluation, dict, dict]:
    """Made-up rankings, a reranker that often knows the answer, and query ids."""
    rng = np.random.default_rng(0)
    sets, rankings, rows, judgements = [], {}, {}, {}
    for number, name in enumerate(names):
        both = Rankings(ranking(rng, ends=ends), ranking(rng))
        relevant = [np.array([line[rng.integers(0, 6)], 77]) for line in both.local_pool.indices]
        judged = [metrics.judge(one.indices, relevant) for one in both]
        made = {"size": 90, "k": 5, "seed": seed_of(0, number), "findable": np.ones(QUERIES)}
        pools = [score_pool(one, **made) for one in judged]
        sets.append(SetScores(name, "t->i", 5, QUERIES, *pools))
        rankings[name], rows[name] = both, SetRows(np.arange(60), relevant, relevant)
        p_yes = [
            np.clip(0.6 * one.right[:, :TOP] + rng.random((QUERIES, TOP)) * 0.8, 0, 1)
            for one in judged
        ]
        judgements[name] = Judgement(*p_yes)
    mean = sets[0].local_pool.hit[5]
    found = Evaluation(tuple(sets), mean, mean, "", None, rankings, rows=rows)
    ids = {name: [f"{name}:{query}" for query in range(QUERIES)] for name in names}
    return found, judgements, ids


def plain_order(rows, cosines, p_yes, score):
    """The first results sorted by score, equal ones as they were; the others behind them."""
    listed = [place for place in range(TOP) if rows[place] >= 0]
    best = sorted(listed, key=lambda place: -score(float(cosines[place]), float(p_yes[place])))
    return [int(rows[place]) for place in best] + [-1] * (TOP - len(best)) + rows[TOP:].tolist()


@pytest.mark.parametrize("ends", [DEPTH, 6])
def test_orders_and_scores_are_those_of_plain_python(ends):
    found, judgements, ids = evaluation(ends=ends)
    weights = FusionWeights("add", "task", {"a": 0.5, "b": 2.0}, {}, (), frozenset())
    both = {"local": weights, "global": fixed_weights(0.25, ["a", "b"])}
    reranked = score_reranked(found, ids, judgements, both, cost=Cost(100, 4.0), seed=3)
    forms = {
        ("a", "local"): lambda cosine, p: cosine + 0.5 * p,
        ("b", "local"): lambda cosine, p: cosine + 2.0 * p,
        ("a", "global"): lambda cosine, p: 0.25 * cosine + 0.75 * p,
        ("b", "global"): lambda cosine, p: 0.25 * cosine + 0.75 * p,
    }
    for place, pool in enumerate(("local", "global")):
        scored = {one.name: one for one in reranked.pools[pool].sets}
        for name in ("a", "b"):
            before, p_yes = found.rankings[name][place], judgements[name][place]
            relevant = found.rows[name].relevant
            for order, form in (
                ("reranked", lambda cosine, p: p),
                ("fused", forms[name, pool]),
            ):
                expected = np.array(
                    [
                        plain_order(rows, cosines, p, form)
                        for rows, cosines, p in zip(
                            before.indices, before.scores, p_yes, strict=True
                        )
                    ]
                )
                after = reranked.orders[name][order][place]
                np.testing.assert_array_equal(after.indices, expected)
                assert (np.diff(after.scores[:, : min(ends, TOP)]) <= 0).all()
                assert np.isneginf(after.scores[:, TOP:]).all()
                judged = metrics.judge(expected, relevant)
                scores = getattr(scored[name], order)
                assert scores.hit[5].mean == pytest.approx(judged.hit(5).mean())
                assert scores.ndcg.mean == pytest.approx(judged.ndcg(10).mean())
                assert scores.chance == (found.sets[0].local_pool.chance)
                change = getattr(scored[name], f"change_{order}")
                was = metrics.hit_at_k(before.indices, relevant, 5).mean()
                assert change.mean == pytest.approx(judged.hit(5).mean() - was)
                assert scored[name].retrieval.mean == pytest.approx(was)
        means = [one.fused.hit[5].mean for one in scored.values()]
        assert reranked.pools[pool].mean_fused == pytest.approx(np.mean(means))
    # Here the reranker knows more than chance, so that something was really reordered.
    assert reranked.pools["global"].mean_reranked != reranked.pools["global"].mean_retrieval


def test_kinds_of_task_have_their_means():
    found, judgements, ids = evaluation(("a", "b", "c"))
    groups = (
        GroupScores("t->i", ("a", "c"), found.mean_local, found.mean_global),
        GroupScores("i->t", ("b",), found.mean_local, found.mean_global),
    )
    found = dataclasses.replace(found, by_task=groups, by_protocol=groups[:1])
    weights = dict.fromkeys(("local", "global"), fixed_weights(0.5, ["a", "b", "c"]))
    pools = score_reranked(found, ids, judgements, weights, cost=Cost(1, 1.0)).pools
    for pool in pools.values():
        first, second = pool.by_task
        assert first.sets == ("a", "c") and pool.by_protocol == (first,)
        kept = [one for one in pool.sets if one.name != "b"]
        assert first.retrieval == pytest.approx(np.mean([one.retrieval.mean for one in kept]))
        assert first.reranked == pytest.approx(np.mean([one.reranked.hit[5].mean for one in kept]))
        assert first.fused == pytest.approx(np.mean([one.fused.hit[5].mean for one in kept]))
        assert second.fused == pool.sets[1].fused.hit[5].mean
        assert second.retrieval == pool.sets[1].retrieval.mean
        assert second != first


def test_it_serialises_with_its_cost():
    found, judgements, ids = evaluation()
    weights = dict.fromkeys(("local", "global"), fixed_weights(0.5, ["a", "b"]))
    facts = score_reranked(found, ids, judgements, weights, cost=Cost(100, 4.0)).to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cost"] == {"pairs": 100, "seconds": 4.0, "pairs_per_second": 25.0}
    assert facts["pools"]["local"]["weights"]["form"] == "alpha"
    assert Cost(5, 0.0).pairs_per_second == 0


def test_what_cannot_be_judged_is_refused():
    found, judgements, ids = evaluation()
    weights = dict.fromkeys(("local", "global"), fixed_weights(0.5, ["a", "b"]))
    few = {name: Judgement(*(one[:, :4] for one in both)) for name, both in judgements.items()}
    with pytest.raises(MarvelError, match=r"a: 4 results.*first 5"):
        score_reranked(found, ids, few, weights, cost=Cost(0, 0))
    leaked = FusionWeights("add", "task", {"a": 1, "b": 1}, {}, (), frozenset({"b:b:3"}))
    with pytest.raises(MarvelError, match="b: 1 of 40 queries were used to fit"):
        score_reranked(found, ids, judgements, {**weights, "global": leaked}, cost=Cost(0, 0))
    with pytest.raises(MarvelError, match=r"weight 1\.5"):
        fixed_weights(1.5, ["a"])
