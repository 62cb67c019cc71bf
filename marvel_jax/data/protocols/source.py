"""A test's collections as what a reranker's scores are read and written with."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from marvel_jax.data.items import Candidate, Item, Query, Task
from marvel_jax.data.protocols.protocol import LoadedSet, Test
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_json
from marvel_jax.lazy import LazySequence

_TASK = Task(-1, "a test set's", "", "")
"""None of M-BEIR's: what is asked for stands in each item's own instruction."""


@dataclass(frozen=True)
class Candidates(LazySequence[Candidate]):
    """The items of a collection as candidates, made when they are asked for."""

    items: Sequence[Item]

    def __len__(self) -> int:
        return len(self.items)

    def make(self, index: int) -> Candidate:
        """The candidate at this place."""
        item = self.items[index]
        return Candidate(str(item.id), item, item.modality)


@dataclass(frozen=True)
class _Queries(LazySequence[Query]):
    items: Sequence[Item]
    places: Sequence[int]

    def __len__(self) -> int:
        return len(self.places)

    def make(self, index: int) -> Query:
        item = self.items[self.places[index]]
        return Query(str(item.id), item, _TASK, ())


@dataclass(frozen=True)
class TestSource:
    """Some queries of a test, and all candidates of the collection that they look in (a
    `RetrievalSource` without instructions, for items have their own, and without answers).
    """

    __test__ = False  # pytest would collect it for its name

    queries: Sequence[Query]
    candidates: Sequence[Candidate]
    fingerprint: str
    instructions: Mapping[tuple[int, str, str], tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, loaded: LoadedSet, test: Test, places: Sequence[int]) -> "TestSource":
        """The queries at these places of the collection that asks."""
        collections, hashes = loaded.data.collections, loaded.hashes
        return cls(
            _Queries(collections[test.asks], places),
            Candidates(collections[test.seeks]),
            hash_json([hashes[test.asks], hashes[test.seeks]]),
        )

    def candidate_index(self, id: str) -> int:
        """The position of a candidate's id; MarvelError for an unknown one."""
        if id not in self._places:
            raise MarvelError(f"{id!r} is none of the {len(self.candidates)} candidates.")
        return self._places[id]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {one.id: place for place, one in enumerate(self.candidates)}
