"""Queries and candidates of JSON-lines files as lazy sequences, and where each id is."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, TypeVar

import numpy as np

from marvel_jax.data.items import Candidate, Query
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.errors import MarvelError
from marvel_jax.lazy import LazySequence

_Record = TypeVar("_Record", Query, Candidate)


class Records(LazySequence[_Record], Generic[_Record]):
    """Queries or candidates of some files, one after the other, made when they are asked for.

    `chosen`, places among all of them in ascending order, keeps those only.
    """

    def __init__(
        self,
        files: Sequence[JsonLines],
        make: Callable[[dict[str, Any], str], _Record],
        *,
        chosen: np.ndarray | None = None,
    ) -> None:
        self.files = tuple(files)
        self.chosen = chosen
        self._make: Callable[[dict[str, Any], str], _Record] = make
        self._bounds = np.cumsum([0, *(len(file) for file in self.files)])

    def __len__(self) -> int:
        return int(self._bounds[-1]) if self.chosen is None else len(self.chosen)

    def choose(self, places: np.ndarray) -> "Records[_Record]":
        """The records at these places, in ascending order, read as lazily."""
        kept = places if self.chosen is None else self.chosen[places]
        return Records(self.files, self._make, chosen=np.asarray(kept, np.int64))

    def joined(self, other: "Records[_Record]") -> "Records[_Record]":
        """These records, then those of the other, which must be of the same folder."""
        places = []
        for start, one in ((0, self), (int(self._bounds[-1]), other)):
            all_places = np.arange(one._bounds[-1]) if one.chosen is None else one.chosen
            places.append(start + all_places)
        chosen = None if self.chosen is None and other.chosen is None else np.concatenate(places)
        return Records([*self.files, *other.files], self._make, chosen=chosen)

    def make(self, index: int) -> _Record:
        """The record at this place."""
        file, line = self._locate(index)
        return self._make(file[line], file.where(line))

    def __iter__(self) -> Iterator[_Record]:
        if self.chosen is not None:
            yield from (self[index] for index in range(len(self)))
            return
        for file in self.files:
            for line, value in enumerate(file):
                yield self._make(value, file.where(line))

    def where(self, index: int) -> str:
        """File and line of a record, for messages."""
        file, line = self._locate(index)
        return file.where(line)

    def ids(self, field: str) -> np.ndarray:
        """int64 [N]: the ids in `field`, see `JsonLines.ids`."""
        return self._joined([file.ids(field) for file in self.files])

    def numbers(self, field: str) -> np.ndarray:
        """int64 [N]: the whole numbers in `field`, see `JsonLines.numbers`."""
        return self._joined([file.numbers(field) for file in self.files])

    def _joined(self, parts: Sequence[np.ndarray]) -> np.ndarray:
        values = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        return values if self.chosen is None else values[self.chosen]

    def _locate(self, index: int) -> tuple[JsonLines, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index = index % len(self)
        index = index if self.chosen is None else int(self.chosen[index])
        which = int(np.searchsorted(self._bounds, index, side="right")) - 1
        return self.files[which], index - int(self._bounds[which])


class IdTable:
    """Where each id of some records is. Sixteen bytes an id.

    Raises:
      MarvelError: an id occurs twice; the message names both lines.
    """

    def __init__(self, records: Records[Any], field: str) -> None:
        self.paths = [str(file.path) for file in records.files]
        ids = records.ids(field)
        self._order = np.argsort(ids, kind="stable")
        self._sorted = ids[self._order]
        twice = np.flatnonzero(self._sorted[1:] == self._sorted[:-1])
        if len(twice):
            first, second = (int(self._order[twice[0] + i]) for i in (0, 1))
            raise MarvelError(
                f"{records.where(second)}: {field} {records[second].id} was used before, at "
                f"{records.where(first)}. Ids must differ: remove or rename one."
            )

    def find(self, id: str) -> int | None:
        """The position of an id among the records, or None."""
        match = re.fullmatch(r"(\d{1,6}):(\d{1,9})", id)
        if match is None:
            return None
        key = int(match[1]) * 1_000_000_000 + int(match[2])
        place = int(np.searchsorted(self._sorted, key))
        if place < len(self._sorted) and self._sorted[place] == key:
            return int(self._order[place])
        return None
