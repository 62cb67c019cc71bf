"""The content of files that somebody else made: ordinary files only, of bounded size."""

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from marvel_jax.errors import MarvelError

MOST_TEXT_BYTES = 1 << 20
"""Of a text file or of an item's texts: one item is a passage, not a book."""

MOST_PICTURE_BYTES = 1 << 30
"""Of a picture's file: more than the pixels of any that is decoded take."""

_BLOCK = 1 << 20


def content_hash(parts: Sequence[str | Path]) -> str:
    """A hash of the texts and of the bytes of the pictures, in their order.

    Raises:
      OSError: a picture cannot be read.
      MarvelError: it is no ordinary file, is too large, or changes while it is read.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, str):
            content = part.encode()
            digest.update(f"text {len(content)} ".encode())
            digest.update(content)
            continue
        with _opened(part) as (stream, size):
            if size > MOST_PICTURE_BYTES:
                raise MarvelError(
                    f"the file has {size:,} bytes, and {MOST_PICTURE_BYTES:,} are the most of a "
                    "picture: make it smaller"
                )
            digest.update(f"image {size} ".encode())
            left = size
            while block := stream.read(min(_BLOCK, left)):
                digest.update(block)
                left -= len(block)
            if left or stream.read(1):
                raise MarvelError("it changed while it was read: index again")
    return digest.hexdigest()


def read_text(path: Path) -> str:
    """The text of a file.

    Raises:
      OSError: it cannot be read.
      UnicodeDecodeError: it is not UTF-8.
      MarvelError: it is no ordinary file, is too long, or holds nothing.
    """
    with _opened(path) as (stream, size):
        check_length(size)
        content = stream.read(MOST_TEXT_BYTES + 1)
    check_length(len(content))
    text = content.decode("utf-8-sig")
    if not text.strip():
        raise MarvelError("the text is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_length(size: int) -> None:
    """Refuses a text of too many bytes."""
    if size > MOST_TEXT_BYTES:
        raise MarvelError(
            f"the text has {size:,} bytes, and {MOST_TEXT_BYTES:,} are the most of one item: cut "
            "it into passages"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """The file and its size in bytes; a pipe, which could keep one waiting for ever, is refused."""
    # Opening a pipe waits for who writes into it, unless it is told not to.
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        found = os.fstat(number)
        if not stat.S_ISREG(found.st_mode):
            raise MarvelError("it is no ordinary file: a pipe, a device or a folder is not read")
        with os.fdopen(number, "rb", closefd=False) as stream:
            yield stream, found.st_size
    finally:
        os.close(number)
