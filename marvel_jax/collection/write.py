"""The files of a version of a collection: entries, failures, vectors and what searches them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.collection.entry import KINDS, kind_of
from marvel_jax.collection.fresh import Place
from marvel_jax.collection.source import Failure, Read
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, read_jsonl, write_jsonl
from marvel_jax.retrieval import scann_memory, scann_ops
from marvel_jax.retrieval.scann_config import ScannConfig
from marvel_jax.retrieval.scann_index import ScannIndex, ScannUnavailableError
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_convert import convert
from marvel_jax.retrieval.store_writer import Manifest, StoreWriter

ENTRIES, KIND_ROWS, FAILURES = "entries.jsonl", "kinds.npy", "failures.jsonl"
STORE, SCANN, LABELLED = "store", "scann", "labelled.jsonl"

_BLOCK = 8192
_SHARD_ROWS = 65536
_LEAST_DIMENSION = 16
_TRUNCATED_BYTES = 1 << 30  # of a store that is also kept in halves and quarters of its width

Say = Callable[[str], None]


def store_name(dimension: int | None) -> str:
    """The folder of all numbers of the vectors, or of the first so many."""
    return STORE if dimension is None else f"{STORE}-{dimension}"


def write_entries(folder: Path, records: Sequence[dict[str, Any]], rows: Sequence[Read]) -> None:
    """Writes what the rows show, and the kind of each (uint8 [N], a place in `KINDS`)."""
    write_jsonl(folder / ENTRIES, list(records))
    kinds = np.array([KINDS.index(kind_of(row.parts)) for row in rows], np.uint8)
    np.save(folder / KIND_ROWS, kinds)


def write_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """Writes what could not be used: id, file and error of each."""
    write_jsonl(folder / FAILURES, [one._asdict() for one in failures])


def labelled_rows(path: Path) -> list[dict[str, Any]]:
    """A jsonl of labelled queries with whole paths of pictures, so that it can be kept elsewhere.

    Raises:
      MarvelError: the file is missing or no jsonl.
    """

    def whole(value: Any) -> Any:
        if isinstance(value, list):
            return [whole(one) for one in value]
        if isinstance(value, dict):
            return {**value, "image": whole(value["image"])} if "image" in value else value
        return str((path.parent / value).resolve()) if isinstance(value, str) and value else value

    rows = []
    for _, row in read_jsonl(path):
        row = {**row, "image": whole(row["image"])} if "image" in row else dict(row)
        if isinstance(row.get("parts"), list):
            row["parts"] = [whole(one) if isinstance(one, dict) else one for one in row["parts"]]
        rows.append(row)
    return rows


def write_store(
    folder: Path,
    rows: Sequence[Read],
    places: Mapping[str, Place],
    embedder_fields: Mapping[str, Any],
) -> VectorStore:
    """Writes the vectors of the rows in their order, from wherever they lie."""
    source_hash = hash_bytes(*(f"{row.id}\n{row.content}".encode() for row in rows))
    manifest = Manifest(**embedder_fields, count=len(rows), source_hash=source_hash)
    writer = StoreWriter(folder / STORE, manifest, shard_rows=_SHARD_ROWS)
    left = iter(rows)
    while block := list(islice(left, _BLOCK)):
        found = [places[row.content] for row in block]
        vectors = np.empty((len(block), manifest.dimension), np.float32)
        for store in {id(place.store): place.store for place in found}.values():
            own = [number for number, place in enumerate(found) if place.store is store]
            vectors[own] = store.vectors(np.array([found[number].row for number in own]))
        writer.append([row.id for row in block], vectors)
    return writer.finish()


def dimensions_of(asked: Sequence[int] | None, dimension: int, count: int) -> tuple[int, ...]:
    """The widths that a collection can be searched in, all numbers first.

    Those asked for; else the half and the quarter, of a store of up to a gibibyte.

    Raises:
      MarvelError: one is asked for that is none of 1 to the full width.
    """
    if asked is not None:
        for one in asked:
            if not 1 <= one <= dimension:
                raise MarvelError(
                    f"--dimensions {one}: the vectors have {dimension} numbers. Name fewer."
                )
        return (dimension, *sorted({one for one in asked if one != dimension}, reverse=True))
    if 4 * dimension * count > _TRUNCATED_BYTES:
        return (dimension,)
    shorter = (dimension // 2, dimension // 4)
    return (dimension, *(one for one in shorter if one >= _LEAST_DIMENSION))


def write_truncated(folder: Path, store: VectorStore, dimensions: Sequence[int]) -> None:
    """Writes stores of the first numbers of the vectors, of unit norm again."""
    for dimension in dimensions[1:]:
        convert(store, folder / store_name(dimension), dimension=dimension)


def wants_scann(count: int, dimension: int, *, asked: bool, must: bool, say: Say) -> bool:
    """Whether an index is to be built: it is asked for, or the rule would build leaves.

    Raises:
      MarvelError: it must be, and ScaNN has no build for this platform; else `say` is told.
    """
    config = ScannConfig().resolve(count, dimension, memory=scann_memory.budget(None))
    if not asked and config.kind != "tree":
        return False
    try:
        scann_ops.require()
    except ScannUnavailableError as error:
        if must:
            raise
        say(f"{error} The collection is searched exactly.")
        return False
    return True


def write_scann(folder: Path, store: VectorStore, *, say: Say) -> None:
    """Builds the ScaNN index."""
    ScannIndex.build(store, path=folder / SCANN, say=say)
