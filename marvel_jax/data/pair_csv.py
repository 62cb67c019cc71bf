"""Sentence triplets in a csv file: a sentence, one that follows from it, and a hard negative."""

import csv
import io
from array import array
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np

from marvel_jax.data.byte_file import ByteFile
from marvel_jax.data.items import Item
from marvel_jax.data.pairs import Pair
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, hash_files

COLUMNS = ("sent0", "sent1", "hard_neg")


class NliTriplets:
    """The csv of SimCSE's NLI data: sent0 asks, sent1 answers, hard_neg (if there) contradicts.

    Written by specification, not checked on the published file. Columns are found by the header;
    others are left alone. A field may hold line ends between quotes. What is kept is where each
    row begins: eight bytes a row.

    Raises:
      MarvelError: the file is missing or is not UTF-8 csv, its header lacks sent0 or sent1, or a
        row has no sent0, no sent1 or another number of fields.
    """

    def __init__(self, path: Path | str) -> None:
        self._file = ByteFile(path)
        self.path = self._file.path
        starts, lines = array("q"), array("q")
        header: list[str] | None = None
        for start, line, row in self._rows():
            if header is None:
                header = row
                self._columns = self._find_columns(row)
                self._width = len(row)
            else:
                self._check(row, line)
                starts.append(start)
                lines.append(line)
        if header is None:
            raise MarvelError(f"{self.path} is empty: expected a header {','.join(COLUMNS)}.")
        self._bounds = np.array([*starts, self.path.stat().st_size], np.int64)
        self._lines = np.array(lines, np.int64)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Pair:
        text = self._file.read(int(self._bounds[index]), int(self._bounds[index + 1])).decode()
        row = next(row for row in csv.reader(io.StringIO(text, newline="")) if row)
        return self._pair(row)

    def __iter__(self) -> Iterator[Pair]:
        rows = self._rows()
        next(rows)
        for _, _, row in rows:
            yield self._pair(row)

    def where(self, index: int) -> str:
        """File and the line on which a row begins."""
        return f"{self.path}, line {self._lines[index] if index < len(self) else 1}"

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the file."""
        return hash_bytes(b"nli", hash_files(self.path).encode())

    def _rows(self) -> Iterator[tuple[int, int, list[str]]]:
        """(first byte, line from 1, fields) of each row that is not blank, the header first."""
        start, line = 0, 1
        with self.path.open("rb") as stream:
            reading = _Lines(stream, self.path)
            reader = csv.reader(reading, strict=True)
            while True:
                try:
                    row = next(reader, None)
                except csv.Error as error:
                    raise MarvelError(f"{self.path}, line {line}: not csv ({error}).") from error
                if row is None:
                    return
                if row:
                    yield start, line, row
                start, line = reading.position, reading.lines + 1

    def _find_columns(self, header: list[str]) -> dict[str, int]:
        columns = {name: header.index(name) for name in COLUMNS if name in header}
        missing = [name for name in COLUMNS[:2] if name not in columns]
        if missing:
            raise MarvelError(
                f"{self.path}: the header lacks {' and '.join(missing)}; expected "
                f"{','.join(COLUMNS)} (hard_neg may be left out), found {','.join(header)[:200]}."
            )
        return columns

    def _check(self, row: list[str], line: int) -> None:
        if len(row) != self._width:
            raise MarvelError(
                f"{self.path}, line {line}: expected {self._width} fields as in the header, found "
                f"{len(row)}. A comma inside a sentence needs quotes around it."
            )
        for name in COLUMNS[:2]:
            if not row[self._columns[name]].strip():
                raise MarvelError(f"{self.path}, line {line}: {name} is empty.")

    def _pair(self, row: list[str]) -> Pair:
        place = self._columns.get("hard_neg")
        hard = row[place] if place is not None else ""
        return Pair(
            query=Item.of(text=row[self._columns["sent0"]]),
            positives=(Item.of(text=row[self._columns["sent1"]]),),
            negatives=(Item.of(text=hard),) if hard.strip() else (),
        )


class _Lines(Iterator[str]):
    """A file's lines as text, counted in bytes and in number."""

    def __init__(self, stream: io.BufferedReader, path: Path) -> None:
        self._stream, self._path = stream, path
        self.position = self.lines = 0

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            raise StopIteration
        try:
            text = line.decode("utf-8-sig" if self.lines == 0 else "utf-8")
        except UnicodeDecodeError as error:
            raise MarvelError(
                f"{self._path}, line {self.lines + 1}: not UTF-8 text ({error})."
            ) from error
        self.position += len(line)
        self.lines += 1
        return text
