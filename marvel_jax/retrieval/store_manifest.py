"""What a vector store says about itself: `manifest.json`, and the names of its files."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json
from marvel_jax.retrieval.store_types import StoreType, check_type

VERSION = 2
_SINCE_2 = {"full_dimension": None, "failures": 0}


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What made the vectors (the embedder's fields) and what they are (the store's fields).

    dimension: numbers of a vector. full_dimension: those that the model gave, where the store holds
      the first `dimension` of them, normalised again; else None.
    count: vectors. While a store is written it counts those that failed, too.
    dtype: see `store_types`.
    failures: items of the source that have no vector because they could not be read.
    """

    model_hash: str
    processor_hash: str
    template: str
    attention: str
    pooling: str
    positions: str
    min_pixels: int
    max_pixels: int
    dimension: int
    count: int
    source_hash: str
    dtype: StoreType = "float32"
    full_dimension: int | None = None
    failures: int = 0
    version: int = VERSION

    def __post_init__(self) -> None:
        check_type(self.dtype)
        if self.version != VERSION:
            raise MarvelError(
                f"version={self.version}: this version of marvel-jax reads vector stores up to "
                f"version {VERSION}. Encode the corpus again."
            )
        if self.dimension < 1 or self.count < 1:
            raise MarvelError(
                "A vector store needs a dimension and a count of at least 1, found "
                f"dimension={self.dimension}, count={self.count}."
            )
        if self.full_dimension is not None and self.full_dimension <= self.dimension:
            raise MarvelError(
                f"dimension={self.dimension} is no truncation of full_dimension="
                f"{self.full_dimension}: give fewer, or leave full_dimension None."
            )

    @property
    def model_dimension(self) -> int:
        """Numbers of the vectors that the model gives, of which the store may hold the first."""
        return self.full_dimension or self.dimension


class ShardRecord(NamedTuple):
    """One shard: its rows, and the content hashes of its two files; none where it has no row."""

    rows: int
    vectors_hash: str
    ids_hash: str


def read_manifest(path: Path) -> tuple[Manifest, list[ShardRecord]]:
    """The manifest of a whole store and its shards.

    Raises:
      MarvelError: it is missing, or not the manifest of a whole store of a version known here.
    """
    file = path / "manifest.json"
    record: Any = read_json(file)
    names = {field.name for field in dataclasses.fields(Manifest)}
    if isinstance(record, dict) and record.get("version") == 1:
        record = {**_SINCE_2, **record, "version": VERSION}
    if not isinstance(record, dict) or set(record) != {*names, "shards"}:
        raise MarvelError(
            f"{file} is not the manifest of a whole vector store: expected the fields "
            f"{', '.join([*sorted(names), 'shards'])}."
        )
    shards = record.pop("shards")
    try:
        manifest, shards = Manifest(**record), [ShardRecord(**shard) for shard in shards]
        rows = sum(shard.rows for shard in shards)
    except MarvelError as error:
        raise MarvelError(f"{file}: {error}") from error
    except TypeError as error:
        raise MarvelError(f"{file} is damaged: {error}. Encode the corpus again.") from error
    if rows != manifest.count:
        raise MarvelError(
            f"{path}: the manifest counts {manifest.count} rows, its shards hold {rows}."
        )
    return manifest, shards


def partial_path(path: Path | str) -> Path:
    """Where a store that will be `path` is written until it is whole."""
    path = Path(path)
    return path.parent / f".{path.name}.unfinished"


def vectors_name(number: int) -> str:
    """The file of a shard's vectors: stored rows [rows, W] as .npy."""
    return f"vectors-{number:05d}.npy"


def ids_name(number: int) -> str:
    """The file of a shard's ids: see `store_ids`."""
    return f"ids-{number:05d}.npy"
