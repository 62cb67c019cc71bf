"""What reranking did to each set: hit@k before and after, with paired intervals."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import metrics
from marvel_jax.retrieval.fusion import RECALL_ALONE, FusionWeights, Reranked, hits
from marvel_jax.retrieval.metrics import Interval

Verdict = Literal["helps", "hurts", "undecided"]


def verdict(change: Interval) -> Verdict:
    """Whether the interval of a change lies on one side of zero."""
    if change.low > 0:
        return "helps"
    return "hurts" if change.high < 0 else "undecided"


@dataclass(frozen=True)
class Comparison:
    """One set with and without reranking: hit@k, and the paired difference."""

    name: str
    k: int
    num_queries: int
    weight: float
    recall: Interval
    fused: Interval
    change: Interval

    @property
    def verdict(self) -> Verdict:
        """Whether the interval of the change lies on one side of zero."""
        return verdict(self.change)


@dataclass(frozen=True)
class FusionReport:
    """Every set, and the mean over sets."""

    sets: tuple[Comparison, ...]
    mean_recall: float
    mean_fused: float
    mean_change: Interval

    @cached_property
    def hurts(self) -> tuple[str, ...]:
        """The sets that reranking makes worse."""
        return tuple(one.name for one in self.sets if one.verdict == "hurts")

    def lines(self) -> list[str]:
        """As a table for a person."""
        rows = [f"{'set':<22}{'queries':>8}  {'weight':<8}{'recall':<8}{'fused':<8}change"]
        for one in self.sets:
            low, high = one.change.low, one.change.high
            rows.append(
                f"{one.name:<22}{one.num_queries:>8,}  {one.weight:<8.2f}{one.recall.mean:<8.3f}"
                f"{one.fused.mean:<8.3f}{one.change.mean:+.3f} [{low:+.3f}, {high:+.3f}] "
                f"{one.verdict}"
            )
        mean = self.mean_change
        rows.append(
            f"mean: {self.mean_recall:.3f} -> {self.mean_fused:.3f}, {mean.mean:+.3f} "
            f"[{mean.low:+.3f}, {mean.high:+.3f}]"
        )
        return rows


def compare(
    test: Sequence[Reranked], weights: FusionWeights, *, seed: int = 0, draws: int = 2000
) -> FusionReport:
    """Every set before and after reranking, with paired bootstrap intervals of the change.

    Paired: the same queries are drawn for both, so only what reranking did to a query counts.

    Raises:
      MarvelError: a set has no weight, or holds queries that its weight was fitted on.
    """
    if not test:
        raise MarvelError("There is no set to compare.")
    found: list[Comparison] = []
    means: list[np.ndarray] = []
    for number, one in enumerate(test):
        weights.refuse_fitted(one.name, one.query_ids, one.identities)
        weight = weights.of(one.name)
        before = hits(one, weight=RECALL_ALONE[weights.form], form=weights.form)
        after = hits(one, weight=weight, form=weights.form)
        set_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        change = after - before
        resampled = metrics.bootstrap_means(change, seed=set_seed, draws=draws)
        means.append(resampled)
        found.append(
            Comparison(
                name=one.name,
                k=one.k,
                num_queries=len(before),
                weight=weight,
                recall=metrics.bootstrap_interval(before, seed=set_seed, draws=draws),
                fused=metrics.bootstrap_interval(after, seed=set_seed, draws=draws),
                change=metrics.interval_of(float(change.mean()), resampled),
            )
        )
    mean = float(np.mean([one.change.mean for one in found]))
    return FusionReport(
        sets=tuple(found),
        mean_recall=float(np.mean([one.recall.mean for one in found])),
        mean_fused=float(np.mean([one.fused.mean for one in found])),
        mean_change=metrics.interval_of(mean, np.mean(means, axis=0)),
    )
