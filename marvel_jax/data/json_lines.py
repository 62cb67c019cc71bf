"""Random access to JSON lines by byte offset: a pool of millions costs eight bytes a line."""

import json
import os
import re
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.lazy import LazySequence


class JsonLines(LazySequence[dict[str, Any]]):
    """The objects of a .jsonl file, parsed when they are asked for; blank lines do not count.

    Safe to read from several threads and to send to other processes.

    Raises:
      MarvelError: the file is missing; later, a line that is asked for is not a JSON object (the
        message names file and line).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MarvelError(f"{self.path} does not exist.")
        self._starts, self._ends, self._numbers = _line_bounds(self.path)
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._starts)

    def make(self, index: int) -> dict[str, Any]:
        """The object of this index, parsed."""
        start, end = int(self._starts[index]), int(self._ends[index])
        return self._parse(os.pread(self._open(), end - start, start), index)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for index, line in enumerate(self._lines()):
            yield self._parse(line, index)

    def line_number(self, index: int) -> int:
        """The line of the file, counted from 1, that holds the object with this index."""
        return int(self._numbers[index])

    def where(self, index: int) -> str:
        """File and line, for messages."""
        return f"{self.path}, line {self.line_number(index)}"

    def ids(self, field: str) -> np.ndarray:
        """int64 [N]: each line's `field`, an id "dataset:number", as dataset * 10^9 + number.

        Lines are searched, not parsed: about a million a second.

        Raises:
          MarvelError: a line has no such field, or its value is not of that form.
        """
        searched = self._search(field, rb'"(\d{1,6}):(\d{1,9})"', '"dataset:number"')
        found = (int(match[1]) * 1_000_000_000 + int(match[2]) for match in searched)
        return np.fromiter(found, np.int64, len(self))

    def numbers(self, field: str) -> np.ndarray:
        """int64 [N]: each line's `field`, a whole number. Lines are searched, not parsed.

        Raises:
          MarvelError: a line has no such field, or its value is no whole number.
        """
        searched = self._search(field, rb"(\d{1,9})(?![\d.eE])", "a whole number")
        return np.fromiter((int(match[1]) for match in searched), np.int64, len(self))

    def _search(self, field: str, value: bytes, meaning: str) -> Iterator[re.Match[bytes]]:
        pattern = re.compile(rb'"' + field.encode() + rb'"\s*:\s*' + value)
        for index, line in enumerate(self._lines()):
            match = pattern.search(line)
            if match is None:
                found = self._parse(line, index).get(field)
                raise MarvelError(
                    f"{self.where(index)}: expected {field} as {meaning}, found {found!r}."
                )
            yield match

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["_descriptor"] = None
        del state["_lock"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    # `close` is bound here: as the interpreter ends, a module's names go before its objects.
    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        descriptor = getattr(self, "_descriptor", None)
        if descriptor is not None:
            close(descriptor)

    def _open(self) -> int:
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
            return self._descriptor

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as stream:
            for line in stream:
                if line.strip():
                    yield line

    def _parse(self, line: bytes, index: int) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise MarvelError(f"{self.where(index)}: not valid JSON ({error}).") from error
        if not isinstance(value, dict):
            found = type(value).__name__
            raise MarvelError(f"{self.where(index)}: expected a JSON object, found {found}.")
        return value


def _line_bounds(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Starts and ends in bytes and line numbers (from 1) of the lines that are not blank."""
    starts, ends, numbers = array("q"), array("q"), array("q")
    position = 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                starts.append(position)
                ends.append(position + len(line))
                numbers.append(number)
            position += len(line)
    return np.asarray(starts), np.asarray(ends), np.asarray(numbers)
