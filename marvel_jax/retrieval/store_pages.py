"""Memory-mapped arrays whose pages are fetched ahead of use and given back behind it.

Pages of a file that were once read stay in a process's resident memory for as long as it lives;
a search that streams a corpus would seem to hold all of it. Giving them back loses nothing: they
are read again, mostly from the system's cache.
"""

import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError


class Mapped(NamedTuple):
    """A two-dimensional array in a file and its map."""

    array: np.ndarray
    pages: mmap.mmap
    offset: int  # bytes before the array

    def fetch(self, first: int, last: int) -> None:
        """Tells the system that rows [first, last) are wanted soon; it reads them meanwhile."""
        self._advise("MADV_WILLNEED", *self._bounds(first, last, outward=True))

    def release(self, first: int, last: int) -> None:
        """Gives the pages of rows [first, last) back; who reads them again reads the file."""
        self._advise("MADV_DONTNEED", *self._bounds(first, last, outward=False))

    def expect_random(self) -> None:
        """Stops the system from reading ahead where rows are picked here and there."""
        self._advise("MADV_RANDOM", 0, len(self.pages))

    def _bounds(self, first: int, last: int, *, outward: bool) -> tuple[int, int]:
        row = self.array.strides[0]
        start, stop = self.offset + first * row, self.offset + last * row
        page = mmap.PAGESIZE
        if outward:
            return start // page * page, min(len(self.pages), -(-stop // page) * page)
        # A page that is shared with other rows stays, but at the ends of the file.
        start = 0 if first <= 0 else -(-start // page) * page
        return start, len(self.pages) if last >= len(self.array) else stop // page * page

    def _advise(self, name: str, start: int, stop: int) -> None:
        advice = getattr(mmap, name, None)  # Windows has none
        if advice is not None and start < stop:
            self.pages.madvise(advice, start, stop - start)


def open_mapped(file: Path, *, shape: tuple[int, ...], dtype: np.dtype) -> Mapped:
    """Maps a .npy file that must hold an array of this shape and type.

    Raises:
      MarvelError: the file is missing, damaged or holds something else; it is named.
    """
    array: Any = load_array(file, mapped=True)
    if array.shape != shape or array.dtype != dtype:
        raise MarvelError(
            f"{file}: expected {dtype} of shape {shape}, found {array.dtype} of shape "
            f"{array.shape}. Encode the corpus again."
        )
    # A plain array over the same map: slices of np.memmap are slow to make.
    return Mapped(array.view(np.ndarray), pages=array.base, offset=array.offset)


def load_array(file: Path, *, mapped: bool) -> np.ndarray:
    """A .npy file as an array.

    Raises:
      MarvelError: the file is missing or damaged; it is named.
    """
    try:
        found: np.ndarray = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise MarvelError(f"{file} is missing: the vector store is incomplete.") from error
    except (ValueError, EOFError, OSError) as error:
        raise MarvelError(f"{file} is not a readable .npy array: {error}.") from error
    return found
