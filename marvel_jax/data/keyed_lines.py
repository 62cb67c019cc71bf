"""JSON lines keyed by a query's id, with a manifest beside them: what one stage leaves another.

`negatives.jsonl` has its manifest in `negatives.manifest.json`: what made it, of what, how much it
holds and the hash of its content. The lines may be in any order. The file is written under a
temporary name and renamed when whole; a killed writer goes on behind its last whole line.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.items import RetrievalSource
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files, read_json, read_json_object, write_json

_SHOWN = 5

# Where something lay when the file was begun: told, but what it holds is compared by hashes.
_PLACES = ("model",)


class KeyedWriter:
    """Writes one file of lines, a block at a time.

    `done` holds the lines that were there already, by query id, when the writer was made; the
    caller skips those queries. A process that dies loses at most the block it was writing.
    """

    def __init__(self, path: Path | str, manifest: Mapping[str, Any]) -> None:
        """Starts the file, or goes on with one that was not finished.

        Raises:
          MarvelError: `path` exists, or an unfinished file beside it was made otherwise: each
            field that differs is named with both values. `model`, where the model lay, may differ.
        """
        self.path = Path(path)
        self.manifest = dict(manifest)
        if self.path.exists():
            raise MarvelError(f"{self.path} exists already: choose another file, or remove it.")
        self._partial = self.path.with_name(f".{self.path.name}.unfinished")
        self._header = self.path.with_name(f".{self.path.name}.unfinished.json")
        if self._header.is_file() and self._partial.is_file():
            _require_same(self._partial, read_json(self._header), self.manifest)
            _cut_torn_line(self._partial)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.write_bytes(b"")
            write_json(self._header, self.manifest)

    def done(self) -> Iterator[dict[str, Any]]:
        """The lines that are written."""
        with self._partial.open("rb") as lines:
            yield from (json.loads(line) for line in lines)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds lines; they are on the disk when it returns."""
        encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode
        text = "".join(encode(row) + "\n" for row in rows)
        with self._partial.open("ab") as stream:
            stream.write(text.encode())
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self, counts: Mapping[str, Any]) -> dict[str, Any]:
        """Gives the file its name and its manifest, with `counts` among its fields."""
        whole = {**self.manifest, **counts, "content_hash": hash_files(self._partial)}
        write_json(manifest_path(self.path), whole)
        self._partial.replace(self.path)
        self._header.unlink()
        return whole


def manifest_path(path: Path | str) -> Path:
    """Where the manifest of a file lies: `a/b.jsonl` has `a/b.manifest.json`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.manifest.json")


def read_manifest(path: Path | str, *, kind: str, version: int) -> dict[str, Any]:
    """The manifest of a whole file, held against its content.

    Raises:
      MarvelError: the file or its manifest is missing, it is of another kind or version, or its
        content is not what was written.
    """
    path = Path(path)
    if not path.is_file():
        raise MarvelError(f"{path} does not exist.")
    beside = manifest_path(path)
    if not beside.is_file():
        raise MarvelError(
            f"{beside} does not exist: {path.name} cannot be told from one of another model or "
            "corpus without its manifest. Keep the two together."
        )
    manifest = read_json_object(beside)
    for field, wanted in (("kind", kind), ("version", version)):
        if manifest.get(field) != wanted:
            raise MarvelError(f"{beside}: {field} is {manifest.get(field)!r}, expected {wanted!r}.")
    if hash_files(path) != manifest.get("content_hash"):
        raise MarvelError(
            f"{path} is damaged or was changed: its content does not have the hash "
            f"{manifest.get('content_hash')} of its manifest. Make it again."
        )
    return manifest


def queries_hash(source: RetrievalSource) -> str:
    """What a source asks: every query's id, task, texts and positives, each id once, in order."""
    seen: set[str] = set()
    parts = []
    for query in source.queries:
        if query.id not in seen:
            seen.add(query.id)
            texts = [part if isinstance(part, str) else "" for part in query.item.parts]
            parts.append(repr((query.id, query.task.id, texts, query.positives)))
    return _hash_parts(parts)


def pool_hash(source: RetrievalSource) -> str:
    """What a source finds: every candidate's id, modality and texts, in order.

    Pictures count by their number only: to read them all would take longer than to use them.
    """
    return _hash_parts(
        repr((one.id, one.modality, [p if isinstance(p, str) else "" for p in one.item.parts]))
        for one in source.candidates
    )


class Offenders:
    """Everything that is wrong with a file, gathered so that one error can tell it all."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def add(self, fault: str, name: str) -> None:
        """One more offender of a kind, e.g. ("queries without a line", "3:17")."""
        self._counts[fault] += 1
        first = self._first.setdefault(fault, [])
        if len(first) < _SHOWN:
            first.append(name)

    def refuse(self, what: str, *, advice: str) -> None:
        """Raises if there is any offender.

        Raises:
          MarvelError: with every kind, its count and the first few of its offenders.
        """
        if not self._counts:
            return
        lines = []
        for fault, count in self._counts.items():
            shown = self._first[fault]
            more = ", ..." if count > len(shown) else ""
            lines.append(f"{count:,} {fault}: {', '.join(shown)}{more}")
        raise MarvelError(f"{what}: {'; '.join(lines)}. {advice}")


def check_origin(
    path: Path | str,
    manifest: Mapping[str, Any],
    source: RetrievalSource,
    expected: Mapping[str, str | None],
) -> None:
    """Holds a manifest against the source that is about to be used, and against other hashes.

    Args:
      path: the file, for the message.
      manifest: its manifest.
      source: the queries and candidates. A source with the fingerprint of the manifest is taken
        at its word; of any other the queries and the pool are compared.
      expected: field -> hash that the manifest must have; None is not looked at.

    Raises:
      MarvelError: it was made by another model, of another pool or of other queries; all that
        differs is listed with both values.
    """
    wanted = {field: value for field, value in expected.items() if value is not None}
    if manifest.get("source_fingerprint") != source.fingerprint:
        wanted |= {"queries_hash": queries_hash(source), "pool_hash": pool_hash(source)}
    faults = [
        f"{_meaning(field)} ({field} {manifest.get(field)!r} there, {value!r} here)"
        for field, value in wanted.items()
        if manifest.get(field) != value
    ]
    if faults:
        raise MarvelError(f"{path} was made for {' and for '.join(faults)}. Make it again.")


def _meaning(field: str) -> str:
    known = {"queries_hash": "another set of queries", "pool_hash": "another pool"}
    return known.get(field, "another model")


def _require_same(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    wanted = json.loads(json.dumps(wanted))  # tuples are lists once they have been written
    differences = [
        f"{field} is {found.get(field)!r} there, {wanted.get(field)!r} here"
        for field in sorted({*found, *wanted} - {*_PLACES})
        if found.get(field) != wanted.get(field)
    ]
    if differences:
        raise MarvelError(
            f"{path} holds an unfinished file made otherwise ({'; '.join(differences)}). Go on "
            "with the same model, data and settings, or remove that file."
        )


def _cut_torn_line(path: Path) -> None:
    """Takes off what a killed writer left behind the last whole line."""
    whole = 0
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            whole += len(line)
    os.truncate(path, whole)


def shortest_digits(value: np.float32 | float) -> float:
    """The number whose shortest digits bring a float32 back: 0.3 and not 0.30000001192."""
    return float(str(np.float32(value)))


def _hash_parts(parts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.encode() + b"\n")
    return digest.hexdigest()
