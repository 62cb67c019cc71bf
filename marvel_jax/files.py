"""Folders that are whole or absent, JSON lines with line numbers, and content hashes."""

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from marvel_jax.errors import MarvelError

_PARTIAL = ".partial-"


@contextlib.contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields a temporary sibling of `path`, renamed to `path` only if the body succeeds.

    A process killed inside the body leaves a `.partial-*` folder, never half of `path`; the next
    call removes what its predecessor left.

    Raises:
      MarvelError: `path` exists.
    """
    path = Path(path)
    if path.exists():
        raise MarvelError(f"{path} exists already: choose another folder, or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{path.name}{_PARTIAL}"
    for leftover in path.parent.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    partial = path.parent / f"{prefix}{uuid.uuid4().hex[:8]}"
    partial.mkdir()
    try:
        yield partial
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    partial.replace(path)


def write_text(path: Path | str, text: str) -> None:
    """Writes UTF-8 text to a temporary name and renames it, so that readers see all or nothing."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name, so that what a killed process left is written over and not left for ever.
    partial = path.with_name(f".{path.name}{_PARTIAL[:-1]}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path | str, value: Any) -> None:
    """Writes one JSON document atomically, keys in the order given."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads one JSON document.

    Raises:
      MarvelError: the file is missing or is not JSON; the message names it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise MarvelError(f"{path} does not exist.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise MarvelError(f"{path} is not valid JSON: {error}.") from error


def read_json_object(path: Path | str) -> dict[str, Any]:
    """Reads one JSON document that must be an object.

    Raises:
      MarvelError: the file is missing, is not JSON or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise MarvelError(f"{path}: expected a JSON object, found {type(value).__name__}.")
    return value


def flatten(tree: Mapping[str, Any], *, separator: str, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}, for the separator "."."""
    flat: dict[str, Any] = {}
    for name, leaf in tree.items():
        if isinstance(leaf, Mapping):
            flat |= flatten(leaf, separator=separator, prefix=f"{prefix}{name}{separator}")
        else:
            flat[prefix + name] = leaf
    return flat


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number from 1, object) for each non-blank line.

    Raises:
      MarvelError: the file is missing, or a line is not a JSON object; the message names both.
    """
    path = Path(path)
    if not path.is_file():
        raise MarvelError(f"{path} does not exist.")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line.decode("utf-8"))
            except UnicodeDecodeError as error:
                raise MarvelError(f"{path}, line {number}: not UTF-8 text ({error}).") from error
            except json.JSONDecodeError as error:
                message = f"{path}, line {number}: not valid JSON ({error.msg})."
                raise MarvelError(message) from error
            if not isinstance(value, dict):
                found = type(value).__name__
                raise MarvelError(f"{path}, line {number}: expected a JSON object, found {found}.")
            yield number, value


def write_jsonl(path: Path | str, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
    """Writes one JSON object a line, atomically."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_text(path, text)


def hash_bytes(*chunks: bytes) -> str:
    """A 16-character content hash (BLAKE2b) of the chunks, each framed by its length."""
    digest = hashlib.blake2b(digest_size=8)
    for chunk in chunks:
        digest.update(len(chunk).to_bytes(8, "little"))
        digest.update(chunk)
    return digest.hexdigest()


def hash_json(value: Any) -> str:
    """The content hash of a JSON-able value, whatever the order of its keys."""
    return hash_bytes(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())


def hash_files(*paths: Path | str) -> str:
    """The content hash of files, read in the order given; names do not count."""
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        with Path(path).open("rb") as stream:
            digest.update(Path(path).stat().st_size.to_bytes(8, "little"))
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
