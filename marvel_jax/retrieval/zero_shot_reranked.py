"""A test of a set (`data.protocols`) after a reranker: by P(Yes) alone and fused, beside retrieval.

The orders are M-BEIR's (`reranked_scores.reordered`). What holds for a gallery before holds after:
a right answer that scores as a wrong one stands behind it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from marvel_jax.data.protocols.protocol import Metric, Test
from marvel_jax.retrieval import metrics
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.fusion import Form
from marvel_jax.retrieval.fusion_report import Verdict, verdict
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.reranked_scores import ALONE, Cost, reordered
from marvel_jax.retrieval.zero_shot import Ranked, TestScores, group, score, values

Parts = Mapping[str, tuple[TestScores, np.ndarray]]
"""By "retrieval", "reranked", "fused", and by "change_reranked", "change_fused" the paired
differences of the main score to retrieval: scores, and draws of the main one for groups."""


@dataclass(frozen=True)
class RerankedTest:
    """A test before and after a reranker.

    main: the label that retrieval's score and the changes are of. top: results of a query that were
    reranked, at most. weight: of the fusion, in its form. The changes are paired differences;
    `verdict` is of the fused one. seconds: of the pairs that were scored, over all resumes.
    """

    name: str
    main: str
    num_queries: int
    top: int
    weight: float
    retrieval: Interval
    reranked: dict[str, Interval]
    fused: dict[str, Interval]
    change_reranked: Interval
    change_fused: Interval
    verdict: Verdict
    pairs: int
    seconds: float
    seconds_a_query: float

    @classmethod
    def of(cls, parts: Parts, *, top: int, weight: float, cost: Cost) -> "RerankedTest":
        """From what `score_orders` made."""
        before, _ = parts["retrieval"]
        changes = {
            order: parts[f"change_{order}"][0].scores[before.main]
            for order in ("reranked", "fused")
        }
        return cls(
            name=before.name,
            main=before.main,
            num_queries=before.num_queries,
            top=top,
            weight=weight,
            retrieval=before.scores[before.main],
            reranked=parts["reranked"][0].scores,
            fused=parts["fused"][0].scores,
            change_reranked=changes["reranked"],
            change_fused=changes["fused"],
            verdict=verdict(changes["fused"]),
            pairs=cost.pairs,
            seconds=cost.seconds,
            seconds_a_query=cost.seconds / before.num_queries,
        )


@dataclass(frozen=True)
class RerankedGroup:
    """Means of the main score over the tests of a group that are there, of `of` in all."""

    name: str
    tests: tuple[str, ...]
    of: int
    retrieval: Interval
    reranked: Interval
    fused: Interval
    change_reranked: Interval
    change_fused: Interval

    @property
    def verdict(self) -> Verdict:
        """Of the fused one's change."""
        return verdict(self.change_fused)


def reorder(
    test: Test, ranked: Ranked, p_yes: np.ndarray, *, weight: float, form: Form
) -> dict[str, TopK]:
    """The lists by P(Yes) alone ("reranked") and by the fused score ("fused").

    Args:
      test: whose lists they are.
      ranked: what its queries found.
      p_yes: float [Q, top], of the first results of each query.
      weight: of the fusion.
      form: of the fusion.
    """
    last = None
    if test.answers[0].gallery is not None:
        last = metrics.relevance(ranked.found.indices[:, : p_yes.shape[1]], ranked.right)
    return {
        "reranked": reordered(ranked.found, p_yes, weight=ALONE, form="alpha", last=last),
        "fused": reordered(ranked.found, p_yes, weight=weight, form=form, last=last),
    }


def score_orders(
    test: Test, metric: Metric, ranked: Ranked, orders: Mapping[str, TopK], *, seed: int
) -> Parts:
    """Scores the lists of a test in each order, and how they differ from retrieval's.

    Paired: the same queries are drawn for both, so only what reranking did to a query counts.
    """
    before = values(ranked, test.answers, metric, metric.main)
    parts: dict[str, Any] = {"retrieval": score(test, metric, ranked, seed=seed)}
    for order, lists in orders.items():
        after = ranked._replace(found=lists)
        parts[order] = score(test, metric, after, seed=seed)
        change = values(after, test.answers, metric, metric.main) - before
        draws = metrics.bootstrap_means(change, seed=seed)
        interval = metrics.interval_of(float(change.mean()), draws)
        scores, _ = parts[order]
        parts[f"change_{order}"] = (replace(scores, scores={scores.main: interval}), draws)
    return parts


def group_orders(
    groups: Mapping[str, Sequence[str]], scored: Sequence[Parts]
) -> tuple[RerankedGroup, ...]:
    """Means over tests of every part, as `zero_shot.group` makes them."""
    if not scored:
        return ()
    means = {part: group(groups, [one[part] for one in scored]) for part in scored[0]}
    return tuple(
        RerankedGroup(
            one.name,
            one.tests,
            one.of,
            **{part: found[place].score for part, found in means.items()},
        )
        for place, one in enumerate(means["retrieval"])
    )
