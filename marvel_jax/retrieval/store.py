"""A vector store: unit vectors in memory-mapped shards, their ids, and what made them.

A folder with `manifest.json`, and per shard `vectors-00000.npy` (see `store_types`) and
`ids-00000.npy` (see `store_ids`), the same order in both. `store_writer` writes it.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, hash_files
from marvel_jax.retrieval import store_types
from marvel_jax.retrieval.store_ids import Ids, ids_blob
from marvel_jax.retrieval.store_manifest import (
    Manifest,
    ShardRecord,
    ids_name,
    partial_path,
    read_manifest,
    vectors_name,
)
from marvel_jax.retrieval.store_pages import Mapped, allow_open_files, load_array, open_mapped
from marvel_jax.retrieval.store_types import StoreType

# Stores up to this size stay in memory once they were read; of larger ones what was read is given
# back, so that memory does not grow with the corpus.
RESIDENT_BYTES = 256 << 20
_BLOCKS_BEHIND = 2  # blocks that a consumer may still be computing with
# The system maps up to half a megabyte around a row that is picked.
_PICKED_ROWS = 256  # of a shard, after which its pages are given back

Progress = Callable[[int, int], None]


class VectorStore:
    """A whole store, read through memory maps. Make one with `VectorStore.open`."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        shards: Sequence[Mapped],
        ids: Ids,
        content_hash: str,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.ids = ids
        self.content_hash = content_hash
        self._shards = shards
        self._starts = np.cumsum([0] + [len(shard.array) for shard in shards])
        self._streamed = self.bytes_per_vector * len(self) > RESIDENT_BYTES
        if self._streamed:
            for shard in shards:
                shard.expect_random()

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        check: Literal["content", "layout"] = "content",
        progress: Progress | None = None,
    ) -> "VectorStore":
        """Opens a store and verifies it.

        Args:
          path: the folder.
          check: "content" reads every shard once against its hash; "layout" checks counts,
            shapes, types and ids only, for a store too large to be read twice.
          progress: called with (rows verified, rows in all).

        Raises:
          MarvelError: the folder is missing, is not a store, or is damaged; the file is named.
        """
        path = Path(path)
        if not path.is_dir():
            unfinished = partial_path(path)
            hint = (
                f" An unfinished one lies in {unfinished}: encode again to complete it."
                if unfinished.exists()
                else " Make one with `marvel encode`."
            )
            raise MarvelError(f"{path} is not a vector store: no such folder.{hint}")
        manifest, records = read_manifest(path)
        kind, length = store_types.stored_row(manifest.dtype, manifest.dimension)
        shards, blobs, done = [], [], 0
        allow_open_files(len(records))
        for number, record in enumerate(records):
            if not record.rows:
                continue
            files = (path / vectors_name(number), path / ids_name(number))
            if check == "content":
                _check_content(files, record)
            shards.append(open_mapped(files[0], shape=(record.rows, length), dtype=kind))
            blobs.append(_read_ids(files[1], rows=record.rows))
            done += record.rows
            if progress is not None:
                progress(done, manifest.count)
        content_hash = hash_bytes(
            *(f"{record.vectors_hash}{record.ids_hash}".encode() for record in records)
        )
        ids = Ids(blobs, where=path)
        return cls(path, manifest, shards=shards, ids=ids, content_hash=content_hash)

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.manifest.dimension

    @property
    def dtype(self) -> StoreType:
        """The type of the stored numbers."""
        return self.manifest.dtype

    @property
    def bytes_per_vector(self) -> int:
        """Bytes of a vector on disk."""
        return store_types.bytes_per_vector(self.dtype, self.dimension)

    @functools.cached_property
    def id_rank(self) -> np.ndarray:
        """int32 [N]: the place of each row's id among the sorted ids."""
        return self.ids.rank()

    def require(self, **fields: Any) -> None:
        """Refuses a store whose manifest says otherwise, e.g. `require(model_hash=..., ...)`.

        `dimension` is the model's: a truncated store is one of its model still.

        Raises:
          MarvelError: a field differs; both values are named.
        """
        for name, wanted in fields.items():
            found = getattr(self.manifest, "model_dimension" if name == "dimension" else name)
            if found != wanted:
                raise MarvelError(
                    f"{self.path}: this vector store has {name}={found!r}, but {name}={wanted!r} "
                    "was asked for. Use the model and settings that made it, or encode again."
                )

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """int64 [n]: the rows of these ids.

        Raises:
          MarvelError: an id that the store does not hold.
        """
        rows = self.ids.rows_of(ids)
        unknown = np.flatnonzero(rows < 0)
        if unknown.size:
            raise MarvelError(
                f"{self.path}: the store has no vector for {ids[unknown[0]]!r} "
                f"({unknown.size} of {len(ids)} ids are missing). Encode the pool that has it."
            )
        return rows

    def fit(self, queries: np.ndarray) -> np.ndarray:
        """Queries float32 [Q, D] as this store can be asked: truncated where it is.

        Args:
          queries: as the model gives them, or of the store's dimension already.

        Raises:
          MarvelError: they have another dimension, or are not finite.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim == 2 and queries.shape[1] == self.manifest.full_dimension:
            queries = store_types.truncate(queries, self.dimension)
        if queries.ndim != 2 or queries.shape[1] != self.dimension:
            raise MarvelError(
                f"The queries have shape {queries.shape}, but the corpus has dimension "
                f"{self.manifest.model_dimension}: encode both with the same model."
            )
        wrong = np.flatnonzero(~np.isfinite(queries).all(axis=1))
        if wrong.size:
            raise MarvelError(
                f"Query {wrong[0]} is not finite ({wrong.size} of {len(queries)} are not)."
            )
        return queries

    def vectors(self, rows: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, D]: these rows in the order given, or all of them, decoded."""
        if rows is None:
            parts = [self._decode(shard.array) for shard in self._shards]
            return np.concatenate(parts) if len(parts) > 1 else parts[0]
        return self._decode(self.stored(rows))

    def stored(self, rows: np.ndarray) -> np.ndarray:
        """Stored rows [n, W], as `store_types` describes them, in the order given."""
        rows = np.asarray(rows, dtype=np.int64)
        if len(self._shards) == 1 and not self._streamed:
            return self._shards[0].array[rows]
        kind, length = store_types.stored_row(self.dtype, self.dimension)
        result = np.empty((len(rows), length), kind)
        # In the order of the file, whatever the order that is asked for.
        order = np.argsort(rows, kind="stable")
        bounds = np.searchsorted(rows[order], self._starts)
        for number, shard in enumerate(self._shards):
            first, last = int(bounds[number]), int(bounds[number + 1])
            for start in range(first, last, _PICKED_ROWS):
                chosen = order[start : min(start + _PICKED_ROWS, last)]
                result[chosen] = shard.array[rows[chosen] - self._starts[number]]
                if self._streamed:
                    shard.release(0, len(shard.array))
        return result

    def release(self) -> None:
        """Gives back what a large store's rows hold of memory; harmless while others read."""
        self._release(0, len(self))

    def blocks(self, rows_per_block: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, float32 [<= rows_per_block, D]) over the store in order."""
        for start, stored in self.stored_blocks(rows_per_block):
            yield start, self._decode(stored)

    def stored_blocks(self, rows_per_block: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, stored rows [<= rows_per_block, W]) over the store in order.

        The next block is read from disk meanwhile; of a large store the pages before the last
        `_BLOCKS_BEHIND` are given back.
        """
        size, released = len(self), 0
        self._fetch(0, rows_per_block)
        try:
            for start in range(0, size, rows_per_block):
                stop = min(start + rows_per_block, size)
                self._fetch(stop, stop + rows_per_block)
                yield start, self._between(start, stop)
                behind = stop - _BLOCKS_BEHIND * rows_per_block
                if behind > released:
                    self._release(released, behind)
                    released = behind
        finally:
            self.release()

    def _between(self, start: int, stop: int) -> np.ndarray:
        parts = [shard.array[first:last] for shard, first, last in self._parts(start, stop)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _parts(self, start: int, stop: int) -> Iterator[tuple[Mapped, int, int]]:
        """Where rows [start, stop) lie: shards, each with its own first and last row."""
        shard = int(np.searchsorted(self._starts, start, side="right")) - 1
        while shard < len(self._shards) and self._starts[shard] < stop:
            offset, length = int(self._starts[shard]), len(self._shards[shard].array)
            yield self._shards[shard], max(0, start - offset), min(length, stop - offset)
            shard += 1

    def _fetch(self, start: int, stop: int) -> None:
        if self._streamed:
            for shard, first, last in self._parts(start, stop):
                shard.fetch(first, last)

    def _release(self, start: int, stop: int) -> None:
        if self._streamed:
            for shard, first, last in self._parts(start, stop):
                shard.release(first, last)

    def _decode(self, stored: np.ndarray) -> np.ndarray:
        return store_types.decode(stored, self.dtype, dimension=self.dimension)


def _check_content(files: tuple[Path, Path], record: ShardRecord) -> None:
    for file, expected in zip(files, (record.vectors_hash, record.ids_hash), strict=True):
        if file.is_file() and hash_files(file) != expected:
            raise MarvelError(
                f"{file} is damaged: its content does not have the hash {expected} of the "
                "manifest. Encode the corpus again."
            )


def _read_ids(file: Path, *, rows: int) -> np.ndarray:
    blob = load_array(file, mapped=False)  # some ten bytes an id, and one open file less
    if blob.dtype.kind == "S":  # a store of version 1: bytes of one width
        blob = ids_blob(blob.tolist())
    if blob.dtype != np.uint8 or blob.ndim != 1 or np.count_nonzero(blob == 0) != rows:
        raise MarvelError(
            f"{file}: expected {rows} ids, each closed by a NUL, found {blob.dtype} of shape "
            f"{blob.shape}. Encode the corpus again."
        )
    return np.asarray(blob)
