"""A vector store: unit vectors in memory-mapped shards, their ids, and what made them.

A folder with `manifest.json`, and per shard `vectors-00000.npy` (float32 [rows, D]) and
`ids-00000.npy` (UTF-8 bytes [rows], the same order). It is written under a temporary name beside
its own and renamed when whole, so a folder of that name is a whole store.
"""

import dataclasses
import functools
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, hash_files, read_json, write_json

VERSION = 1
_NORM_TOLERANCE = 1e-3  # float32 vectors are within 1e-6; a forgotten normalisation is far off


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What made the vectors (the embedder's fields) and what they are (the store's fields)."""

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
    dtype: str = "float32"
    version: int = VERSION

    def __post_init__(self) -> None:
        if self.dtype != "float32":
            raise MarvelError(f"dtype={self.dtype!r}: this version stores vectors as 'float32'.")
        if self.version != VERSION:
            raise MarvelError(
                f"version={self.version}: this version of marvel-jax reads and writes vector "
                f"stores of version {VERSION}. Encode the corpus again."
            )
        if self.dimension < 1 or self.count < 1:
            raise MarvelError(
                "A vector store needs a dimension and a count of at least 1, found "
                f"dimension={self.dimension}, count={self.count}."
            )


class _Shard(NamedTuple):
    """One shard's record: number of rows and content hashes of its two files."""

    rows: int
    vectors_hash: str
    ids_hash: str


class StoreWriter:
    """Writes a store shard by shard; a killed writer resumes at its last whole shard.

    Append the rows from `completed` on, in order, then `finish()`.
    """

    def __init__(self, path: Path | str, manifest: Manifest, *, shard_rows: int = 65536) -> None:
        """Starts the store at `path`, or resumes one that was not finished.

        Raises:
          MarvelError: `path` exists, or an unfinished store beside it has another manifest.
        """
        self.path = Path(path)
        self.manifest = manifest
        self.shard_rows = shard_rows
        self._partial = partial_path(self.path)
        self._ids: list[bytes] = []
        self._vectors: list[np.ndarray] = []
        self._shards: list[_Shard] = []
        if self.path.exists():
            raise MarvelError(f"{self.path} exists already: choose another folder, or remove it.")
        if (self._partial / "manifest.json").exists():
            self._resume()
        else:
            shutil.rmtree(self._partial, ignore_errors=True)
            self._partial.mkdir(parents=True)
            write_json(self._partial / "manifest.json", dataclasses.asdict(manifest))

    @property
    def completed(self) -> int:
        """Rows that are safely on disk: where to go on after a kill."""
        return sum(shard.rows for shard in self._shards)

    def _resume(self) -> None:
        found = read_json(self._partial / "manifest.json")
        found.pop("shards", None)  # killed inside `finish`
        wanted = dataclasses.asdict(self.manifest)
        if found != wanted:
            differences = "; ".join(
                f"{name} is {found.get(name)!r} there, {value!r} here"
                for name, value in wanted.items()
                if found.get(name) != value
            )
            raise MarvelError(
                f"{self._partial} holds an unfinished store made otherwise ({differences}). "
                "Go on with the same model and source, or remove that folder."
            )
        while (record := self._partial / f"shard-{len(self._shards):05d}.json").exists():
            self._shards.append(_Shard(**read_json(record)))

    def append(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Adds rows: ids [n] and unit vectors float32 [n, D].

        Raises:
          MarvelError: an id is empty, a vector is not finite or not of unit norm (the id is
            named), or the shapes disagree with each other or with the manifest.
        """
        vectors = np.asarray(vectors, dtype=np.float32)
        expected = (len(ids), self.manifest.dimension)
        if vectors.shape != expected:
            raise MarvelError(
                f"{self.path}: expected vectors of shape {expected} for {len(ids)} ids and "
                f"dimension {self.manifest.dimension}, found {vectors.shape}."
            )
        norms = np.linalg.norm(vectors, axis=1)
        wrong = np.flatnonzero(~(np.abs(norms - 1) <= _NORM_TOLERANCE))  # ~ so that NaN is wrong
        if wrong.size:
            raise MarvelError(
                f"{self.path}: the vector of {ids[wrong[0]]!r} has norm {norms[wrong[0]]:g}, "
                f"expected 1 ({wrong.size} such rows of {len(ids)}). Vectors must be finite and "
                "normalised."
            )
        for name in ids:
            if not name or "\0" in name:
                raise MarvelError(f"{self.path}: {name!r} cannot be an id: empty, or with a NUL.")
        self._ids.extend(name.encode() for name in ids)
        self._vectors.append(vectors)
        while len(self._ids) >= self.shard_rows:
            self._flush(self.shard_rows)

    def _flush(self, rows: int) -> None:
        vectors = np.concatenate(self._vectors)
        number = len(self._shards)
        vectors_file = self._partial / _vectors_name(number)
        ids_file = self._partial / _ids_name(number)
        np.save(vectors_file, vectors[:rows])
        np.save(ids_file, np.array(self._ids[:rows]))
        shard = _Shard(rows, hash_files(vectors_file), hash_files(ids_file))
        # The record is what commits the shard: files without one are written again.
        write_json(self._partial / f"shard-{number:05d}.json", shard._asdict())
        self._shards.append(shard)
        self._ids = self._ids[rows:]
        self._vectors = [vectors[rows:]]

    def finish(self) -> "VectorStore":
        """Writes what is left, checks the whole, renames it to `path` and opens it.

        Raises:
          MarvelError: fewer or more rows than the manifest's count, or an id that occurs twice.
        """
        if self._ids:
            self._flush(len(self._ids))
        if self.completed != self.manifest.count:
            raise MarvelError(
                f"{self.path}: the manifest promises {self.manifest.count} rows, "
                f"{self.completed} were written."
            )
        manifest = {
            **dataclasses.asdict(self.manifest),
            "shards": [shard._asdict() for shard in self._shards],
        }
        write_json(self._partial / "manifest.json", manifest)
        try:
            VectorStore.open(self._partial, check="layout")
        except MarvelError:  # e.g. an id twice: nothing that is appended could mend it
            shutil.rmtree(self._partial)
            raise
        self._partial.replace(self.path)
        # Only now: until the store has its name, the records are what a killed writer resumes by.
        for record in self.path.glob("shard-*.json"):
            record.unlink()
        return VectorStore.open(self.path, check="layout")


class Ids(Sequence[str]):
    """The ids of a store in its order, decoded one by one from the memory map."""

    def __init__(self, shards: Sequence[np.ndarray]) -> None:
        self._shards = shards
        self._starts = np.cumsum([0] + [len(shard) for shard in shards])

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[row] for row in range(*index.indices(len(self)))]
        row = index + len(self) if index < 0 else index
        if not 0 <= row < len(self):
            raise IndexError(index)
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        return bytes(self._shards[shard][row - self._starts[shard]]).decode()


class VectorStore:
    """A whole store, read through memory maps. Make one with `VectorStore.open`."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        *,
        shards: Sequence[np.ndarray],
        ids: Sequence[np.ndarray],
        content_hash: str,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.ids = Ids(ids)
        self.content_hash = content_hash
        self._shards = shards
        self._starts = np.cumsum([0] + [len(shard) for shard in shards])
        # UTF-8 bytes sort as their strings do, so that one argsort gives the order of ids.
        self._keys = np.concatenate(list(ids))
        self._order = np.argsort(self._keys, kind="stable")
        self._check_duplicates()

    @classmethod
    def open(
        cls, path: Path | str, *, check: Literal["content", "layout"] = "content"
    ) -> "VectorStore":
        """Opens a store and verifies it.

        Args:
          path: the folder.
          check: "content" reads every shard once against its hash; "layout" checks counts,
            shapes, types and ids only, for a store too large to be read twice.

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
        record = read_json(path / "manifest.json")
        names = [field.name for field in dataclasses.fields(Manifest)]
        if not isinstance(record, dict) or set(record) != {*names, "shards"}:
            raise MarvelError(
                f"{path / 'manifest.json'} is not the manifest of a whole vector store: expected "
                f"the fields {', '.join([*names, 'shards'])}."
            )
        records = [_Shard(**shard) for shard in record.pop("shards")]
        manifest = Manifest(**record)
        vectors, ids = [], []
        for number, shard in enumerate(records):
            files = (path / _vectors_name(number), path / _ids_name(number))
            hashes = (shard.vectors_hash, shard.ids_hash)
            for file, expected in zip(files, hashes, strict=True):
                if file.is_file() and check == "content" and hash_files(file) != expected:
                    raise MarvelError(
                        f"{file} is damaged: its content does not have the hash {expected} of the "
                        "manifest. Encode the corpus again."
                    )
            shape = (shard.rows, manifest.dimension)
            vectors.append(_map(files[0], shape=shape, kind="f"))
            ids.append(_map(files[1], shape=(shard.rows,), kind="S"))
        rows = sum(shard.rows for shard in records)
        if rows != manifest.count:
            raise MarvelError(
                f"{path}: the manifest counts {manifest.count} rows, its shards hold {rows}."
            )
        content_hash = hash_bytes(
            *(f"{shard.vectors_hash}{shard.ids_hash}".encode() for shard in records)
        )
        return cls(path, manifest, shards=vectors, ids=ids, content_hash=content_hash)

    def _check_duplicates(self) -> None:
        ordered = self._keys[self._order]
        same = np.flatnonzero(ordered[1:] == ordered[:-1])
        if same.size:
            first, second = self._order[same[0]], self._order[same[0] + 1]
            raise MarvelError(
                f"{self.path}: the id {self.ids[int(first)]!r} occurs twice (rows {first} and "
                f"{second}); {same.size} ids in all are repeated. Ids must be unique."
            )

    def __len__(self) -> int:
        return self.manifest.count

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.manifest.dimension

    @functools.cached_property
    def id_rank(self) -> np.ndarray:
        """int32 [N]: the place of each row's id among the sorted ids."""
        rank = np.empty(len(self), np.int32)
        rank[self._order] = np.arange(len(self), dtype=np.int32)
        return rank

    def require(self, **fields: Any) -> None:
        """Refuses a store whose manifest says otherwise, e.g. `require(model_hash=..., ...)`.

        Raises:
          MarvelError: a field differs; both values are named.
        """
        for name, wanted in fields.items():
            found = getattr(self.manifest, name)
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
        keys = np.array([name.encode() for name in ids], dtype=np.bytes_)
        places = np.searchsorted(self._keys, keys, sorter=self._order)
        rows = self._order[np.minimum(places, len(self) - 1)]
        unknown = np.flatnonzero(self._keys[rows] != keys)
        if unknown.size:
            raise MarvelError(
                f"{self.path}: the store has no vector for {ids[unknown[0]]!r} "
                f"({unknown.size} of {len(ids)} ids are missing). Encode the pool that has it."
            )
        return rows

    def vectors(self, rows: np.ndarray | None = None) -> np.ndarray:
        """float32 [n, D]: these rows in the order given, or all of them."""
        if rows is None:
            return np.concatenate(self._shards) if len(self._shards) > 1 else self._shards[0]
        rows = np.asarray(rows, dtype=np.int64)
        if len(self._shards) == 1:
            return self._shards[0][rows]
        result = np.empty((len(rows), self.dimension), np.float32)
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of):
            chosen = shard_of == shard
            result[chosen] = self._shards[shard][rows[chosen] - self._starts[shard]]
        return result

    def blocks(self, rows_per_block: int) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (first row, float32 [<= rows_per_block, D]) over the store in order."""
        for start in range(0, len(self), rows_per_block):
            stop = min(start + rows_per_block, len(self))
            shard = int(np.searchsorted(self._starts, start, side="right")) - 1
            if stop <= self._starts[shard + 1]:
                offset = self._starts[shard]
                yield start, self._shards[shard][start - offset : stop - offset]
            else:
                yield start, self.vectors(np.arange(start, stop))


def partial_path(path: Path | str) -> Path:
    """Where a store that will be `path` is written until it is whole."""
    path = Path(path)
    return path.parent / f".{path.name}.unfinished"


def _vectors_name(number: int) -> str:
    return f"vectors-{number:05d}.npy"


def _ids_name(number: int) -> str:
    return f"ids-{number:05d}.npy"


def _map(file: Path, *, shape: tuple[int, ...], kind: str) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise MarvelError(f"{file} is missing: the vector store is incomplete.") from error
    except (ValueError, EOFError, OSError) as error:
        raise MarvelError(f"{file} is not a readable .npy array: {error}.") from error
    expected = "float32" if kind == "f" else "bytes"
    if array.shape != shape or array.dtype.kind != kind or (kind == "f" and array.itemsize != 4):
        raise MarvelError(
            f"{file}: expected {expected} of shape {shape}, found {array.dtype} of shape "
            f"{array.shape}. Encode the corpus again."
        )
    return array
