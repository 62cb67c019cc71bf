"""Writes a vector store shard by shard, by one process or by several, and resumes.

A store is written beside its place under the name of `partial_path` and renamed when whole, so a
folder of its own name is a whole store. A shard is there when its record `shard-00000.json` is:
files without one are written again. `unfinished.json` says what is being written, so that nobody
goes on with something else.
"""

import contextlib
import dataclasses
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files, read_json
from marvel_jax.retrieval import store_types
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_ids import encode_ids, ids_blob
from marvel_jax.retrieval.store_manifest import (
    Manifest,
    ShardRecord,
    ids_name,
    partial_path,
    vectors_name,
)
from marvel_jax.retrieval.store_pages import write_array

__all__ = ["Manifest", "StoreWriter", "partial_path"]

_PROMISE = "unfinished.json"


class StoreWriter:
    """Writes a store; a killed writer resumes at its last whole shard.

    Either `append` the rows from `completed` on, in order, or `write` whole shards by their
    numbers, in any order and from several processes; then `finish()`.
    """

    def __init__(
        self,
        path: Path | str,
        manifest: Manifest,
        *,
        shard_rows: int = 65536,
        made_of: str | None = None,
    ) -> None:
        """Starts the store at `path`, or goes on with one that was not finished.

        Args:
          path: the folder to be.
          manifest: its `count` is that of the source, items that will fail included; with
            `full_dimension`, vectors of that length are truncated here.
          shard_rows: items a shard; the last has what is left.
          made_of: a hash of what the vectors are made of, beside what the manifest says.

        Raises:
          MarvelError: `path` exists, or an unfinished store beside it has another manifest.
        """
        self.path = Path(path)
        self.manifest = manifest
        self.shard_rows = shard_rows
        self._made_of = made_of
        self._partial = partial_path(self.path)
        self._ids: list[bytes] = []
        self._stored: list[np.ndarray] = []
        if shard_rows < 1:
            raise MarvelError(f"shard_rows={shard_rows}: a shard has at least 1 row.")
        if self.path.exists():
            raise MarvelError(f"{self.path} exists already: choose another folder, or remove it.")
        if (self._partial / "manifest.json").exists() and not (self._partial / _PROMISE).exists():
            raise MarvelError(
                f"{self._partial} holds an unfinished store of an earlier version of marvel-jax: "
                "remove that folder and encode again."
            )
        with self._explained():
            self._partial.mkdir(parents=True, exist_ok=True)
            if self.path.exists():  # another process made it whole just now
                with contextlib.suppress(OSError):
                    self._partial.rmdir()
                raise MarvelError(f"{self.path} exists already: another process made it whole.")
            if not (self._partial / _PROMISE).exists():
                self._give_promise()
            self._check_promise()

    @property
    def num_shards(self) -> int:
        """Shards that the whole store has."""
        return math.ceil(self.manifest.count / self.shard_rows)

    @property
    def completed(self) -> int:
        """Items that are safely on disk, from the first on: where to go on after a kill."""
        return min(self._next() * self.shard_rows, self.manifest.count)

    @property
    def failures(self) -> list[dict[str, str]]:
        """What the shards on disk say could not be read, in their order."""
        return [
            failure
            for record in self._records()
            if record is not None
            for failure in record["failures"]
        ]

    def has(self, number: int) -> bool:
        """Whether this shard is on disk; another process may have put it there."""
        return (self._partial / _record_name(number)).exists()

    def discard(self, number: int) -> None:
        """Forgets a shard, so that it is written again."""
        (self._partial / _record_name(number)).unlink(missing_ok=True)

    def append(self, ids: Sequence[str], vectors: np.ndarray) -> None:
        """Adds rows: ids [n] and unit vectors float32 [n, D].

        Raises:
          MarvelError: an id is empty, a vector is not finite or not of unit norm (the id is
            named), the shapes disagree with each other or with the manifest, the manifest
            promises fewer rows, or the disk is full.
        """
        encoded, stored = self._encode(ids, vectors)
        done = self.completed + len(self._ids) + len(encoded)
        if done > self.manifest.count:
            raise MarvelError(
                f"{self.path}: the manifest promises {self.manifest.count} rows, {done} were given."
            )
        self._ids += encoded
        self._stored.append(stored)
        while self._ids and len(self._ids) >= self._share(self._next()):
            self._flush()

    def write(
        self,
        number: int,
        ids: Sequence[str],
        vectors: np.ndarray,
        *,
        failures: Sequence[Mapping[str, str]] = (),
    ) -> None:
        """Writes shard `number` as a whole: ids [n], unit vectors float32 [n, D].

        Args:
          number: below `num_shards`.
          ids: of the items that have a vector.
          vectors: theirs.
          failures: the rest of the shard's share of `manifest.count`, each as its record is kept.

        Raises:
          MarvelError: as `append`, and where n and the failures are not the shard's share.
        """
        share = self._share(number)
        if len(ids) + len(failures) != share:
            raise MarvelError(
                f"{self.path}: shard {number} has {share} items, but {len(ids)} vectors and "
                f"{len(failures)} failures were given."
            )
        encoded, stored = self._encode(ids, vectors)
        self._save(number, encoded, [stored], failures=failures)

    def finish(self, *, tolerated: bool = False) -> VectorStore:
        """Writes what is left, checks the whole, renames it to `path` and opens it.

        Of several processes that finish one store, one renames it and all open it.

        Args:
          tolerated: that items failed is accepted: the store lacks them and counts them.

        Raises:
          MarvelError: shards or rows are missing, items failed that are not tolerated (what is on
            disk stays), or an id occurs twice.
        """
        try:
            self._assemble(tolerated=tolerated)
        except (MarvelError, OSError):
            if not self.path.is_dir():  # else another process was faster
                raise
        return VectorStore.open(self.path, check="layout")

    def _assemble(self, *, tolerated: bool) -> None:
        found = self._records()
        missing = [number for number, record in enumerate(found) if record is None]
        if missing:
            raise MarvelError(
                f"{self.path}: the manifest promises {self.manifest.count} rows, "
                f"{self.completed + len(self._ids)} were written; {len(missing)} of "
                f"{self.num_shards} shards are missing, the first is number {missing[0]}."
            )
        records = [dict(record) for record in found if record is not None]
        failed = [failure for record in records for failure in record.pop("failures")]
        if failed and not tolerated:
            raise MarvelError(
                f"{self.path}: {len(failed)} of {self.manifest.count} items have no vector, the "
                f"first is {failed[0]}. Mend them, or say how many are tolerated."
            )
        manifest = dataclasses.replace(
            self.manifest,
            count=self.manifest.count - len(failed),
            failures=self.manifest.failures + len(failed),
        )
        for kind in ("npy", "json"):  # of processes that were killed
            for leftover in self._partial.glob(f".*.{kind}-*"):
                leftover.unlink(missing_ok=True)
        with self._explained():
            self._replace("manifest.json", {**dataclasses.asdict(manifest), "shards": records})
        try:
            VectorStore.open(self._partial, check="layout")
        except MarvelError as error:
            damaged = self._discard_damaged()
            again = (
                f"{len(damaged)} of {self.num_shards} shards were damaged, the first is number "
                f"{damaged[0]}: run again, and they are written once more."
                if damaged
                else "Mend the cause and run again, or remove that folder to begin anew."
            )
            raise MarvelError(
                f"{error} What was encoded is kept in {self._partial}. {again}"
            ) from error
        if self._records() != found:
            raise MarvelError(f"{self.path}: another process writes shards again: wait for it.")
        self._partial.replace(self.path)
        # Only now: until the store has its name, the records are what a killed writer resumes by.
        for record_file in (*self.path.glob("shard-*.json"), self.path / _PROMISE):
            record_file.unlink(missing_ok=True)

    def _discard_damaged(self) -> list[int]:
        """Forgets shards whose files are not what was written, as after a loss of power."""
        damaged = []
        for number in range(self.num_shards):
            record = self._record(number)
            if not record["rows"]:
                continue
            files = (self._partial / vectors_name(number), self._partial / ids_name(number))
            expected = (record["vectors_hash"], record["ids_hash"])
            try:
                whole = tuple(hash_files(file) for file in files) == expected
            except FileNotFoundError:
                whole = False
            except OSError:  # unreadable now is not damaged
                continue
            if not whole:
                self.discard(number)
                damaged.append(number)
        return damaged

    def _flush(self) -> None:
        """Writes the next shard of the rows that were appended."""
        number = self._next()
        rows = self._share(number)
        parts: list[np.ndarray] = []
        left = rows
        while left:
            part = self._stored.pop(0)
            if len(part) > left:
                self._stored.insert(0, part[left:])
            parts.append(part[:left])
            left -= len(parts[-1])
        try:
            self._save(number, self._ids[:rows], parts, failures=())
        except BaseException:
            self._stored = [*parts, *self._stored]
            raise
        self._ids = self._ids[rows:]

    def _encode(self, ids: Sequence[str], vectors: np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """The ids and vectors as they are stored, checked."""
        vectors = np.asarray(vectors, dtype=np.float32)
        whole, kept = self.manifest.model_dimension, self.manifest.dimension
        if vectors.shape not in ((len(ids), whole), (len(ids), kept)):
            raise MarvelError(
                f"{self.path}: expected vectors of shape {(len(ids), whole)} for {len(ids)} ids "
                f"and dimension {whole}, found {vectors.shape}."
            )
        store_types.check_norms(vectors, ids, where=self.path)
        if vectors.shape[1] != kept:
            vectors = store_types.truncate(vectors, kept)
            store_types.check_norms(vectors, ids, where=f"{self.path}, cut to {kept} numbers")
        return encode_ids(ids, where=self.path), store_types.encode(vectors, self.manifest.dtype)

    def _save(
        self,
        number: int,
        ids: Sequence[bytes],
        stored: Sequence[np.ndarray],
        *,
        failures: Sequence[Mapping[str, str]],
    ) -> None:
        record = ShardRecord(rows=len(ids), vectors_hash="", ids_hash="")
        with self._explained():
            if ids:
                files = (self._partial / vectors_name(number), self._partial / ids_name(number))
                kind, width = store_types.stored_row(self.manifest.dtype, self.manifest.dimension)
                blob = ids_blob(ids)
                record = ShardRecord(
                    len(ids),
                    write_array(files[0], stored, shape=(len(ids), width), dtype=kind),
                    write_array(files[1], [blob], shape=blob.shape, dtype=blob.dtype),
                )
            # The record is what commits the shard.
            kept = {**record._asdict(), "failures": [dict(failure) for failure in failures]}
            self._replace(_record_name(number), kept)

    def _share(self, number: int) -> int:
        """Items of a shard."""
        if not 0 <= number < self.num_shards:
            raise MarvelError(
                f"{self.path}: no shard {number}: there are {self.num_shards}, from 0 on."
            )
        return min(self.shard_rows, self.manifest.count - number * self.shard_rows)

    def _next(self) -> int:
        """The first shard that is not on disk."""
        number = 0
        while number < self.num_shards and self.has(number):
            number += 1
        return number

    def _record(self, number: int) -> dict[str, Any]:
        return dict(read_json(self._partial / _record_name(number)))

    def _records(self) -> list[dict[str, Any] | None]:
        """Of every shard; None for one that is not there, which another process may discard."""
        found: list[dict[str, Any] | None] = []
        for number in range(self.num_shards):
            try:
                found.append(self._record(number) if self.has(number) else None)
            except MarvelError:
                if self.has(number):
                    raise
                found.append(None)
        return found

    def _promise(self) -> dict[str, Any]:
        of = {} if self._made_of is None else {"made_of": self._made_of}
        return {**dataclasses.asdict(self.manifest), "shard_rows": self.shard_rows, **of}

    def _give_promise(self) -> None:
        """Of processes that begin at once one gives it, and the others are held to it."""
        temporary = self._write_beside(_PROMISE, self._promise())
        try:
            os.link(temporary, self._partial / _PROMISE)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            temporary.replace(self._partial / _PROMISE)
        finally:
            temporary.unlink(missing_ok=True)

    def _check_promise(self) -> None:
        found, wanted = read_json(self._partial / _PROMISE), self._promise()
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

    def _replace(self, name: str, value: Any) -> None:
        """Writes JSON atomically, though another process writes the same name.

        Unlike `files.write_json` it makes no folder: the one that another process has renamed
        must not come back.
        """
        self._write_beside(name, value).replace(self._partial / name)

    def _write_beside(self, name: str, value: Any) -> Path:
        temporary = self._partial / f".{name}-{uuid.uuid4().hex}"
        try:
            temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says what to do when the disk is full."""
        try:
            yield
        except OSError as error:
            raise MarvelError(
                f"{self._partial} could not be written: {error.strerror or error}. What is whole "
                "there stays: make room, and run the same command again to go on."
            ) from error


def _record_name(number: int) -> str:
    return f"shard-{number:05d}.json"
