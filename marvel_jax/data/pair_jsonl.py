"""Pairs of any modality in JSON lines: the format for data of your own."""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from marvel_jax.data.item_json import CONTENT, item_from_json
from marvel_jax.data.items import Item
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.pairs import Pair
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, hash_files

_FIELDS = ("query", "positives", "negatives", "instruction", "meta")


class JsonPairs:
    """One pair a line:

    {"query": {"text": "...", "image": "a.jpg"}, "positives": [{"image": "b.jpg"}],
     "negatives": ["a text alone"], "instruction": "Find ..."}

    An item is an object with "text", "image" (a path, or a list of them) or both, with "parts" (see
    `data.item_json`: texts and images in any order), or just a text.
    "query" and "positives" (one item or a list) are needed; "negatives", hard ones, are not. So is
    not "instruction", one text or a list of which every step draws one. "meta" may hold anything.
    Paths count from `images`, default the file's folder. The format is ours: its tests are its
    check.

    Raises:
      MarvelError: the file is missing; later, a line is not of this form (file, line and field).
    """

    def __init__(self, path: Path | str, *, images: Path | str | None = None) -> None:
        self._lines = JsonLines(path)
        self.path = self._lines.path
        self._images = self.path.parent if images is None else Path(images)

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Pair:
        return self._pair(self._lines[index], self.where(index))

    def __iter__(self) -> Iterator[Pair]:
        for index, line in enumerate(self._lines):
            yield self._pair(line, self.where(index))

    def where(self, index: int) -> str:
        """File and line of a pair."""
        return self._lines.where(index) if index < len(self) else str(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the file."""
        return hash_bytes(b"jsonl", hash_files(self.path).encode())

    def _pair(self, record: dict[str, Any], where: str) -> Pair:
        _known(record, _FIELDS, where)
        for field in ("query", "positives"):
            if field not in record:
                raise MarvelError(f"{where}: {field} is missing.")
        return Pair(
            query=self._item(record["query"], f"{where}: query"),
            positives=self._items(record["positives"], f"{where}: positives"),
            negatives=self._items(record.get("negatives", []), f"{where}: negatives"),
            instructions=_instructions(record.get("instruction"), where),
        )

    def _items(self, value: Any, where: str) -> tuple[Item, ...]:
        values = value if isinstance(value, list) else [value]
        return tuple(self._item(one, where) for one in values)

    def _item(self, value: Any, where: str) -> Item:
        fields = {"text": value} if isinstance(value, str) else value
        if not isinstance(fields, dict):
            raise MarvelError(f"{where}: expected a text or an object, found {value!r}.")
        _known(fields, CONTENT, where)
        item = item_from_json(fields, root=self._images, where=where)
        if len(item.images) < len(item.visuals):
            raise MarvelError(
                f"{where}: video is encoded and evaluated, not trained on. Give its frames as "
                "images."
            )
        return item


def _known(record: dict[str, Any], fields: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(record) - set(fields))
    if unknown:
        raise MarvelError(f"{where}: unknown field {unknown[0]!r}; there are {', '.join(fields)}.")


def _instructions(value: Any, where: str) -> tuple[str, ...]:
    values = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(one, str) and one.strip() for one in values):
        raise MarvelError(f"{where}: expected instruction as a text or texts, found {value!r}.")
    return tuple(values)
