"""Two runs side by side on the same queries, with what of their difference is more than chance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.analysis import JudgedSet
from marvel_jax.retrieval.significance import PairedTest, holm, paired_mean_test, paired_test

POOLS: tuple[Literal["local", "global"], ...] = ("local", "global")


class SetComparison(NamedTuple):
    """One set in one pool: hit@k of both runs, and the test of their difference."""

    name: str
    task: str
    k: int
    queries: int
    ours: float
    theirs: float
    test: PairedTest


@dataclass(frozen=True)
class Comparison:
    """Two runs: `ours` and `theirs` name them.

    sets, means: by pool. A set's adjusted p-value is Holm's over the sets of that pool; the mean
    is one test and stands alone. notes: what the reader of a difference must know.
    """

    ours: str
    theirs: str
    sets: Mapping[str, tuple[SetComparison, ...]]
    means: Mapping[str, SetComparison]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""

        def plain(one: SetComparison) -> dict[str, Any]:
            test = one.test._asdict() | {"difference": one.test.difference._asdict()}
            return one._asdict() | {"test": test}

        return {
            "ours": self.ours,
            "theirs": self.theirs,
            "sets": {pool: [plain(one) for one in sets] for pool, sets in self.sets.items()},
            "means": {pool: plain(one) for pool, one in self.means.items()},
            "notes": list(self.notes),
        }


def compare(
    ours: Sequence[JudgedSet],
    theirs: Sequence[JudgedSet],
    *,
    names: tuple[str, str],
    notes: Sequence[str] = (),
    seed: int = 0,
) -> Comparison:
    """Tests every set that both runs have, and their mean, in both pools.

    Args:
      ours: the run that the report is about.
      theirs: the run beside it.
      names: what to call them.
      notes: what else differs between them.
      seed: of resamples and swaps.

    Raises:
      MarvelError: no set in common, or a set with other queries.
    """
    there = {one.name: one for one in theirs}
    pairs = [(one, there[one.name]) for one in ours if one.name in there]
    if not pairs:
        raise MarvelError(
            f"The two runs have no test set in common: {', '.join(one.name for one in ours)}; and "
            f"{', '.join(there)}. Compare runs on the same data."
        )
    alone = sorted({one.name for one in ours} ^ set(there))
    told = list(notes)
    if alone:
        told.append(f"Only one of the runs has {', '.join(alone)}: left out.")
    told += [
        f"{mine.name}: the pools differ, {mine.pool:,} and {other.pool:,} candidates."
        for mine, other in pairs
        if mine.pool != other.pool
    ]
    orders = [_order(mine, other) for mine, other in pairs]
    sets: dict[str, tuple[SetComparison, ...]] = {}
    means: dict[str, SetComparison] = {}
    for side, pool in enumerate(POOLS):
        mine = [one.hits()[side] for one, _ in pairs]
        other = [one.hits()[side][order] for (_, one), order in zip(pairs, orders, strict=True)]
        seeds = np.random.SeedSequence([seed, side]).generate_state(len(pairs) + 1)
        tests = holm(
            [
                paired_test(mine[number], other[number], seed=int(seeds[number]))
                for number in range(len(pairs))
            ]
        )
        sets[pool] = tuple(
            SetComparison(
                name=one.name,
                task=one.task,
                k=one.k,
                queries=len(one.query_ids),
                ours=float(mine[number].mean()),
                theirs=float(other[number].mean()),
                test=tests[number],
            )
            for number, (one, _) in enumerate(pairs)
        )
        means[pool] = SetComparison(
            name="mean",
            task="",
            k=0,
            queries=sum(len(one) for one in mine),
            ours=float(np.mean([one.mean() for one in mine])),
            theirs=float(np.mean([one.mean() for one in other])),
            test=paired_mean_test(mine, other, seed=int(seeds[-1])),
        )
    return Comparison(*names, sets=sets, means=means, notes=tuple(told))


def _order(ours: JudgedSet, theirs: JudgedSet) -> np.ndarray:
    """Int64 [Q]: where each of our queries is among theirs."""
    place = {id: number for number, id in enumerate(theirs.query_ids)}
    missing = [id for id in ours.query_ids if id not in place]
    if missing or len(place) != len(ours.query_ids) or ours.k != theirs.k:
        detail = f", for one {missing[0]!r} is ours alone" if missing else ""
        raise MarvelError(
            f"{ours.name}: the two runs have other queries ({len(ours.query_ids)} judged at "
            f"k={ours.k}, and {len(place)} at k={theirs.k}{detail}). Compare runs on the same "
            "data."
        )
    return np.array([place[id] for id in ours.query_ids], np.int64)
