"""The folder of a store that is being written: what it is to be, and which shards are whole.

A shard is there when its record `shard-00000.json` is: files without one are written again.
`unfinished.json` says what is being written, so that nobody goes on with something else. Several
processes work in the folder at once, and each may be killed at any time.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files, read_json
from marvel_jax.retrieval.store_ids import ids_blob
from marvel_jax.retrieval.store_manifest import ShardRecord, ids_name, partial_path, vectors_name
from marvel_jax.retrieval.store_pages import load_array, write_array

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_PROMISE = "unfinished.json"
_COMING = "coming_vectors_hash"


class PartialStore:
    """The shards of a store that will be `path`, in the folder of `partial_path`."""

    def __init__(self, path: Path, promise: dict[str, Any], *, num_shards: int) -> None:
        """Begins the folder, or goes on with one that was begun with the same `promise`.

        Raises:
          MarvelError: `path` exists, the folder was begun with another promise, or the disk is
            full.
        """
        self.path = path
        self.folder = partial_path(path)
        self._num_shards = num_shards
        if path.exists():
            raise MarvelError(f"{path} exists already: choose another folder, or remove it.")
        if (self.folder / "manifest.json").exists() and not (self.folder / _PROMISE).exists():
            raise MarvelError(
                f"{self.folder} holds an unfinished store of an earlier version of marvel-jax: "
                "remove that folder and encode again."
            )
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            if path.exists():  # another process made it whole just now
                with contextlib.suppress(OSError):
                    self.folder.rmdir()
                raise MarvelError(f"{path} exists already: another process made it whole.")
            if not (self.folder / _PROMISE).exists():
                self._give(promise)
            self._check(promise)

    def has(self, number: int) -> bool:
        """Whether this shard is on disk; another process may have put it there."""
        return (self.folder / _record_name(number)).exists()

    def discard(self, number: int) -> None:
        """Forgets a shard, so that it is written again."""
        (self.folder / _record_name(number)).unlink(missing_ok=True)

    def record(self, number: int) -> dict[str, Any] | None:
        """What a shard's record says; None if it is not there. Another process may discard it."""
        try:
            return dict(read_json(self.folder / _record_name(number))) if self.has(number) else None
        except MarvelError:
            if self.has(number):
                raise
            return None

    def records(self) -> list[dict[str, Any] | None]:
        """Of every shard."""
        return [self.record(number) for number in range(self._num_shards)]

    def save(
        self,
        number: int,
        ids: Sequence[bytes],
        stored: Sequence[np.ndarray],
        *,
        contents: np.ndarray | None,
        failures: Sequence[Mapping[str, str]],
    ) -> None:
        """Writes a shard: ids [n], stored rows [n, W] in parts, content keys uint64 [n, 2].

        Raises:
          MarvelError: the disk is full.
        """
        record = ShardRecord(rows=len(ids), vectors_hash="", ids_hash="")
        keys = {}
        with self._explained():
            if contents is not None:
                keys["contents_hash"] = self._write_array(_contents_name(number), [contents])
            if ids:
                record = ShardRecord(
                    len(ids),
                    self._write_array(vectors_name(number), stored),
                    self._write_array(ids_name(number), [ids_blob(ids)]),
                )
            # The record is what commits the shard.
            kept = {**record._asdict(), **keys, "failures": [dict(one) for one in failures]}
            self._replace(_record_name(number), kept)

    def change(self, number: int, rows: np.ndarray, stored: np.ndarray) -> None:
        """Gives rows of a shard that is there other vectors; it is there all the while.

        Raises:
          MarvelError: the disk is full, or another process has discarded the shard.
        """
        record, name = self.record(number), vectors_name(number)
        if record is None:  # where the file system has no locks
            raise MarvelError(f"{self.path}: another process writes shards again: wait for it.")
        whole = np.array(self.vectors(number))
        whole[rows] = stored
        changed = self.folder / f".{name}-{uuid.uuid4().hex}"
        with self._explained():
            try:
                coming = write_array(changed, [whole], shape=whole.shape, dtype=whole.dtype)
                # Killed from here on, the shard is sound by the one hash or by the other.
                self._replace(_record_name(number), {**record, _COMING: coming})
                changed.replace(self.folder / name)
            finally:
                changed.unlink(missing_ok=True)
            record.pop(_COMING, None)
            self._replace(_record_name(number), {**record, "vectors_hash": coming})

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Waits until no other process is in here; a kill frees the place.

        Where the file system has no locks, nobody waits.
        """
        with contextlib.ExitStack() as stack:
            try:
                stream = stack.enter_context((self.folder / _PROMISE).open("rb"))
                if fcntl is not None:
                    fcntl.flock(stream, fcntl.LOCK_EX)
            except OSError:
                pass
            yield

    def vectors(self, number: int) -> np.ndarray:
        """Stored rows [n, W] of a shard that has rows.

        Raises:
          MarvelError: the file cannot be read.
        """
        return load_array(self.folder / vectors_name(number), mapped=True)

    def contents(self, number: int) -> np.ndarray | None:
        """Uint64 [n, 2]: the content keys of a shard's rows, where they were given.

        Raises:
          MarvelError: the file cannot be read.
        """
        file = self.folder / _contents_name(number)
        return load_array(file, mapped=False) if file.exists() else None

    def is_sound(self, number: int, record: Mapping[str, Any]) -> bool:
        """Whether the files are what was written, which a loss of power may have undone.

        Raises:
          OSError: they cannot be read now, which is not to say that they are damaged.
        """
        expected = {vectors_name(number): [record["vectors_hash"], record.get(_COMING)]}
        expected[ids_name(number)] = [record["ids_hash"]]
        if not record["rows"]:
            expected = {}
        if "contents_hash" in record:
            expected[_contents_name(number)] = [record["contents_hash"]]
        try:
            return all(hash_files(self.folder / name) in known for name, known in expected.items())
        except FileNotFoundError:
            return False

    def committed(self) -> list[ShardRecord | None]:
        """What the manifest says of every shard; None for one that is not there."""
        found: list[ShardRecord | None] = []
        for number, record in enumerate(self.records()):
            if record is None:
                found.append(None)
                continue
            vectors_hash, coming = record["vectors_hash"], record.get(_COMING)
            # A process was killed while it changed some vectors: behind that, or before?
            if coming and hash_files(self.folder / vectors_name(number)) == coming:
                vectors_hash = coming
            found.append(ShardRecord(record["rows"], vectors_hash, record["ids_hash"]))
        return found

    def discard_damaged(self) -> list[int]:
        """Forgets shards that are not sound; gives their numbers."""
        damaged = []
        for number, record in enumerate(self.records()):
            with contextlib.suppress(OSError):  # unreadable now is not damaged
                if record is not None and not self.is_sound(number, record):
                    self.discard(number)
                    damaged.append(number)
        return damaged

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes the manifest; a process that finishes at the same time writes the same."""
        with self._explained():
            self._replace("manifest.json", manifest)

    def rename(self) -> None:
        """Gives the folder its name, and only then drops what only unfinished stores have.

        That is what a killed writer resumes by, and the files that killed processes had half
        written. Before the rename, such a file may be one that another process is just writing.
        """
        self.folder.replace(self.path)
        for pattern in ("shard-*.json", "contents-*.npy", _PROMISE, ".*.npy-*", ".*.json-*"):
            for file in self.path.glob(pattern):
                file.unlink(missing_ok=True)

    def _write_array(self, name: str, parts: Sequence[np.ndarray]) -> str:
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        return write_array(self.folder / name, parts, shape=shape, dtype=parts[0].dtype)

    def _give(self, promise: dict[str, Any]) -> None:
        """Of processes that begin at once one gives it, and the others are held to it."""
        temporary = self._write_beside(_PROMISE, promise)
        try:
            os.link(temporary, self.folder / _PROMISE)
        except FileExistsError:
            pass
        except OSError:  # a file system without links
            temporary.replace(self.folder / _PROMISE)
        finally:
            temporary.unlink(missing_ok=True)

    def _check(self, wanted: dict[str, Any]) -> None:
        found = read_json(self.folder / _PROMISE)
        if found != wanted:
            differences = "; ".join(
                f"{name} is {found.get(name)!r} there, {value!r} here"
                for name, value in wanted.items()
                if found.get(name) != value
            )
            raise MarvelError(
                f"{self.folder} holds an unfinished store made otherwise ({differences}). "
                "Go on with the same model and source, or remove that folder."
            )

    def _replace(self, name: str, value: Mapping[str, Any]) -> None:
        """Writes JSON atomically, though another process writes the same name.

        Unlike `files.write_json` it makes no folder: the one that another process has renamed
        must not come back.
        """
        self._write_beside(name, value).replace(self.folder / name)

    def _write_beside(self, name: str, value: Mapping[str, Any]) -> Path:
        temporary = self.folder / f".{name}-{uuid.uuid4().hex}"
        try:
            temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", "utf-8")
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says what to do when the disk is full, or that another process made the store whole."""
        try:
            yield
        except OSError as error:
            if self.path.is_dir() and not self.folder.is_dir():
                raise MarvelError(
                    f"{self.path} exists already: another process made it whole."
                ) from error
            raise MarvelError(
                f"{self.folder} could not be written: {error.strerror or error}. What is whole "
                "there stays: make room, and run the same command again to go on."
            ) from error


def _record_name(number: int) -> str:
    return f"shard-{number:05d}.json"


def _contents_name(number: int) -> str:
    return f"contents-{number:05d}.npy"
