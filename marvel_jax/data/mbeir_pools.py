"""The candidates among which a split's queries are judged, where no one file holds them all."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from marvel_jax.data.items import Candidate
from marvel_jax.data.records import Records


@dataclass(frozen=True)
class JudgedPool:
    """Where a split's queries are judged: a union pool, and candidates that it lacks.

    union: one file, as it is. beside: what else the split is judged among; empty for most.
    """

    union: Records[Candidate]
    beside: Records[Candidate]

    @property
    def all(self) -> Records[Candidate]:
        """Both as one, the union pool first."""
        return self.union.joined(self.beside) if len(self.beside) else self.union


def judged_pool(union: Records[Candidate], others: Iterable[Records[Candidate]]) -> JudgedPool:
    """A union pool with those candidates of other pools that it lacks, each once, in their order.

    Ids are searched and not parsed: about a second for a million candidates.
    """
    known = np.sort(union.ids("did"))
    beside = union.choose(np.empty(0, np.int64))
    for one in others:
        ids = one.ids("did")
        first = np.zeros(len(ids), bool)
        first[np.unique(ids, return_index=True)[1]] = True
        places = np.flatnonzero(first & ~_found(ids, known))
        if len(places):
            kept = one.choose(places)
            beside = beside.joined(kept) if len(beside) else kept
            known = np.sort(np.concatenate([known, ids[places]]))
    return JudgedPool(union, beside)


def _found(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Bool [n]: which ids are among those known, which are sorted."""
    if not len(known):
        return np.zeros(len(ids), bool)
    place = np.minimum(np.searchsorted(known, ids), len(known) - 1)
    return np.asarray(known[place] == ids)
