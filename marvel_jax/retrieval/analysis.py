"""What explains a score: test sets with what was retrieved for them, and who the candidates are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from marvel_jax.data.items import Candidate, Item
from marvel_jax.data.records import Records
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.metrics import hit_at_k
from marvel_jax.retrieval.mining_pools import ContentKeys
from marvel_jax.retrieval.store import VectorStore

MODALITIES = ("image", "text", "image,text")


@dataclass(frozen=True)
class JudgedSet:
    """One test set with what was retrieved for it.

    Attributes:
      name: "nights_task4". task: "i->i". k: the cut of its main score.
      wanted: the modality that the instruction asks for.
      query_ids: Q of them.
      relevant: for each query, the rows of its right answers in the store, each once.
      relevant_local: those of them in the set's own pool; None is all of them.
      local: TopK over rows of the store, from the set's own pool; the list may be longer than k.
      union: the same from the pool of everything.
      pool: how many candidates the set's own pool has.
    """

    name: str
    task: str
    k: int
    wanted: str
    query_ids: Sequence[str]
    relevant: Sequence[np.ndarray]
    local: TopK
    union: TopK
    pool: int
    relevant_local: Sequence[np.ndarray] | None = None

    def __post_init__(self) -> None:
        counts = {len(self.query_ids), len(self.relevant)}
        counts |= {len(self.local.indices), len(self.union.indices), len(self.answers("local"))}
        if len(counts) != 1 or 0 in counts:
            raise MarvelError(
                f"{self.name}: {len(self.query_ids)} queries, answers for {len(self.relevant)}, "
                f"rankings of {len(self.local.indices)} (local) and {len(self.union.indices)} "
                "(global): expected the same number, and at least one. Evaluate again."
            )
        depth = min(self.local.indices.shape[1], self.union.indices.shape[1])
        if depth < self.k:
            raise MarvelError(
                f"{self.name}: its rankings are {depth} long, but its score looks at the first "
                f"{self.k}. Evaluate again."
            )

    def answers(self, pool: Literal["local", "global"]) -> Sequence[np.ndarray]:
        """For each query, the rows of its right answers in a pool."""
        if pool == "global" or self.relevant_local is None:
            return self.relevant
        return self.relevant_local

    def hits(self) -> tuple[np.ndarray, np.ndarray]:
        """Float64 [Q] twice: hit@k in the own pool and in the pool of everything."""
        local = hit_at_k(self.local.indices, self.answers("local"), self.k)
        return local, hit_at_k(self.union.indices, self.relevant, self.k)


class Candidates:
    """The candidates behind the rows of a store: modality, data set, content; read when asked for.

    Each candidate's line is read once; one byte a row is kept.
    """

    def __init__(
        self, store: VectorStore, pool: Records[Candidate], *, datasets: Mapping[int, str]
    ) -> None:
        self.store = store
        self.datasets = dict(datasets)
        self._pool = pool
        ids = pool.ids("did")
        self._order = np.argsort(ids, kind="stable")
        self._ids = ids[self._order]
        self._modality = np.full(len(store), -1, np.int8)
        self._content = ContentKeys(pool)

    def item(self, row: int) -> Item:
        """What a row is."""
        return self._pool[int(self._places(np.array([row]))[0])].item

    def modality(self, rows: np.ndarray) -> np.ndarray:
        """Int8, the shape of `rows`: places in `MODALITIES`; -1 where the row is -1."""
        known = np.unique(rows[rows >= 0])
        unread = known[self._modality[known] < 0]
        for row, place in zip(unread, self._places(unread), strict=True):
            candidate = self._pool[int(place)]
            if candidate.modality not in MODALITIES:
                raise MarvelError(
                    f"{self._pool.where(int(place))}: candidate {candidate.id} has modality "
                    f"{candidate.modality!r}; expected one of {', '.join(MODALITIES)}."
                )
            self._modality[row] = MODALITIES.index(candidate.modality)
        return np.where(rows >= 0, self._modality[rows], np.int8(-1))

    def dataset(self, rows: np.ndarray) -> np.ndarray:
        """Int32, the shape of `rows`: the numbers of their data sets; -1 where the row is -1."""
        known, places = np.unique(rows, return_inverse=True)
        numbers = [
            int(self.store.ids[int(row)].partition(":")[0]) if row >= 0 else -1 for row in known
        ]
        return np.array(numbers, np.int32)[places].reshape(rows.shape)

    def dataset_name(self, number: int) -> str:
        """`nights`, or the number as text where the instructions do not name it."""
        return self.datasets.get(number, str(number))

    def content(self, rows: np.ndarray) -> np.ndarray:
        """Uint64 [n]: equal for rows of the same texts and the same pictures, byte for byte."""
        return self._content(self._places(rows))

    def _places(self, rows: np.ndarray) -> np.ndarray:
        """Int64 [n]: where these rows are in the pool's files."""
        keys = np.array([_number(self.store.ids[int(row)]) for row in rows], np.int64)
        found = np.minimum(np.searchsorted(self._ids, keys), len(self._ids) - 1)
        unknown = np.flatnonzero(self._ids[found] != keys)
        if unknown.size:
            raise MarvelError(
                f"{self.store.path} has a vector for {self.store.ids[int(rows[unknown[0]])]!r}, "
                f"which {self._pool.files[0].path} does not have: the folder was evaluated on "
                "other data. Name the data that it was evaluated on."
            )
        return self._order[found]


def _number(id: str) -> int:
    """As `Records.ids` counts them."""
    dataset, _, number = id.partition(":")
    return int(dataset) * 1_000_000_000 + int(number)
