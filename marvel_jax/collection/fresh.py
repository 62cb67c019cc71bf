"""Vectors of what no version of the collection has yet, by content.

They are encoded a part at a time. A part that is done is a vector store of its own under
`.encoded/`, with contents' hashes for ids, and is used by whatever run comes next, though the
source may have changed meanwhile.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.collection.entry import item_of
from marvel_jax.collection.source import Read
from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes
from marvel_jax.lazy import LazySequence
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode_calls import Tally
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_writer import Manifest, StoreWriter

PART_ITEMS = 4096
_ENDING = ".store"


class Place(NamedTuple):
    """Where a vector lies."""

    store: VectorStore
    row: int


class Encoded(NamedTuple):
    """Where the vector of each content lies, and why others have none."""

    places: dict[str, Place]
    reasons: dict[str, str]


def places_of(store: VectorStore, keys: Sequence[str] | None = None) -> dict[str, Place]:
    """The vectors of a store by key; without keys, by id."""
    named = store.ids if keys is None else keys
    return {key: Place(store, row) for row, key in enumerate(named)}


def left_parts(folder: Path, embedder_fields: Mapping[str, Any]) -> dict[str, Place]:
    """What a run that did not end has encoded; parts of another model are removed."""
    found: dict[str, Place] = {}
    for path in sorted(folder.glob(f"*{_ENDING}")):
        try:
            store = VectorStore.open(path)
            store.require(**embedder_fields)
        except MarvelError:
            shutil.rmtree(path, ignore_errors=True)
            continue
        found |= places_of(store)
    return found


def encode_fresh(
    embedder: Embedder,
    fresh: Sequence[Read],
    folder: Path,
    *,
    batch_tokens: int,
    part_items: int = PART_ITEMS,
    progress: Callable[[int, int], None] | None = None,
    tally: Tally | None = None,
) -> Encoded:
    """Encodes items, each of another content, into parts under `folder`.

    A picture that cannot be used has a reason and no vector; the others keep theirs.
    """
    encoded = Encoded({}, {})
    for start in range(0, len(fresh), part_items):
        part = fresh[start : start + part_items]

        def report(done: int, _: int, before: int = start) -> None:
            if progress is not None:
                progress(before + done, len(fresh))

        reasons: dict[int, str] = {}

        def note(place: int, error: ImageError, reasons: dict[int, str] = reasons) -> None:
            reasons[place] = error.reason

        vectors = embedder.encode(
            _Items(part),
            batch_tokens=batch_tokens,
            progress=report,
            on_failure=note,
            tally=tally,
        )
        encoded.reasons.update({part[place].content: why for place, why in reasons.items()})
        kept = [place for place in range(len(part)) if place not in reasons]
        if kept:
            contents = [part[place].content for place in kept]
            encoded.places.update(places_of(_written(embedder, folder, contents, vectors[kept])))
    return encoded


def _written(
    embedder: Embedder, folder: Path, contents: Sequence[str], vectors: np.ndarray
) -> VectorStore:
    source = hash_bytes(*(one.encode() for one in contents))
    path = folder / f"{source}{_ENDING}"
    manifest = Manifest(**embedder.manifest_fields(), count=len(contents), source_hash=source)
    if path.exists():  # of a run whose part could not be read again
        shutil.rmtree(path)
    writer = StoreWriter(path, manifest, shard_rows=len(contents))
    if not writer.has(0):
        writer.write(0, contents, vectors)
    return writer.finish()


class _Items(LazySequence[Item]):
    def __init__(self, part: Sequence[Read]) -> None:
        self._part = part

    def __len__(self) -> int:
        return len(self._part)

    def make(self, index: int) -> Item:
        """The item, its pictures not yet read."""
        one = self._part[index]
        return item_of(one.parts, id=one.id)
