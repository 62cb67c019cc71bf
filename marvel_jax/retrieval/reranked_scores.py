"""An evaluation's rankings in a reranker's order and in the fused one, scored beside retrieval."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import metrics
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.fusion import Form, FusionWeights, Reranked, fuse
from marvel_jax.retrieval.fusion_report import FusionReport, compare
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.protocols import (
    Evaluation,
    GroupScores,
    PoolScores,
    plain,
    score_pool,
    seed_of,
)
from marvel_jax.retrieval.retrieval_sets import Rankings

Pool = Literal["local", "global"]
POOLS: tuple[Pool, ...] = ("local", "global")

ALONE = 0.0  # of the cosine, in the form alpha: P(Yes) decides


class Judgement(NamedTuple):
    """What a reranker says of a set's lists: P(Yes), float [Q, top], of the first `top` results."""

    local_pool: np.ndarray
    global_pool: np.ndarray


class Cost(NamedTuple):
    """What the reranker's scores took: pairs scored, and seconds where they were scored."""

    pairs: int
    seconds: float

    @property
    def pairs_per_second(self) -> float:
        """0 where nothing was timed."""
        return self.pairs / self.seconds if self.seconds else 0.0


@dataclasses.dataclass(frozen=True)
class RerankedSet:
    """A set in one pool, reranked (P(Yes) alone) and fused, beside the retrieval's hit@k.

    weight: of the fusion. The changes are paired differences of hit@k to retrieval; `verdict` is
    of the fused one: "helps", "hurts" or "undecided".
    """

    name: str
    k: int
    num_queries: int
    weight: float
    retrieval: Interval
    reranked: PoolScores
    fused: PoolScores
    change_reranked: Interval
    change_fused: Interval
    verdict: str


class RerankedGroup(NamedTuple):
    """Plain means of hit@k over the sets of a kind of task, or over seen or held-out ones."""

    name: str
    sets: tuple[str, ...]
    retrieval: float
    reranked: float
    fused: float


@dataclasses.dataclass(frozen=True)
class RerankedPool:
    """All sets in one pool, and the means over sets and over the evaluation's groups of them."""

    sets: tuple[RerankedSet, ...]
    weights: FusionWeights
    mean_retrieval: float
    mean_reranked: float
    mean_fused: float
    mean_change_reranked: Interval
    mean_change_fused: Interval
    by_task: tuple[RerankedGroup, ...] = ()
    by_protocol: tuple[RerankedGroup, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        own = {one.name: getattr(self, one.name) for one in dataclasses.fields(self)}
        sets = [plain(dataclasses.asdict(one)) for one in self.sets]
        return {**plain(own), "sets": sets, "weights": self.weights.to_dict()}


@dataclasses.dataclass(frozen=True)
class RerankedEvaluation:
    """A reranker's work on one evaluation.

    orders: set -> order ("reranked", "fused") -> rankings. Their scores are P(Yes) and the fused
    score; a result behind the first `top` keeps its place behind them, with the score -inf.
    """

    pools: Mapping[Pool, RerankedPool]
    orders: Mapping[str, Mapping[str, Rankings]]
    cost: Cost

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without the orders."""
        cost = {**self.cost._asdict(), "pairs_per_second": self.cost.pairs_per_second}
        return {"cost": cost, "pools": {name: pool.to_dict() for name, pool in self.pools.items()}}


def score_reranked(
    evaluation: Evaluation,
    query_ids: Mapping[str, Sequence[str]],
    judgements: Mapping[str, Judgement],
    weights: Mapping[Pool, FusionWeights],
    *,
    cost: Cost,
    query_keys: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> RerankedEvaluation:
    """Scores every set of an evaluation after a reranker, in both pools.

    Args:
      evaluation: with its rankings and rows.
      query_ids: of each set, in the order of its rankings.
      judgements: by set, P(Yes) of the first results of each query; what stands beside row -1
        does not count.
      weights: of the fusion, for each pool.
      cost: of the judgements.
      query_keys: of each set, `fusion.query_key` of its queries; None tells them by their ids.
      seed: of the bootstrap.

    Raises:
      MarvelError: fewer results were judged than a set's score looks at, a set has no weight, or
        its weight was fitted on its own queries.
    """
    pools: dict[Pool, RerankedPool] = {}
    orders: dict[str, dict[str, dict[Pool, TopK]]] = {}
    for place, pool in enumerate(POOLS):
        lists = [
            _lists(evaluation, one.name, query_ids[one.name], one.k, judgements, place)
            for one in evaluation.sets
        ]
        if query_keys is not None:
            lists = [dataclasses.replace(one, keys=query_keys[one.name]) for one in lists]
        alone = fixed_weights(ALONE, [one.name for one in lists])
        reports = {
            "reranked": (alone, compare(lists, alone, seed=seed)),
            "fused": (weights[pool], compare(lists, weights[pool], seed=seed)),
        }
        found: dict[str, dict[str, PoolScores]] = {}
        for order, (used, _) in reports.items():
            for number, (one, listed) in enumerate(zip(evaluation.sets, lists, strict=True)):
                ranked = evaluation.rankings[one.name][place]
                weight = used.of(one.name)
                made = reordered(ranked, listed.p_yes, weight=weight, form=used.form)
                orders.setdefault(one.name, {}).setdefault(order, {})[pool] = made
                before = (one.local_pool, one.global_pool)[place]
                # Chance does not change with the order; what the pool holds is known from before.
                scores = score_pool(
                    metrics.judge(made.indices, listed.relevant),
                    size=before.size,
                    k=one.k,
                    seed=seed_of(seed, number),
                    findable=np.zeros(len(listed.query_ids)),
                )
                found.setdefault(one.name, {})[order] = dataclasses.replace(
                    scores, chance=before.chance
                )
        whole = _pool(found, reports["reranked"][1], reports["fused"][1], weights[pool])
        pools[pool] = dataclasses.replace(
            whole,
            by_task=_groups(evaluation.by_task, whole.sets),
            by_protocol=_groups(evaluation.by_protocol, whole.sets),
        )
    rankings = {
        name: {order: Rankings(both["local"], both["global"]) for order, both in made.items()}
        for name, made in orders.items()
    }
    return RerankedEvaluation(pools, rankings, cost)


def _pool(
    found: Mapping[str, Mapping[str, PoolScores]],
    alone: FusionReport,
    fused: FusionReport,
    weights: FusionWeights,
) -> RerankedPool:
    return RerankedPool(
        sets=tuple(
            RerankedSet(
                name=after.name,
                k=after.k,
                num_queries=after.num_queries,
                weight=after.weight,
                retrieval=after.recall,
                reranked=found[after.name]["reranked"],
                fused=found[after.name]["fused"],
                change_reranked=only.change,
                change_fused=after.change,
                verdict=after.verdict,
            )
            for only, after in zip(alone.sets, fused.sets, strict=True)
        ),
        weights=weights,
        mean_retrieval=fused.mean_recall,
        mean_reranked=alone.mean_fused,
        mean_fused=fused.mean_fused,
        mean_change_reranked=alone.mean_change,
        mean_change_fused=fused.mean_change,
    )


def _groups(
    groups: Sequence[GroupScores], sets: Sequence[RerankedSet]
) -> tuple[RerankedGroup, ...]:
    by_name = {one.name: one for one in sets}
    found = []
    for group in groups:
        held = [by_name[name] for name in group.sets]
        means = (
            [one.retrieval.mean for one in held],
            [one.reranked.hit[one.k].mean for one in held],
            [one.fused.hit[one.k].mean for one in held],
        )
        found.append(RerankedGroup(group.name, group.sets, *(float(np.mean(m)) for m in means)))
    return tuple(found)


def _lists(
    evaluation: Evaluation,
    name: str,
    query_ids: Sequence[str],
    k: int,
    judgements: Mapping[str, Judgement],
    place: int,
) -> Reranked:
    ranked, p_yes = evaluation.rankings[name][place], judgements[name][place]
    top = p_yes.shape[1]
    if top < k:
        raise MarvelError(
            f"{name}: {top} results of each query were reranked, but its score looks at the first "
            f"{k}: rerank at least {k} (--top)."
        )
    candidates = ranked.indices[:, :top]
    there = candidates >= 0
    return Reranked(
        name=name,
        k=k,
        query_ids=query_ids,
        candidates=candidates,
        recall=np.where(there, ranked.scores[:, :top], 0.0),
        p_yes=np.where(there, p_yes, 0.0),
        relevant=evaluation.rows[name].by_pool[place],
    )


def reordered(
    ranked: TopK,
    p_yes: np.ndarray,
    *,
    weight: float,
    form: Form,
    last: np.ndarray | None = None,
) -> TopK:
    """The first results by their fused scores; then the others as they were, with the score -inf.

    Args:
      ranked: cosines and rows, best first; -1 is none.
      p_yes: float [Q, top] of the first `top` results.
      weight: of the fusion.
      form: of the fusion.
      last: bool [Q, top], which of them stand behind all others of the same score; without it
        equal ones stay as they were.
    """
    top = p_yes.shape[1]
    candidates = ranked.indices[:, :top]
    there = candidates >= 0
    cosines = np.where(there, ranked.scores[:, :top], 0.0)
    scores = fuse(cosines, np.where(there, p_yes, 0.0), weight=weight, form=form)
    scores = np.where(there, scores, -np.inf)
    behind = np.zeros(scores.shape, bool) if last is None else last
    order = np.lexsort((behind, -scores), axis=-1)  # stable
    made = TopK(np.full(ranked.scores.shape, -np.inf, np.float32), ranked.indices.copy())
    made.scores[:, :top] = np.take_along_axis(scores, order, axis=1)
    made.indices[:, :top] = np.take_along_axis(candidates, order, axis=1)
    return made


def fixed_weights(weight: float, names: Sequence[str]) -> FusionWeights:
    """One weight of the cosine for all sets, 1 - weight for P(Yes), fitted on nothing.

    Raises:
      MarvelError: the weight is not between 0 and 1.
    """
    if not 0 <= weight <= 1:
        raise MarvelError(f"weight {weight}: give the cosine's share of the score, 0 to 1.")
    return FusionWeights(
        form="alpha",
        scope="global",
        weights=dict.fromkeys(names, weight),
        score={},
        grid=(weight,),
        fitted_on=frozenset(),
    )
