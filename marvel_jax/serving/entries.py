"""Entries as clients are told of them: no path, and a picture only while it is there."""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from marvel_jax.collection.entry import Entry
from marvel_jax.errors import MarvelError
from marvel_jax.serving.problems import Problem
from marvel_jax.serving.schemas import EntryBody

if TYPE_CHECKING:  # what computes is loaded by who hands it in
    from marvel_jax.collection.collection import Collection


class Shown(NamedTuple):
    """An entry, and whether its picture has gone; then its `image` is None."""

    entry: Entry
    gone: bool


class Entries:
    """Reads a collection's entries; a picture that has gone since spoils no other."""

    def __init__(self, collection: "Collection", *, say: Callable[[str], None]) -> None:
        """`say` is told once of each picture that has gone, and where it leads."""
        self._collection, self._say = collection, say
        self._told: set[int] = set()

    def row(self, id: str) -> int:
        """The row of an id.

        Raises:
          Problem: there is none.
        """
        try:
            return self._collection.row_of(id) if is_text(id) else _unknown()
        except MarvelError:
            return _unknown()

    def find(self, id: str) -> Shown:
        """The entry of an id; raises as `row` and `at`."""
        return self.at(self.row(id))

    def at(self, row: int) -> Shown:
        """The entry of a row.

        Raises:
          MarvelError: the collection is damaged.
        """
        try:
            entry = self._collection.entry(row)
            if entry.image is None or entry.image.is_file():
                return Shown(entry, gone=False)
            reason = f"{entry.image} is no longer there: index again."
            texts = tuple(part for part in entry.parts if isinstance(part, str))
            entry = dataclasses.replace(entry, image=None, parts=texts)
        except (MarvelError, OSError, RuntimeError) as error:  # the last: links in a circle
            reason = str(error)
            entry = self._collection.entry(row, gone=True)
        if row not in self._told:
            self._told.add(row)
            self._say(reason)
        return Shown(entry, gone=True)


def body_of(shown: Shown) -> EntryBody:
    """What a client is told of an entry: no path."""
    entry = shown.entry
    return EntryBody(
        id=entry.id,
        kind=entry.kind,
        name=entry.name,
        text=entry.text,
        image=entry.image is not None,
        gone=shown.gone,
    )


def is_text(value: str) -> bool:
    """Half of a surrogate pair, which JSON can write, is no text that a tokenizer reads."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown() -> int:
    raise Problem(404, "unknown_id", "The collection has no entry of this id.")
