"""The versions of a collection on disk: one is current, and a new one takes its place at once.

COLLECTION/collection.json   {"current": "v00002"}, replaced by one rename
COLLECTION/v00001/ v00002/   whole versions; the one before stays, for who still reads it
COLLECTION/.encoded/         vectors of a run that has not ended, by content
COLLECTION/.lock             held by who indexes
"""

import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from marvel_jax.errors import MarvelError
from marvel_jax.file_locks import lock
from marvel_jax.files import read_json_object, write_json

POINTER = "collection.json"
_FORMAT = "marvel-jax collection"
_NAME = re.compile(r"v\d{5}")


def is_collection(folder: Path) -> bool:
    """Whether the folder is a collection, be it a damaged one."""
    return (folder / POINTER).is_file()


def current(folder: Path) -> Path:
    """The folder of the current version.

    Raises:
      MarvelError: the folder is no collection, or its version is gone.
    """
    if not is_collection(folder):
        hint = ""
        if encoded(folder).is_dir():
            hint = " An unfinished one lies there: the same `marvel index` again completes it."
        raise MarvelError(
            f"{folder} is not a collection: it has no {POINTER}. Make one with `marvel index "
            f"FOLDER --model MODEL --out COLLECTION`.{hint}"
        )
    pointer = read_json_object(folder / POINTER)
    name = pointer.get("current")
    if pointer.get("format") != _FORMAT or not isinstance(name, str) or not _NAME.fullmatch(name):
        raise MarvelError(f"{folder / POINTER} is damaged: {pointer!r}. Index again.")
    if not (folder / name).is_dir():
        raise MarvelError(f"{folder}: its version {name} is gone. Remove the rest and index again.")
    return folder / name


def following(folder: Path) -> Path:
    """The folder of the next version, which is not there yet."""
    numbers = [int(one.name[1:]) for one in folder.glob("v*") if _NAME.fullmatch(one.name)]
    return folder / f"v{max(numbers, default=0) + 1:05d}"


def switch(folder: Path, version: Path) -> None:
    """Makes a version the current one; versions that nobody needs any more go."""
    before = current(folder) if is_collection(folder) else None
    write_json(folder / POINTER, {"format": _FORMAT, "current": version.name})
    for one in folder.glob("v*"):
        if _NAME.fullmatch(one.name) and one not in (version, before):
            shutil.rmtree(one, ignore_errors=True)
    shutil.rmtree(encoded(folder), ignore_errors=True)


def encoded(folder: Path) -> Path:
    """Where vectors lie that belong to no version yet."""
    return folder / ".encoded"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the collection for one who writes; the lock goes with the process.

    Raises:
      MarvelError: another process holds it.
    """
    file = lock(folder / ".lock")
    if file is None:
        raise MarvelError(
            f"{folder} is being indexed by another process: wait for it, or choose another --out."
        )
    with file:
        yield
