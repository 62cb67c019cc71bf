"""Pairs of a query and what answers it as a source, whichever file they come from."""

import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, TypeVar, overload

import numpy as np

from marvel_jax.data.items import TASKS, Candidate, Image, Item, Query, Task
from marvel_jax.errors import MarvelError

_Record = TypeVar("_Record", Query, Candidate)

MOST_INSTRUCTIONS = 10_000
_TASK_OF = {(task.query_modality, task.candidate_modality): task for task in TASKS.values()}


class Pair(NamedTuple):
    """A query with its positives and, where the file has them, its hard negatives.

    `instructions` are those that the file gives this query, of which a step draws one.
    """

    query: Item
    positives: tuple[Item, ...]
    negatives: tuple[Item, ...] = ()
    instructions: tuple[str, ...] = ()


class PairFile(Protocol):
    """A format: its pairs in the file's order, and any one of them alone."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...

    def __iter__(self) -> Iterator[Pair]: ...

    def where(self, index: int) -> str:
        """File and line of a pair, for messages."""
        ...

    @property
    def fingerprint(self) -> str:
        """A hash of the content; pictures do not count."""
        ...


class PairSource:
    """Pairs as a `RetrievalSource`. Only numbers are kept: some forty bytes a pair.

    A candidate is a content: one that several pairs name is there once, so that a batch with two
    of them does not take the answer for a negative. The candidate that came n-th in the file is
    "0:n"; pair n's query is "i:n", where i numbers the instructions it comes with. Read once when
    it is made; texts and pictures are read again when they are asked for.

    Raises:
      MarvelError: there is no pair, a pair has no positive, positives of several modalities or a
        combination of modalities that is no task of M-BEIR's, or there are too many different
        instructions. The message names file and line.
    """

    def __init__(self, pairs: PairFile) -> None:
        self.pairs = pairs
        tables = _Tables()
        numbers: dict[tuple[str, ...], int] = {}
        for index, pair in enumerate(pairs):
            task = _task(pair, pairs, index)
            number = numbers.setdefault(pair.instructions, len(numbers))
            if number >= MOST_INSTRUCTIONS:
                raise MarvelError(
                    f"{pairs.where(index)}: there are more than {MOST_INSTRUCTIONS:,} different "
                    "instructions. An instruction says what is looked for, the same for many "
                    "queries: what belongs to one query alone goes into its text."
                )
            tables.add(index, pair, task.id, number)
        if not len(pairs):
            raise MarvelError(f"{pairs.where(0)}: there is no pair.")
        self._tasks, self._of_instructions = tables.arrays(tables.tasks, tables.instructions)
        self._positives = tables.lists(tables.positives)
        self._negatives = tables.lists(tables.negatives)
        self._owners, self._slots = tables.arrays(tables.owners, tables.slots)
        self._instructions = list(numbers)

    @property
    def queries(self) -> "Made[Query]":
        """One of each pair."""
        return Made(len(self._tasks), self._query)

    @property
    def candidates(self) -> "Made[Candidate]":
        """Each different positive or hard negative once, as they come."""
        return Made(len(self._owners), self._candidate)

    @cached_property
    def instructions(self) -> Mapping[tuple[int, str, str], tuple[str, ...]]:
        """Empty where no pair has one; else () stands for the pairs without."""
        if not any(self._instructions):
            return {}
        kinds = np.unique(np.stack([self._of_instructions, self._tasks]), axis=1).T.tolist()
        return {
            (number, TASKS[task].query_modality, TASKS[task].candidate_modality): (
                self._instructions[number]
            )
            for number, task in kinds
        }

    @property
    def fingerprint(self) -> str:
        """The file's."""
        return self.pairs.fingerprint

    def candidate_index(self, id: str) -> int:
        """The position of a candidate.

        Raises:
          MarvelError: there is none of this id.
        """
        dataset, _, number = id.partition(":")
        if dataset != "0" or not number.isdecimal() or int(number) >= len(self._owners):
            raise MarvelError(
                f"Candidate {id} is not among the {len(self._owners):,} of "
                f"{self.pairs.where(0).partition(',')[0]}: they are 0:0 to "
                f"0:{len(self._owners) - 1}."
            )
        return int(number)

    def _query(self, index: int) -> Query:
        number = int(self._of_instructions[index])
        id = f"{number}:{index}"
        return Query(
            id=id,
            item=replace(self.pairs[index].query, id=id),
            task=TASKS[int(self._tasks[index])],
            positives=tuple(f"0:{one}" for one in self._positives[index]),
            negatives=tuple(f"0:{one}" for one in self._negatives[index]),
            dataset=number,
        )

    def _candidate(self, index: int) -> Candidate:
        pair = self.pairs[int(self._owners[index])]
        item = (pair.positives + pair.negatives)[int(self._slots[index])]
        id = f"0:{index}"
        return Candidate(id=id, item=replace(item, id=id), modality=item.modality)


@dataclass(frozen=True)
class Made(Sequence[_Record], Generic[_Record]):
    """`length` records, each made by its place when it is asked for."""

    length: int
    make: Callable[[int], _Record]

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> _Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Record]: ...
    def __getitem__(self, index: int | slice) -> _Record | list[_Record]:
        if isinstance(index, slice):
            return [self.make(place) for place in range(*index.indices(self.length))]
        if not -self.length <= index < self.length:
            raise IndexError(f"record {index} of {self.length}")
        return self.make(index % self.length)


class _Tables:
    """What is remembered of the pairs, as one pass over them goes on."""

    def __init__(self) -> None:
        self.tasks, self.instructions = array("i"), array("i")
        self.owners, self.slots = array("i"), array("i")
        self.positives: tuple[array[int], array[int]] = (array("q", [0]), array("i"))
        self.negatives: tuple[array[int], array[int]] = (array("q", [0]), array("i"))
        self._known: dict[bytes, int] = {}

    def add(self, index: int, pair: Pair, task: int, instructions: int) -> None:
        self.tasks.append(task)
        self.instructions.append(instructions)
        slot = 0
        for items, (ends, places) in (
            (pair.positives, self.positives),
            (pair.negatives, self.negatives),
        ):
            for item in items:
                number = self._known.setdefault(_content(item), len(self._known))
                if number == len(self.owners):
                    self.owners.append(index)
                    self.slots.append(slot)
                places.append(number)
                slot += 1
            ends.append(len(places))

    @staticmethod
    def arrays(*columns: "array[int]") -> list[np.ndarray]:
        return [np.array(column, np.int32) for column in columns]

    @staticmethod
    def lists(column: "tuple[array[int], array[int]]") -> "_Lists":
        ends, places = column
        return _Lists(np.array(ends, np.int64), np.array(places, np.int32))


@dataclass(frozen=True)
class _Lists:
    """A list of numbers for each pair."""

    ends: np.ndarray
    values: np.ndarray

    def __getitem__(self, index: int) -> list[int]:
        found: list[int] = self.values[self.ends[index] : self.ends[index + 1]].tolist()
        return found


def _content(item: Item) -> bytes:
    """What an item shows, in eight bytes: texts, and where its pictures are."""
    digest = hashlib.blake2b(digest_size=8)
    for part in item.parts:
        if isinstance(part, str):
            kind, shown = "text", part
        else:
            assert isinstance(part.source, str | Path)  # no format of pairs holds pixels
            kind, shown = "image" if isinstance(part, Image) else "video", part.describe()
        digest.update(f"{kind} {len(shown)} {shown}".encode())
    return digest.digest()


def _task(pair: Pair, pairs: PairFile, index: int) -> Task:
    if not pair.positives:
        raise MarvelError(f"{pairs.where(index)}: there is no positive. Give one at least.")
    modalities = {item.modality for item in pair.positives}
    if len(modalities) > 1:
        raise MarvelError(
            f"{pairs.where(index)}: the positives are of several modalities "
            f"({'; '.join(sorted(modalities))}). Write a pair for each."
        )
    kind = (pair.query.modality, modalities.pop())
    if kind not in _TASK_OF:
        raise MarvelError(
            f"{pairs.where(index)}: the query is {kind[0]} and the positive {kind[1]}, which is "
            f"none of the tasks {', '.join(task.name for task in TASKS.values())}."
        )
    return _TASK_OF[kind]
