"""An index on disk: a manifest, and a folder of ScaNN's files for each shard.

It is written under a temporary name beside its own, shard by shard, and renamed when whole: a
folder of that name is a whole index, and a killed writer goes on behind its last whole shard.
"""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files, read_json_object, write_json
from marvel_jax.retrieval.scann_config import ScannConfig
from marvel_jax.retrieval.scann_tune import Tuned
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_manifest import partial_path

VERSION = 2


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
          MarvelError: `path` exists.
        """
        if path.exists():
            raise MarvelError(f"{path} exists already: choose another folder, or remove it first.")
        folder = cls(path, store, config)
        wanted = {**_store_fields(store), "asked": asked}
        begun = folder.path / "begun.json"
        found = read_json_object(begun) if begun.is_file() else {}
        if found and found == {**wanted, "config": found.get("config")}:
            folder.config = ScannConfig(**found["config"])
        else:
            shutil.rmtree(folder.path, ignore_errors=True)
            folder.path.mkdir(parents=True)
            write_json(begun, {**wanted, "config": dataclasses.asdict(config)})
        return folder

    def has(self, number: int) -> bool:
        """Whether a shard is on disk, whole."""
        return self._record(number).is_file()

    @contextlib.contextmanager
    def shard(self, number: int, *, start: int, stop: int) -> Iterator[Path]:
        """Yields an empty folder for ScaNN's files; the shard is there when the body ends.

        `seconds` is recorded with it.
        """
        part = self.path / _name(number)
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        yield part
        files = sorted(part.iterdir())
        record = ShardRecord(
            start=start,
            stop=stop,
            folder=part.name,
            seconds=round(self.seconds, 3),
            bytes=sum(file.stat().st_size for file in files),
            files={file.name: hash_files(file) for file in files},
        )
        write_json(self._record(number), record._asdict())

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
            return _manifest(read_json_object(self._final / "manifest.json"))
        records = sorted(self.path.glob("shard-*.json"))
        shards = tuple(ShardRecord(**read_json_object(record)) for record in records)
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
        write_json(self.path / "manifest.json", manifest)
        (self.path / "begun.json").unlink()
        for record in self.path.glob("shard-*.json"):
            record.unlink()
        self.path.replace(self._final)
        return self._final

    def _record(self, number: int) -> Path:
        return self.path / f"{_name(number)}.json"


def open_folder(path: Path, store: VectorStore) -> IndexManifest:
    """The manifest of a whole index of this store, every file of it verified.

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
    found = _manifest(manifest)
    known = {path / "manifest.json"}
    for shard in found.shards:
        for name, expected in shard.files.items():
            file = path / shard.folder / name
            known.add(file)
            if not file.is_file() or hash_files(file) != expected:
                raise MarvelError(f"{file} is missing or damaged: build the index again.")
    # ScaNN unpickles one optional file; only what `build` wrote may be read.
    files = {file for file in path.rglob("*") if file.is_file()}
    unknown = sorted(str(file.relative_to(path)) for file in files - known)
    if unknown:
        raise MarvelError(f"{path}: unknown files {unknown}: build the index again.")
    return found


def _manifest(record: dict[str, Any]) -> IndexManifest:
    return IndexManifest(
        ScannConfig(**record["config"]),
        tuple(ShardRecord(**shard) for shard in record["shards"]),
        record["tuned"],
    )


def _name(number: int) -> str:
    return f"shard-{number:05d}"


def _store_fields(store: VectorStore) -> dict[str, Any]:
    return {
        "model_hash": store.manifest.model_hash,
        "dimension": store.manifest.dimension,
        "count": store.manifest.count,
        "content_hash": store.content_hash,
    }
