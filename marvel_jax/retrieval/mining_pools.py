"""Where negatives are sought: the global pool, or the candidates of a query's own data set."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marvel_jax.data.items import Candidate, Item, Query
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.item_content import content_key

# OVEN and InfoSeek ask of the same encyclopedia: the answers of one are among the other's
# candidates, so their local pools are one (specification 4.1).
_SHARED_DATASETS = (frozenset({5, 6}),)


class CandidateTable(NamedTuple):
    """What mining knows of N candidates beside their vectors."""

    ids: np.ndarray  # [N] UTF-8 bytes
    datasets: np.ndarray  # [N] int32: the number before the colon of the id, -1 without one
    modalities: np.ndarray  # [N] int8, places in `names`
    names: tuple[str, ...]  # "text", "image" ...

    @classmethod
    def of(cls, candidates: Sequence[Candidate]) -> "CandidateTable":
        """Reads every candidate once."""
        ids = []
        datasets = np.empty(len(candidates), np.int32)
        modalities = np.empty(len(candidates), np.int8)
        names: dict[str, int] = {}
        for row, candidate in enumerate(candidates):
            ids.append(candidate.id.encode())
            prefix, colon, _ = candidate.id.partition(":")
            datasets[row] = int(prefix) if colon and prefix.isdigit() else -1
            modalities[row] = names.setdefault(candidate.modality, len(names))
        return cls(np.array(ids, np.bytes_), datasets, modalities, tuple(names))

    def ids_of(self, rows: np.ndarray | Sequence[int]) -> list[str]:
        """The ids of candidates; many times as fast as one by one from a vector store."""
        return [id.decode() for id in self.ids[np.asarray(rows, np.int64)].tolist()]

    def modality(self, row: int) -> str:
        """The modality of a candidate."""
        return self.names[self.modalities[row]]

    def is_modality(self, rows: np.ndarray, name: str) -> np.ndarray:
        """[n] bool: which of these candidates are of a modality."""
        if name not in self.names:
            return np.zeros(len(rows), bool)
        return self.modalities[rows] == self.names.index(name)

    def local_pool(self, query: Query) -> np.ndarray:
        """[n] rows: the candidates of the query's data set and of the modality that it asks for.

        Raises:
          MarvelError: there is none.
        """
        own = datasets_of(query.dataset)
        wanted = query.task.candidate_modality
        rows = np.flatnonzero(np.isin(self.datasets, sorted(own)))
        rows = rows[self.is_modality(rows, wanted)]
        if not len(rows):
            raise MarvelError(
                f"query {query.id}: no candidate is of data set {' or '.join(map(str, own))} and "
                f"modality {wanted!r}, so it has no local pool. Mine in the global one, or give "
                'candidates ids as "dataset:number".'
            )
        return rows


def datasets_of(dataset: int) -> frozenset[int]:
    """The data sets whose candidates a query of this one is sought among."""
    return next((one for one in _SHARED_DATASETS if dataset in one), frozenset({dataset}))


class ContentKeys:
    """A number for the content of each candidate: copies under another id have the same.

    Pictures count by the bytes of their files, texts by their characters. Each candidate is read
    once, when it is first asked for; eight bytes each are kept.
    """

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._candidates = candidates
        self._keys = np.zeros(len(candidates), np.uint64)

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Uint64 [n]: the keys of these candidates."""
        for row in np.unique(rows[self._keys[rows] == 0]):
            self._keys[row] = _content_key(self._candidates[int(row)].item)
        return self._keys[rows]


def _content_key(item: Item) -> int:
    parts = tuple(part.strip() if isinstance(part, str) else part for part in item.parts)
    key = content_key(Item(parts=parts))
    return int.from_bytes(key[:8], "little") | 1  # never 0, which is "not read yet"
