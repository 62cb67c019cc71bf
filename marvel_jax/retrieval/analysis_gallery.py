"""Searches to look at: for each set some that went well and some that did not."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from marvel_jax.data.items import Item
from marvel_jax.retrieval.analysis import Candidates, JudgedSet
from marvel_jax.retrieval.report_examples import Example, Hit, example_dict


@dataclass(frozen=True)
class Gallery:
    """Searches of one set in the pool of everything, drawn by seed among its hits and misses.

    A hit is a query with a right answer among the first `k`; `num_successes` and `num_failures`
    count them all.
    """

    name: str
    task: str
    k: int
    successes: tuple[Example, ...]
    failures: tuple[Example, ...]
    num_successes: int
    num_failures: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; pictures are given by name."""
        return {
            "name": self.name,
            "k": self.k,
            "num_successes": self.num_successes,
            "num_failures": self.num_failures,
            "successes": [example_dict(one) for one in self.successes],
            "failures": [example_dict(one) for one in self.failures],
        }


def gallery(
    one: JudgedSet,
    candidates: Candidates,
    *,
    query: Callable[[int], Item],
    count: int = 2,
    shown: int = 5,
    seed: int = 0,
) -> Gallery:
    """Draws searches of a set.

    Args:
      one: the set.
      candidates: who its rows are.
      query: number of a query in the set -> its item, with the instruction it was given.
      count: how many successes, and how many failures.
      shown: how many results of each; more where the first right one is among the first k.
      seed: of the draw.
    """
    _, hits = one.hits()
    rng = np.random.default_rng(seed)
    right, wrong = np.flatnonzero(hits > 0), np.flatnonzero(hits == 0)
    # A query without results could not be read, so it cannot be shown either.
    shown_wrong = wrong[one.union.indices[wrong, 0] >= 0]
    drawn = [rng.permutation(some)[:count].tolist() for some in (right, shown_wrong)]
    well, badly = (
        tuple(make_example(one, number, candidates, query=query, shown=shown) for number in some)
        for some in drawn
    )
    return Gallery(one.name, one.task, one.k, well, badly, len(right), len(wrong))


def make_example(
    one: JudgedSet,
    number: int,
    candidates: Candidates,
    *,
    query: Callable[[int], Item],
    shown: int,
) -> Example:
    """One search in the pool of everything. A hit below `shown` takes the last place shown."""
    ranking = one.union
    rows, scores = ranking.indices[number], ranking.scores[number]
    answers = set(one.relevant[number].tolist())
    ranks = np.flatnonzero(rows[: max(one.k, shown)] >= 0).tolist()
    first = next((rank for rank in ranks if int(rows[rank]) in answers), None)
    chosen = ranks[:shown]
    if first is not None and first >= shown:
        chosen = [*ranks[: shown - 1], first]
    # Rows beyond the store are answers without a vector: they cannot be shown.
    known = sorted(row for row in answers if row < len(candidates.store))
    return Example(
        id=one.query_ids[number],
        query=query(number),
        hits=tuple(
            Hit(
                id=candidates.store.ids[int(rows[rank])],
                item=candidates.item(int(rows[rank])),
                score=float(scores[rank]),
                right=int(rows[rank]) in answers,
                rank=rank + 1,
            )
            for rank in chosen
        ),
        answer=candidates.item(known[0]) if known else None,
        num_answers=len(answers),
        wanted=one.wanted,
    )
