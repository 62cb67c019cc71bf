"""Modality obedience: whether the pool of everything gives back the kind that was asked for.

In the global pool only the instruction says which modality is wanted. Here: what share of the
first k results is of that modality, what comes instead, from which data set, and how much of the
drop from the local to the global pool each of the two confusions explains.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from marvel_jax.retrieval.analysis import MODALITIES, Candidates, JudgedSet
from marvel_jax.retrieval.metrics import Interval, bootstrap_interval, relevance


@dataclass(frozen=True)
class SetObedience:
    """One test set in the pool of everything. Shares are of the first k results, 0 to 1.

    wanted: the modality asked for, with `share` of the results; `first` is its share of the very
    first results. by_modality, by_dataset: what the results are; each sums to 1.
    local, union: the main score in the two pools, and `drop` their difference over the same
    queries. It is the sum of two parts: `to_modality`, what leaving out every result of another
    modality would win back, and `to_datasets`, the rest: candidates of the right modality that
    the local pool does not have. A right answer that only the pool of everything has (OVEN and
    InfoSeek answer for each other) wins hits there: it makes them smaller, even negative.
    unsure: queries of which the stored results hold fewer than k of the wanted modality and no
    right one, so that `to_modality` may be larger by up to their share.
    """

    name: str
    task: str
    k: int
    wanted: str
    share: Interval
    first: float
    by_modality: Mapping[str, float]
    by_dataset: Mapping[str, float]
    local: float
    union: float
    drop: Interval
    to_modality: float
    to_datasets: float
    unsure: int


@dataclass(frozen=True)
class Obedience:
    """All sets. `confusion[wanted][found]`: shares of the results, every set weighing the same."""

    sets: tuple[SetObedience, ...]
    confusion: Mapping[str, Mapping[str, float]]
    datasets: tuple[str, ...]

    @property
    def mean(self) -> float:
        """The mean over sets of the share of results in the modality asked for."""
        return float(np.mean([one.share.mean for one in self.sets]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        sets = [asdict(one) for one in self.sets]
        for plain, one in zip(sets, self.sets, strict=True):
            plain["share"], plain["drop"] = one.share._asdict(), one.drop._asdict()
        return {
            "mean": self.mean,
            "sets": sets,
            "confusion": {wanted: dict(found) for wanted, found in self.confusion.items()},
        }


def obedience(sets: Sequence[JudgedSet], candidates: Candidates, *, seed: int = 0) -> Obedience:
    """What the instructed modality did to every set; `seed` is that of the bootstrap."""
    seeds = np.random.SeedSequence(seed).generate_state(len(sets))
    found = tuple(
        _judge(one, candidates, seed=int(number)) for one, number in zip(sets, seeds, strict=True)
    )
    confusion = {}
    for wanted in MODALITIES:
        rows = [one.by_modality for one in found if one.wanted == wanted]
        if rows:
            confusion[wanted] = {
                modality: float(np.mean([row.get(modality, 0.0) for row in rows]))
                for modality in MODALITIES
            }
    totals: dict[str, float] = {}
    for one in found:
        for dataset, share in one.by_dataset.items():
            totals[dataset] = totals.get(dataset, 0.0) + share
    return Obedience(found, confusion, tuple(sorted(totals)))


def _judge(one: JudgedSet, candidates: Candidates, *, seed: int) -> SetObedience:
    rows = one.union.indices
    first = rows[:, : one.k]
    present = first >= 0
    modality = candidates.modality(rows)
    wanted = MODALITIES.index(one.wanted)
    obeys = modality == wanted
    counted = np.maximum(present.sum(axis=1), 1)
    per_query = (obeys[:, : one.k] & present).sum(axis=1) / counted
    local, union = one.hits()
    filtered, unsure = _without_other_modalities(one, obeys, size=len(candidates.store))
    kinds = modality[:, : one.k][present]
    origins = candidates.dataset(first)[present]
    return SetObedience(
        name=one.name,
        task=one.task,
        k=one.k,
        wanted=one.wanted,
        share=bootstrap_interval(per_query, seed=seed),
        first=float(obeys[:, 0].mean()),
        by_modality={
            name: float((kinds == number).mean())
            for number, name in enumerate(MODALITIES)
            if (kinds == number).any()
        },
        by_dataset={
            candidates.dataset_name(int(number)): float((origins == number).mean())
            for number in np.unique(origins)
        },
        local=float(local.mean()),
        union=float(union.mean()),
        drop=bootstrap_interval(local - union, seed=seed),
        to_modality=float((filtered - union).mean()),
        to_datasets=float((local - filtered).mean()),
        unsure=unsure,
    )


def _without_other_modalities(
    one: JudgedSet, obeys: np.ndarray, *, size: int
) -> tuple[np.ndarray, int]:
    """Hit@k [Q] where results of another modality leave the list, and how many are unsure."""
    rows = one.union.indices
    right = relevance(rows, one.relevant)
    kept = obeys | right  # a right answer counts, whatever its modality
    place = np.cumsum(kept, axis=1)  # among what is left, from 1
    hit: np.ndarray = np.any(right & (place <= one.k), axis=1)
    whole = (rows[:, -1] < 0) | (rows.shape[1] >= size)  # the list ends where the pool does
    return hit.astype(np.float64), int((~hit & (place[:, -1] < one.k) & ~whole).sum())
