"""The pictures that a corpus names, each once, and the work of looking at them."""

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import cached_property

import numpy as np

from marvel_jax.data.doctor_images import PictureTask
from marvel_jax.data.doctor_layout import Layout
from marvel_jax.data.doctor_lines import LineFacts
from marvel_jax.data.doctor_problems import Kind, Problem


class Pictures:
    """Where each picture is named first, and by how many lines: 28 bytes a picture and file."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._folders: Counter[str] = Counter()
        # (number of the file, hash, line, first byte of the line, how many lines name it)
        self._columns: list[tuple[np.ndarray, ...]] = []

    def add(self, number: int, facts: LineFacts) -> None:
        """The pictures of one file, the `number`th of the layout; files in ascending order."""
        self._folders += facts.folders
        hashes, first, named = np.unique(facts.pictures, return_index=True, return_counts=True)
        numbers = np.full(len(hashes), number, np.int32)
        lines, offsets = facts.picture_lines[first], facts.picture_offsets[first]
        self._columns.append((numbers, hashes, lines, offsets, named.astype(np.int32)))

    def absent_folders(self) -> Iterator[Problem]:
        """Top folders that are not there at all: told once, not for every picture."""
        for name in sorted(self._absent):
            message = f"not there: lines name {self._folders[name]:,} pictures in it; unpack them"
            yield Problem(Kind.MISSING_FILE, name, None, None, message)

    def tasks(self, size: int, *, decode: bool) -> list[PictureTask]:
        """Up to `size` pictures each, in the order of files and lines."""
        if not self._columns:
            return []
        columns = [np.concatenate(parts) for parts in zip(*self._columns, strict=True)]
        numbers, hashes, lines, offsets, named = columns
        _, first, same = np.unique(hashes, return_index=True, return_inverse=True)
        named = np.bincount(same, weights=named).astype(np.int64)
        order = np.lexsort((offsets[first], numbers[first]))
        first, named = first[order], named[order]
        ends = np.flatnonzero(np.diff(numbers[first])) + 1
        tasks = []
        for start, end in itertools.pairwise([0, *ends.tolist(), len(first)]):
            for place in range(start, end, size):
                some = slice(place, min(place + size, end))
                where = first[some]
                tasks.append(
                    PictureTask(
                        root=self._layout.root,
                        file=self._layout.files[numbers[where[0]]],
                        offsets=offsets[where],
                        lines=lines[where],
                        named=named[some],
                        skipped=self._absent,
                        decode=decode,
                    )
                )
        return tasks

    @cached_property
    def _absent(self) -> frozenset[str]:
        root = self._layout.root
        return frozenset(name for name in self._folders if name and not (root / name).is_dir())
