"""An index on disk: a manifest, and a folder of ScaNN's files for each shard.

It is written under a temporary name beside its own, shard by shard, and renamed when whole: a
folder of that name is a whole index, and a killed writer goes on behind its last whole shard.
"""

import contextlib
import dataclasses
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files, read_json_object, write_json
from marvel_jax.retrieval.scann_config import ScannConfig
from marvel_jax.retrieval.scann_tune import Tuned
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_manifest import partial_path

VERSION = 2
_BEGUN = "begun.json"


class ShardRecord(NamedTuple):
    """Rows [start, stop) of the store, the folder of their ScaNN files, and the files' hashes."""

    start: int
    stop: int
    folder: str
    seconds: float
    bytes: int
    files: dict[str, str]


class IndexManifest(NamedTuple):
    """What an index is: how it was built, what of, and what was measured for its setting."""

    config: ScannConfig
    shards: tuple[ShardRecord, ...]
    tuned: dict[str, Any] | None

    @property
    def build_seconds(self) -> float:
        """Of all shards."""
        return sum(shard.seconds for shard in self.shards)

    @property
    def bytes(self) -> int:
        """Of all files, and about what they take in memory."""
        return sum(shard.bytes for shard in self.shards)


class IndexFolder:
    """An index that is being written. Make one with `IndexFolder.begin`."""

    def __init__(self, final: Path, store: VectorStore, config: ScannConfig) -> None:
        self.path = partial_path(final)
        self.seconds = 0.0
        self._final = final
        self._store = store
        self.config = config
        self._tuned: dict[str, Any] | None = None

    @classmethod
    def begin(
        cls, path: Path, store: VectorStore, config: ScannConfig, *, asked: dict[str, Any]
    ) -> "IndexFolder":
        """Starts an index at `path`, or goes on with one of the same store.

        Args:
          path: the final folder.
          store: whose index it is.
          config: what the rule makes of `asked` now.
          asked: what was asked for. One that was begun for the same goes on with its own config,
            though the memory that is free, and so the rule's shards, may have changed.

        Raises:
          MarvelError: `path` exists, or an unfinished index beside it is another's.
        """
        if path.exists():
            raise MarvelError(f"{path} exists already: choose another folder, or remove it first.")
        folder = cls(path, store, config)
        wanted = {**_store_fields(store), "asked": asked}
        begun = folder.path / _BEGUN
        found = read_json_object(begun) if begun.is_file() else {}
        if not found:
            with folder.explained():
                folder.path.mkdir(parents=True, exist_ok=True)
                write_json(begun, {**wanted, "config": dataclasses.asdict(config)})
            return folder
        different = [
            f"{name} is {found.get(name)!r} there, {value!r} here"
            for name, value in _flat(wanted).items()
            if _flat(found).get(name) != value
        ]
        if different:
            raise MarvelError(
                f"{folder.path} holds an unfinished index made otherwise ({'; '.join(different)}). "
                "Go on with the same store and settings, or remove that folder."
            )
        folder.config = _config(found.get("config"), begun)
        return folder

    def has(self, number: int) -> bool:
        """Whether a shard is on disk, whole."""
        return self._record(number).is_file()

    @contextlib.contextmanager
    def shard(self, number: int, *, start: int, stop: int) -> Iterator[Path]:
        """Yields an empty folder for ScaNN's files; the shard is there when the body ends.

        `seconds` is recorded with it. Where another process was faster, its shard stays.
        """
        whole = self.path / _name(number)
        part = self.path / f".{whole.name}-{uuid.uuid4().hex}"  # no two k-means in one folder
        try:
            with self.explained():
                part.mkdir()
                yield part
                files = sorted(part.iterdir())
                record = ShardRecord(
                    start=start,
                    stop=stop,
                    folder=whole.name,
                    seconds=round(self.seconds, 3),
                    bytes=sum(file.stat().st_size for file in files),
                    files={file.name: hash_files(file) for file in files},
                )
                if self.has(number):
                    return
                shutil.rmtree(whole, ignore_errors=True)
                part.replace(whole)
                write_json(self._record(number), record._asdict())
        finally:
            shutil.rmtree(part, ignore_errors=True)

    @contextlib.contextmanager
    def explained(self) -> Iterator[None]:
        """Says what to do when the disk is full."""
        try:
            yield
        except OSError as error:
            raise MarvelError(
                f"{self.path} could not be written: {error.strerror or error}. What is whole there "
                "stays: make room, and run the same command again to go on."
            ) from error

    def tuned(self, config: ScannConfig, tuned: Tuned) -> None:
        """Keeps a chosen setting, and the curve that it was chosen from."""
        self.config = config
        self._tuned = {
            **dataclasses.asdict(tuned),
            "chosen": tuned.chosen._asdict(),
            "curve": [point._asdict() for point in tuned.curve],
        }

    def manifest(self) -> IndexManifest:
        """What is written so far, or was by `finish`."""
        if not self.path.is_dir():
            file = self._final / "manifest.json"
            return _manifest(read_json_object(file), file)
        records = sorted(self.path.glob("shard-*.json"))
        shards = tuple(_shard(read_json_object(record), record) for record in records)
        return IndexManifest(self.config, shards, self._tuned)

    def finish(self) -> Path:
        """Writes the manifest and gives the folder its name."""
        found = self.manifest()
        manifest = {
            "version": VERSION,
            **_store_fields(self._store),
            "config": dataclasses.asdict(found.config),
            "build_seconds": round(found.build_seconds, 3),
            "tuned": found.tuned,
            "shards": [shard._asdict() for shard in found.shards],
        }
        with self.explained():
            for leftover in self.path.glob(".shard-*"):  # of processes that were killed
                shutil.rmtree(leftover, ignore_errors=True)
            write_json(self.path / "manifest.json", manifest)
            self.path.replace(self._final)
            # Only now: until the index has its name, a killed build goes on by them.
            for record in (*self._final.glob("shard-*.json"), self._final / _BEGUN):
                record.unlink(missing_ok=True)
        return self._final

    def _record(self, number: int) -> Path:
        return self.path / f"{_name(number)}.json"


def open_folder(
    path: Path, store: VectorStore, *, progress: Callable[[int, int], None] | None = None
) -> IndexManifest:
    """The manifest of a whole index of this store, every file of it verified.

    `progress` is told (bytes verified, bytes in all) after each file.

    Raises:
      MarvelError: see `ScannIndex.open`.
    """
    if not path.is_dir():
        hint = " Make one: `marvel index`."
        if (unfinished := partial_path(path)).exists():
            hint = f" An unfinished one lies in {unfinished}: `marvel index` completes it."
        raise MarvelError(f"{path} is not an index: no such folder.{hint}")
    manifest = read_json_object(path / "manifest.json")
    if manifest.get("version") != VERSION:
        raise MarvelError(
            f"{path}: this index has version={manifest.get('version')!r}, but version={VERSION} is "
            "read here. Remove it and build the index again."
        )
    for name, wanted in _store_fields(store).items():
        if manifest.get(name) != wanted:
            raise MarvelError(
                f"{path}: this index was built with {name}={manifest.get(name)!r}, but the "
                f"store {store.path} has {name}={wanted!r}. Build the index of this store."
            )
    found = _manifest(manifest, path / "manifest.json")
    # The others stay where a build was killed when it had all but ended.
    known = {path / "manifest.json", path / _BEGUN, *path.glob("shard-*.json")}
    verified = 0
    for shard in found.shards:
        for name, expected in shard.files.items():
            file = path / shard.folder / name
            known.add(file)
            if not file.is_file() or hash_files(file) != expected:
                raise MarvelError(f"{file} is missing or damaged: build the index again.")
            verified += file.stat().st_size
            if progress is not None:
                progress(verified, found.bytes)
    # ScaNN unpickles one optional file; only what `build` wrote may be read.
    files = {file for file in path.rglob("*") if file.is_file()}
    unknown = sorted(str(file.relative_to(path)) for file in files - known)
    if unknown:
        raise MarvelError(f"{path}: unknown files {unknown}: build the index again.")
    return found


def _manifest(record: dict[str, Any], file: Path) -> IndexManifest:
    shards = record.get("shards")
    if not isinstance(shards, list) or not shards or "tuned" not in record:
        raise MarvelError(f"{file} is damaged: it names no shards. Build the index again.")
    found = tuple(_shard(shard, file) for shard in shards)
    return IndexManifest(_config(record.get("config"), file), found, record["tuned"])


def _config(fields: Any, file: Path) -> ScannConfig:
    try:
        return ScannConfig(**fields)
    except TypeError as error:
        raise MarvelError(f"{file} is damaged: its config is {fields!r} ({error}).") from error


def _shard(fields: Any, file: Path) -> ShardRecord:
    try:
        shard = ShardRecord(**fields)
    except TypeError as error:
        raise MarvelError(f"{file} is damaged: a shard is {fields!r} ({error}).") from error
    if not isinstance(shard.files, dict) or not isinstance(shard.folder, str):
        raise MarvelError(f"{file} is damaged: a shard is {fields!r}.")
    return shard


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    asked = fields.get("asked")
    rest = {name: value for name, value in fields.items() if name not in ("asked", "config")}
    return {**rest, **(asked if isinstance(asked, dict) else {})}


def _name(number: int) -> str:
    return f"shard-{number:05d}"


def _store_fields(store: VectorStore) -> dict[str, Any]:
    return {
        "model_hash": store.manifest.model_hash,
        "dimension": store.manifest.dimension,
        "count": store.manifest.count,
        "content_hash": store.content_hash,
    }
