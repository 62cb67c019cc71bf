"""Pictures with a caption in one JSON object: the annotations of CC3M-595K."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.items import Item
from marvel_jax.data.pairs import Pair
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, hash_files


class CaptionPairs:
    """A JSON object, id -> {"h5v": picture's path, "instruct_ans": [caption], ...}.

    The caption asks and the picture answers. Written by specification, not checked on the
    published file. A relative path counts from `images` (default: the file's folder). An absolute
    one is taken as it stands, and with `images` by its last component: published files hold the
    paths of the machine that made them.

    The file is read entry by entry, and captions and paths are kept as bytes: some two hundred an
    entry, where Python objects would take two thousand.

    Raises:
      MarvelError: the file is missing or broken, an id comes twice, or an entry has no path or no
        caption.
    """

    def __init__(self, path: Path | str, *, images: Path | str | None = None) -> None:
        self.path = Path(path)
        self._images = None if images is None else Path(images)
        if not self.path.is_file():
            raise MarvelError(f"{self.path} does not exist.")
        ids, captions, shown = _Texts(), _Texts(), _Texts()
        known: set[str] = set()
        for id, entry in _entries(self.path):
            if id in known:
                raise MarvelError(f"{self.path}: the id {id!r} comes twice: remove one.")
            known.add(id)
            caption, picture = _fields(entry, f"{self.path}, id {id!r}")
            ids.append(id)
            captions.append(caption)
            shown.append(picture)
        self._ids, self._captions, self._shown = ids.seal(), captions.seal(), shown.seal()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> Pair:
        return Pair(
            query=Item.of(text=self._captions[index]),
            positives=(Item.of(image=self._place(self._shown[index])),),
        )

    def __iter__(self) -> Iterator[Pair]:
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> str:
        """File and id of an entry."""
        return f"{self.path}" + (f", id {self._ids[index]!r}" if index < len(self) else "")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the file."""
        return hash_bytes(b"captions", hash_files(self.path).encode())

    def _place(self, written: str) -> Path:
        path = Path(written)
        if not path.is_absolute():
            return (self._images or self.path.parent) / path
        return path if self._images is None else self._images / path.name


class _Texts:
    """Many texts as one run of bytes."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._bytes = b""
        self._ends = np.zeros(1, np.int64)

    def append(self, text: str) -> None:
        self._parts.append(text.encode())

    def seal(self) -> "_Texts":
        self._ends = np.cumsum([0, *map(len, self._parts)])
        self._bytes = b"".join(self._parts)
        self._parts = []
        return self

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return self._bytes[int(self._ends[index]) : int(self._ends[index + 1])].decode()


def _fields(entry: Any, where: str) -> tuple[str, str]:
    """(caption, path) of an entry."""
    if not isinstance(entry, dict):
        raise MarvelError(f"{where}: expected an object, found {type(entry).__name__}.")
    path, answers = entry.get("h5v"), entry.get("instruct_ans")
    if not isinstance(path, str) or not path.strip():
        raise MarvelError(f"{where}: expected h5v as the picture's path, found {path!r}.")
    caption = answers[0] if isinstance(answers, list) and answers else None
    if not isinstance(caption, str) or not caption.strip():
        raise MarvelError(f"{where}: expected instruct_ans as [caption], found {answers!r}.")
    return caption, path


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of one large JSON object, without holding more than one of them."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise MarvelError(f"{path} is not UTF-8 text: {error}.") from error
    decoder = json.JSONDecoder()
    place = _expect(path, text, 0, "{")
    more = text[place : place + 1] != "}"
    while more:
        key, place = _decode(decoder, path, text, place)
        if not isinstance(key, str):
            raise _broken(path, text, place, f"expected an id in quotes, found {key!r}")
        place = _expect(path, text, place, ":")
        value, place = _decode(decoder, path, text, place)
        yield key, value
        place = _blank(text, place)
        more = text[place : place + 1] != "}"
        if more:
            place = _expect(path, text, place, ",")
    place = _blank(text, place + 1)
    if place < len(text):
        raise _broken(path, text, place, f"more behind its end: {text[place : place + 20]!r}")


def _decode(decoder: json.JSONDecoder, path: Path, text: str, place: int) -> tuple[Any, int]:
    try:
        return decoder.raw_decode(text, place)
    except json.JSONDecodeError as error:
        raise _broken(path, text, error.pos, error.msg) from error


def _expect(path: Path, text: str, place: int, mark: str) -> int:
    """The place of what follows `mark`, which comes next."""
    place = _blank(text, place)
    if text[place : place + 1] != mark:
        raise _broken(path, text, place, f"expected {mark!r}, found {text[place : place + 1]!r}")
    return _blank(text, place + 1)


def _blank(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t", "\r", "\n"):
        place += 1
    return place


def _broken(path: Path, text: str, place: int, reason: str) -> MarvelError:
    line = text.count("\n", 0, place) + 1
    return MarvelError(
        f"{path}, line {line}, character {place}: not a JSON object of entries ({reason})."
    )
