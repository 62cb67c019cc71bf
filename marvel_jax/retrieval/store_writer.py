"""Writes a vector store shard by shard, by one process or by several, and resumes.

A store is written beside its place, in a `store_partial.PartialStore`, and renamed when whole, so a
folder of its own name is a whole store.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import store_types
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_ids import encode_ids
from marvel_jax.retrieval.store_manifest import Manifest, partial_path
from marvel_jax.retrieval.store_partial import PartialStore

__all__ = ["Copies", "DamagedShardsError", "Manifest", "StoreWriter", "partial_path"]


class DamagedShardsError(MarvelError):
    """Shards are not what was written, and are forgotten, so that they are written again."""

    def __init__(self, message: str, shards: Sequence[int]) -> None:
        super().__init__(message)
        self.shards = tuple(shards)


class Copies(NamedTuple):
    """Rows of a shard whose vectors are there already, as they are stored."""

    rows: np.ndarray  # int64 [n]
    stored: np.ndarray  # [n, W]


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
        self._ids: list[bytes] = []
        self._stored: list[np.ndarray] = []
        if shard_rows < 1:
            raise MarvelError(f"shard_rows={shard_rows}: a shard has at least 1 row.")
        of = {} if made_of is None else {"made_of": made_of}
        promise = {**dataclasses.asdict(manifest), "shard_rows": shard_rows, **of}
        self.partial = PartialStore(self.path, promise, num_shards=self.num_shards)

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
            for record in self.partial.records()
            if record is not None
            for failure in record["failures"]
        ]

    def has(self, number: int) -> bool:
        """Whether this shard is on disk; another process may have put it there."""
        return self.partial.has(number)

    def discard(self, number: int) -> None:
        """Forgets a shard, so that it is written again."""
        self.partial.discard(number)

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
        contents: np.ndarray | None = None,
        copies: Copies | None = None,
    ) -> None:
        """Writes shard `number` as a whole: ids [n], unit vectors float32 [n, D].

        Args:
          number: below `num_shards`.
          ids: of the items that have a vector.
          vectors: theirs; those of `copies` are not looked at.
          contents: keys of what the items show, uint64 [n, 2]; kept until the store is whole.
          copies: of rows that are stored elsewhere, too.
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
        if copies is None or not len(copies.rows):
            encoded, stored = self._encode(ids, vectors)
        else:
            fresh = np.setdiff1d(np.arange(len(ids)), copies.rows)
            _, found = self._encode([ids[row] for row in fresh], vectors[fresh])
            encoded = encode_ids(ids, where=self.path)
            stored = np.empty((len(ids), found.shape[1]), found.dtype)
            stored[fresh], stored[copies.rows] = found, copies.stored
        self.partial.save(number, encoded, [stored], contents=contents, failures=failures)

    def finish(self, *, tolerated: bool = False) -> VectorStore:
        """Writes what is left, checks the whole, renames it to `path` and opens it.

        Of several processes that finish one store, one renames it and all open it.

        Args:
          tolerated: that items failed is accepted: the store lacks them and counts them.

        Raises:
          DamagedShardsError: a loss of power undid some.
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
        found = self.partial.records()
        missing = [number for number, record in enumerate(found) if record is None]
        if missing:
            raise MarvelError(
                f"{self.path}: the manifest promises {self.manifest.count} rows, "
                f"{self.completed + len(self._ids)} were written; {len(missing)} of "
                f"{self.num_shards} shards are missing, the first is number {missing[0]}."
            )
        failed = [failure for record in found if record for failure in record["failures"]]
        if failed and not tolerated:
            raise MarvelError(
                f"{self.path}: {len(failed)} of {self.manifest.count} items have no vector, the "
                f"first is {failed[0]}. Mend them, or say how many are tolerated."
            )
        records = [one._asdict() for one in self.partial.committed() if one is not None]
        manifest = dataclasses.replace(
            self.manifest,
            count=self.manifest.count - len(failed),
            failures=self.manifest.failures + len(failed),
        )
        self.partial.write_manifest({**dataclasses.asdict(manifest), "shards": records})
        try:
            VectorStore.open(self.partial.folder, check="layout")
        except MarvelError as error:
            self.discard_damaged(f"{error} ")
            raise MarvelError(
                f"{error} What was encoded is kept in {self.partial.folder}. Mend the cause and "
                "run again, or remove that folder to begin anew."
            ) from error
        if self.partial.records() != found:
            raise MarvelError(f"{self.path}: another process writes shards again: wait for it.")
        self.partial.rename()

    def discard_damaged(self, why: str = "") -> None:
        """Forgets shards whose files are not what was written.

        Raises:
          DamagedShardsError: there are some.
        """
        damaged = self.partial.discard_damaged()
        if damaged:
            raise DamagedShardsError(
                f"{why}What was encoded is kept in {self.partial.folder}. {len(damaged)} of "
                f"{self.num_shards} shards were damaged, the first is number {damaged[0]}: run "
                "again, each process that has one, and they are written once more.",
                damaged,
            )

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
            self.partial.save(number, self._ids[:rows], parts, contents=None, failures=())
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
