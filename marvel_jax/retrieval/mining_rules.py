"""Which candidates of a ranking become negatives: filters, ways to pick, and the known recipes.

Pure functions of one query's search result. What is thrown out and why is part of the answer.
"""

import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError

Pick = Literal["top", "random", "last", "pool", "modality"]

DROPPED = (
    "positive",
    "copy_of_positive",
    "copy",
    "outside_ranks",
    "above_threshold",
    "above_relative",
    "above_margin",
    "unscored",
    "teacher_says_yes",
    "right_modality_too_high",
    "wrong_modality_below_positive",
)
"""Why a candidate is dropped; the first that applies is its reason."""

GUARDS = frozenset(DROPPED[:-2])
"""Reasons for which a candidate may not be drawn from the pool either."""

KEPT = ("top", "random", "last", "c1", "c2", "pool")
"""How a candidate was chosen; `left` passed every filter and was not taken."""

LEFT = "left"


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How one query's negatives are chosen.

    Filters are off where they are None; a candidate must pass all that are on. Ranks count from
    1 over all that the search found, positives too. Similarities are cosines.

    Attributes:
      pick: `top`, `last` or `random` of what passes the filters; `pool` draws from the whole pool
        and not from the ranking; `modality` draws with equal chance from C1 (not the modality
        asked for, ranked above the first positive, or anywhere where no positive is found) and C2
        (of the modality asked for, ranked below `c2_below`), from the other where one is empty.
      k: how many.
      depth: how many of the search's results are looked at.
      threshold: drops a candidate more similar to the query than this.
      relative: drops one above this share of the best positive's similarity.
      margin: drops one more than this above the best positive's similarity.
      first_rank: drops what ranks before.
      last_rank: drops what ranks behind.
      teacher_above: drops one whose P(Yes) by a reranker is above this, and one without a score.
      c2_below: see `pick`.
      fill: `pool` draws what is missing to k from the whole pool, past the same filters of
        similarity; `none` leaves fewer.

    Source: U-MARVEL (specification 0.2, 4.3); `modality` from MM-Embed (Lin et al. 2024),
    `relative` from NV-Retriever (Moreira et al. 2024).
    """

    pick: Pick = "top"
    k: int = 5
    depth: int = 100
    threshold: float | None = 0.7
    relative: float | None = None
    margin: float | None = None
    first_rank: int = 1
    last_rank: int | None = None
    teacher_above: float | None = None
    c2_below: int = 45
    fill: Literal["pool", "none"] = "pool"

    def __post_init__(self) -> None:
        for name in ("k", "depth", "first_rank"):
            if getattr(self, name) < 1:
                raise MarvelError(f"{name}={getattr(self, name)}: give 1 or more.")
        if self.last_rank is not None and self.last_rank < self.first_rank:
            raise MarvelError(
                f"last_rank={self.last_rank} is before first_rank={self.first_rank}: no rank is "
                "between them."
            )
        if self.first_rank > self.depth:
            raise MarvelError(
                f"first_rank={self.first_rank} lies behind depth={self.depth}: look deeper."
            )
        if self.pick == "modality" and not 0 <= self.c2_below < self.depth:
            raise MarvelError(
                f"c2_below={self.c2_below} with depth={self.depth}: C2 would be empty for every "
                "query. Take ranks within the depth, as 45 of 50."
            )


@dataclasses.dataclass(frozen=True)
class Strategies:
    """A strategy for every query, and others for some kinds: (data set id, M-BEIR task id)."""

    default: Strategy = Strategy()
    by_task: Mapping[tuple[int, int], Strategy] = dataclasses.field(default_factory=dict)

    def of(self, dataset: int, task: int) -> Strategy:
        """The strategy of a kind of query."""
        return self.by_task.get((dataset, task), self.default)

    @property
    def depth(self) -> int:
        """The deepest look of all."""
        return max(one.depth for one in (self.default, *self.by_task.values()))

    @property
    def asks_teacher(self) -> bool:
        """Whether any of them filters by a reranker's scores."""
        used = (self.default, *self.by_task.values())
        return any(one.teacher_above is not None for one in used)

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: the default, and the others by "data set:task"."""
        return {
            "default": dataclasses.asdict(self.default),
            "by_task": {
                f"{dataset}:{task}": dataclasses.asdict(one)
                for (dataset, task), one in sorted(self.by_task.items())
            },
        }


_MINED_TASKS = ((0, 0), (2, 1), (2, 2), (0, 3), (5, 6), (5, 8), (7, 7))

PRESETS: dict[str, Strategies] = {
    # The paper's: five of the best with a similarity of at most 0.7.
    "filtered": Strategies(),
    "unfiltered": Strategies(Strategy(threshold=None)),
    # The released model's: the five best for VisualNews (both tasks), WebQA (both), OVEN (both)
    # and FashionIQ, five random ones of the whole pool for the other nine sets; no filter.
    "umarvel_two_strategy": Strategies(
        Strategy(pick="pool", threshold=None),
        {key: Strategy(threshold=None) for key in _MINED_TASKS},
    ),
    "modality_aware": Strategies(Strategy(pick="modality", k=1, depth=50, threshold=None)),
    "positive_aware": Strategies(Strategy(threshold=None, relative=0.95)),
}
"""Recipes by name: U-MARVEL's paper, none of its filter, its release, MM-Embed, NV-Retriever."""


class Ranked(NamedTuple):
    """One query's search result, best first; equal similarities are ordered by id."""

    similarities: np.ndarray  # [n] float32 cosines
    positive: np.ndarray  # [n] bool: a known positive
    copy_of_positive: np.ndarray  # [n] bool: has the content of one
    copy: np.ndarray  # [n] bool: has the content of one that ranks before
    right_modality: np.ndarray  # [n] bool: of the modality asked for
    positive_similarity: float  # of the best positive, wherever it ranks
    p_yes: np.ndarray | None = None  # [n] float64, NaN where a reranker gave no score

    @property
    def positive_rank(self) -> int | None:
        """The rank of the first positive, from 1."""
        return int(self.positive.argmax()) + 1 if self.positive.any() else None

    def first(self, depth: int) -> "Ranked":
        """The first `depth` results."""
        fields = self._asdict()
        cut = {name: one[:depth] for name, one in fields.items() if isinstance(one, np.ndarray)}
        return Ranked(**{**fields, **cut})


class Choice(NamedTuple):
    """What becomes of a ranking."""

    chosen: list[int]  # places in the ranking, in the order of the choice
    reasons: list[str]  # of each place: one of DROPPED, KEPT or LEFT
    missing: int  # how many are to be drawn from the pool


def stream(seed: int, query_id: str) -> np.random.Generator:
    """A query's own random numbers: no other query, no order and no machine changes them."""
    digest = hashlib.blake2b(f"{seed}:{query_id}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


def choose(ranked: Ranked, strategy: Strategy, rng: np.random.Generator) -> Choice:
    """Chooses up to k negatives of a ranking that is no longer than the strategy's depth."""
    reasons = _filtered(ranked, strategy)
    passed = np.flatnonzero(reasons == LEFT)
    wanted = strategy.k
    if strategy.pick == "pool":
        return Choice([], reasons.tolist(), wanted)
    if strategy.pick == "modality":
        chosen = _by_modality(ranked, strategy, reasons, rng)
    else:
        if strategy.pick == "random":
            passed = rng.permutation(passed)
        taken = passed[::-1][:wanted] if strategy.pick == "last" else passed[:wanted]
        chosen = taken.tolist()
        reasons[taken] = strategy.pick
    missing = wanted - len(chosen) if strategy.fill == "pool" else 0
    return Choice(chosen, reasons.tolist(), missing)


def too_similar(
    similarities: np.ndarray, strategy: Strategy, *, positive_similarity: float
) -> dict[str, np.ndarray]:
    """Reason -> bool [n]: what the filters of similarity drop."""
    limits = {
        "above_threshold": strategy.threshold,
        "above_relative": None,
        "above_margin": None,
    }
    if strategy.relative is not None:
        limits["above_relative"] = strategy.relative * positive_similarity
    if strategy.margin is not None:
        limits["above_margin"] = positive_similarity + strategy.margin
    # Both sides as the float32 that a person reads: 0.7 must not drop a cosine of float32(0.7).
    return {
        reason: similarities > np.float32(limit)
        for reason, limit in limits.items()
        if limit is not None
    }


def _filtered(ranked: Ranked, strategy: Strategy) -> np.ndarray:
    """[n] reasons: of those that pass all filters LEFT, of the others the first that drops it."""
    count = len(ranked.similarities)
    ranks = np.arange(1, count + 1)
    outside = ranks < strategy.first_rank
    if strategy.last_rank is not None:
        outside |= ranks > strategy.last_rank
    masks = {
        "positive": ranked.positive,
        "copy_of_positive": ranked.copy_of_positive,
        "copy": ranked.copy,
        "outside_ranks": outside,
        **too_similar(
            ranked.similarities, strategy, positive_similarity=ranked.positive_similarity
        ),
    }
    if strategy.teacher_above is not None:
        assert ranked.p_yes is not None
        masks["unscored"] = np.isnan(ranked.p_yes)
        masks["teacher_says_yes"] = ranked.p_yes > strategy.teacher_above
    if strategy.pick == "modality":
        above = ranks < (ranked.positive_rank or count + 1)
        masks["right_modality_too_high"] = ranked.right_modality & (ranks <= strategy.c2_below)
        masks["wrong_modality_below_positive"] = ~ranked.right_modality & ~above
    reasons = np.full(count, LEFT, dtype=object)
    for reason in reversed(DROPPED):
        if reason in masks:
            reasons[masks[reason]] = reason
    return reasons


def _by_modality(
    ranked: Ranked, strategy: Strategy, reasons: np.ndarray, rng: np.random.Generator
) -> list[int]:
    """Draws from C1 and C2, each with a chance of one half; marks what it draws."""
    passed = reasons == LEFT
    sets = {
        "c1": np.flatnonzero(passed & ~ranked.right_modality).tolist(),
        "c2": np.flatnonzero(passed & ranked.right_modality).tolist(),
    }
    chosen: list[int] = []
    while len(chosen) < strategy.k and (sets["c1"] or sets["c2"]):
        name, other = ("c1", "c2") if rng.random() < 0.5 else ("c2", "c1")
        drawn = name if sets[name] else other
        place = sets[drawn].pop(int(rng.integers(len(sets[drawn]))))
        reasons[place] = drawn
        chosen.append(place)
    return chosen
