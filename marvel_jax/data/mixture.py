"""Several sources as one, with ids, data sets and instructions kept apart."""

import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from marvel_jax.data.items import Candidate, Query, RetrievalSource
from marvel_jax.data.pairs import Made
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes

PART_RANGE = 1_000_000
"""Part p's data set d is p * PART_RANGE + d in a mixture: above what a single source uses."""

_Key = tuple[int, str, str]


class Part(NamedTuple):
    """A source of a mixture under its name there."""

    name: str
    source: RetrievalSource


@dataclass(frozen=True)
class _Instructions(Mapping[_Key, tuple[str, ...]]):
    """Each part's prompts; of a part that has none, every kind of query carries none."""

    parts: tuple[Mapping[_Key, tuple[str, ...]], ...]

    def __getitem__(self, key: _Key) -> tuple[str, ...]:
        number, dataset = divmod(key[0], PART_RANGE)
        if not 0 <= number < len(self.parts):
            raise KeyError(key)
        prompts = self.parts[number]
        return prompts[dataset, key[1], key[2]] if prompts else ()

    def __iter__(self) -> Iterator[_Key]:
        for number, prompts in enumerate(self.parts):
            for dataset, asks, wants in prompts:
                yield number * PART_RANGE + dataset, asks, wants

    def __len__(self) -> int:
        return sum(map(len, self.parts))


class Mixture:
    """Sources one after the other as one `RetrievalSource`.

    Query and candidate ids get their part's name in front, "nli/0:17", so that equal ids of two
    parts stay two items; data set d of part p becomes p * 1,000,000 + d. How much of a batch each
    part has is said in the plan (`PlanConfig.parts`). Files that name ids, of mined negatives or
    teachers' scores, belong to a part: join them to it before it is mixed.

    Raises:
      MarvelError: there is no part, or two of the same name, or a name with a slash or none.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        names = [part.name for part in parts]
        if not names:
            raise MarvelError("A mixture needs at least one part.")
        for name in names:
            if not name or "/" in name:
                raise MarvelError(f"A part of a mixture is named {name!r}: use letters, no slash.")
            if names.count(name) > 1:
                raise MarvelError(f"Two parts of a mixture are named {name!r}: rename one.")
        self.parts = tuple(parts)
        self._numbers = {name: number for number, name in enumerate(names)}
        self._queries = [part.source.queries for part in parts]
        self._candidates = [part.source.candidates for part in parts]
        self._query_starts = _starts(self._queries)
        self._candidate_starts = _starts(self._candidates)

    @property
    def queries(self) -> Sequence[Query]:
        """All queries, part by part."""
        return Made(self._query_starts[-1], self._query)

    @property
    def candidates(self) -> Sequence[Candidate]:
        """All candidates, part by part."""
        return Made(self._candidate_starts[-1], self._candidate)

    @cached_property
    def instructions(self) -> Mapping[_Key, tuple[str, ...]]:
        """All prompts; () for queries of a part that has none."""
        return _Instructions(tuple(part.source.instructions for part in self.parts))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the parts' fingerprints and names; weights do not count."""
        told = [f"{part.name} {part.source.fingerprint}".encode() for part in self.parts]
        return hash_bytes(b"mixture", *told)

    def candidate_index(self, id: str) -> int:
        """The position of a candidate.

        Raises:
          MarvelError: the id names no part, or its part has no such candidate.
        """
        name, slash, own = id.partition("/")
        number = self._numbers.get(name)
        if not slash or number is None:
            raise MarvelError(
                f"Candidate {id} belongs to no part of the mixture: ids begin with "
                f"{', '.join(f'{known}/' for known in self._numbers)}."
            )
        return self._candidate_starts[number] + self.parts[number].source.candidate_index(own)

    def _query(self, index: int) -> Query:
        number, place = _locate(self._query_starts, index)
        prefix = f"{self.parts[number].name}/"
        query = self._queries[number][place]
        if not 0 <= query.dataset < PART_RANGE:
            raise MarvelError(
                f"Query {query.id} of part {self.parts[number].name} has data set "
                f"{query.dataset}: in a mixture they are 0 to {PART_RANGE - 1}."
            )
        return replace(
            query,
            id=prefix + query.id,
            item=replace(query.item, id=prefix + query.id),
            positives=tuple(prefix + one for one in query.positives),
            negatives=tuple(prefix + one for one in query.negatives),
            dataset=number * PART_RANGE + query.dataset,
        )

    def _candidate(self, index: int) -> Candidate:
        number, place = _locate(self._candidate_starts, index)
        candidate = self._candidates[number][place]
        id = f"{self.parts[number].name}/{candidate.id}"
        return replace(candidate, id=id, item=replace(candidate.item, id=id))


def _starts(sequences: Sequence[Sequence[Query] | Sequence[Candidate]]) -> list[int]:
    starts = [0]
    for one in sequences:
        starts.append(starts[-1] + len(one))
    return starts


def _locate(starts: list[int], index: int) -> tuple[int, int]:
    number = bisect.bisect_right(starts, index) - 1
    return number, index - starts[number]
