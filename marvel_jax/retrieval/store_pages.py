"""Memory-mapped arrays whose pages are fetched ahead of use and given back behind it.

Pages of a file that were once read stay in a process's resident memory for as long as it lives;
a search that streams a corpus would seem to hold all of it. Giving them back loses nothing: they
are read again, mostly from the system's cache.
"""

import contextlib
import errno
import mmap
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files

if sys.platform != "win32":  # which has no such limit
    import resource

_SPARE_FILES = 256  # for everything else that a process opens


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


def allow_open_files(count: int) -> None:
    """Raises this process's limit of open files, as far as it may, to have `count` more of them.

    A map keeps its file open for as long as it lives, and a store has one for each shard.
    """
    if sys.platform == "win32":
        return
    try:
        opened = sum(1 for _ in Path("/dev/fd").iterdir())
    except OSError:
        opened = 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = opened + count + _SPARE_FILES
    if soft == resource.RLIM_INFINITY or needed <= soft:
        return
    if hard != resource.RLIM_INFINITY:
        needed = min(needed, hard)
    with contextlib.suppress(ValueError, OSError):  # then opening tells
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def load_array(file: Path, *, mapped: bool) -> np.ndarray:
    """A .npy file as an array.

    Raises:
      MarvelError: the file is missing or damaged; it is named.
    """
    try:
        found: np.ndarray = np.load(file, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError as error:
        raise MarvelError(f"{file} is missing: the vector store is incomplete.") from error
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise MarvelError(
                f"{file}: this process may open no more files. Raise the limit (`ulimit -n`), or "
                "encode with more --shard-rows."
            ) from error
        raise MarvelError(f"{file} could not be read: {error.strerror or error}.") from error
    except (ValueError, EOFError) as error:
        raise MarvelError(f"{file} is not a readable .npy array: {error}.") from error
    return found


def write_array(
    file: Path, parts: Sequence[np.ndarray], *, shape: tuple[int, ...], dtype: np.dtype
) -> str:
    """Writes a .npy file of the parts one below the other; gives its hash.

    It has its name only when it is whole. The hash is taken before, as another process may write
    the same.
    """
    temporary = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    try:
        with temporary.open("wb") as stream:
            np.lib.format.write_array_header_1_0(stream, header)
            for part in parts:
                stream.write(np.ascontiguousarray(part).data)
        written = hash_files(temporary)
        temporary.replace(file)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return written
