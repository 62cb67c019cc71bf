"""What a stage's folder says of it: with what it was begun, and when whole, what it left."""

import dataclasses
import datetime
import json
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from marvel_jax.data.webdataset import WebDatasetSource
from marvel_jax.errors import MarvelError
from marvel_jax.files import flatten, hash_files, hash_json, read_json_object, write_json
from marvel_jax.models import hub
from marvel_jax.recipes.stages import CACHES, Stage, inputs, with_inputs

BEGUN, DONE = "begun.json", "done.json"

PACE = (
    "config.mesh",
    "config.sharding",
    "config.checkpoint",
    "config.tracking",
    "config.chunk_rows",
    "config.model.remat",
    "config.model.kernel",
    "config.loss.implementation",
    "config.loss.tile",
    "config.data.prefetch",
    "batch_tokens",
)
"""Fields that say how a stage is carried out and not what it computes: they may change."""

_VERSIONS = ("marvel-jax", "jax", "jaxlib", "flax", "optax", "transformers", "numpy", "scann")

State = Literal["new", "unfinished", "done", "changed"]


class Examined(NamedTuple):
    """How a stage's folder stands to what the stage is now; `differing` names changed fields."""

    state: State
    differing: tuple[str, ...] = ()


def describe(stage: Stage, found: Mapping[str, str]) -> dict[str, Any]:
    """What decides a stage's result: its fields, and the content of its inputs.

    `found` maps the fields of its inputs to content hashes.
    """
    fields = json.loads(json.dumps(dataclasses.asdict(with_inputs(stage, lambda text: ""))))
    del fields["name"]
    for name in PACE:
        _remove(fields, name.split("."))
    return {
        "kind": type(stage).__name__,
        "fields": fields,
        "inputs": {
            field: {"from": text, "hash": found[field]} for field, text in inputs(stage).items()
        },
    }


def examine(folder: Path, described: Mapping[str, Any], stage: Stage) -> Examined:
    """Holds a stage's folder against what the stage would be now.

    Raises:
      MarvelError: a record in it is broken.
    """
    if not folder.exists():
        return Examined("new")
    whole = (folder / DONE).is_file()
    record = folder / (DONE if whole else BEGUN)
    if not record.is_file():
        return Examined("changed", ("it holds no record of a stage",))
    found, now = _deciding(read_json_object(record)), _deciding(described)
    differing = [name for name in sorted({*found, *now}) if found.get(name) != now.get(name)]
    if differing:
        return Examined("changed", tuple(differing))
    kept = [path for name, path in stage.outputs.items() if name not in CACHES]
    return Examined("done" if whole and all((folder / p).exists() for p in kept) else "unfinished")


def begin(folder: Path, described: Mapping[str, Any]) -> None:
    """Claims the folder for a stage."""
    write_json(folder / BEGUN, {**described, "begun": _now()})


def finish(
    folder: Path, described: Mapping[str, Any], stage: Stage, *, told: Mapping[str, Any]
) -> None:
    """Writes `done.json`, the last act of a stage; `told` is what it took and what it said.

    Raises:
      MarvelError: an output was not written.
    """
    outputs: dict[str, Any] = {}
    for name, path in stage.outputs.items():
        if name in CACHES:
            outputs[name] = {"path": path, "hash": None}
            continue
        if not (folder / path).exists():
            raise MarvelError(f"{stage.name}: {folder / path} was not written.")
        outputs[name] = {"path": path, "hash": content_hash(folder / path)}
    write_json(
        folder / DONE,
        {**described, "outputs": outputs, "versions": versions(), "finished": _now(), **told},
    )


def read(folder: Path) -> dict[str, Any]:
    """What `finish` wrote."""
    return read_json_object(folder / DONE)


def output_hashes(folder: Path) -> dict[str, str | None]:
    """The content of a finished stage's outputs by name, as it was written down."""
    return {name: one["hash"] for name, one in read(folder)["outputs"].items()}


def content_hash(path: Path | str) -> str:
    """The content of a file; of a folder, its files with their names; else of a Hub id's folder.

    Of a folder in the M-BEIR layout its JSON lines, tables and judgements: not the pictures, which
    would take longer to read than to use. Of WebDataset shards (a folder of them, one, or a
    pattern) what they list, as a training itself takes them. Links are followed.

    Raises:
      MarvelError: there is nothing of the name, here or on the Hub, or a folder holds no file or a
        link to nothing.
    """
    path = Path(path)
    if holds_shards(path):
        return WebDatasetSource(path).fingerprint
    if path.is_file():
        return hash_files(path)
    folder = path if path.is_dir() else hub.resolve(str(path))
    parts = [folder]
    if (folder / "query").is_dir():
        names = ("query", "cand_pool", "qrels", "instructions", "tokenizer")
        parts = [folder / name for name in names if (folder / name).is_dir()]
    files = [one for part in parts for one in _files(part)]
    return hash_json([[one.relative_to(folder).as_posix() for one in files], hash_files(*files)])


def listed_hash(folder: Path | str) -> str:
    """Of a folder of pictures: their names and sizes, for to read them takes longer than to use
    them.

    Raises:
      MarvelError: it is no folder, holds no file or a link to nothing.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MarvelError(f"{folder} is no folder.")
    files = _files(folder)
    return hash_json([[one.relative_to(folder).as_posix(), one.stat().st_size] for one in files])


def holds_shards(path: Path) -> bool:
    """Whether a path, or pattern, is of tar shards."""
    if path.is_dir():
        return not (path / "query").is_dir() and any(path.glob("*.tar"))
    return path.suffix == ".tar" and (path.is_file() or any(path.parent.glob(path.name)))


def _files(folder: Path, above: tuple[Path, ...] = ()) -> list[Path]:
    """A folder's files in order, through links too: `rglob` would pass over folders behind them."""
    real = folder.resolve()
    if real in above:
        raise MarvelError(f"{folder} is a link to a folder that it lies in: remove it.")
    found: list[Path] = []
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            found += _files(entry, (*above, real))
        elif entry.is_file():
            found.append(entry)
        elif entry.is_symlink():
            raise MarvelError(f"{entry} is a link to nothing: mend or remove it.")
    if not found and not above:
        raise MarvelError(f"{folder} holds no file, so it cannot be an input.")
    return found


def set_aside(folder: Path) -> Path:
    """Renames a stage's folder, so that nothing that was computed is lost."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    folder.rename(aside)
    return aside


def versions() -> dict[str, str | None]:
    """The versions that decide a result."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in _VERSIONS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def _deciding(record: Mapping[str, Any]) -> dict[str, Any]:
    """By name, what two records must have in common; where an input lies does not count."""
    return {
        "kind": record.get("kind"),
        **flatten(record.get("fields", {}), separator="."),
        **{
            f"the content of {field}": one["hash"]
            for field, one in record.get("inputs", {}).items()
        },
    }


def _remove(tree: Any, path: list[str]) -> None:
    for name in path[:-1]:
        tree = tree.get(name) if isinstance(tree, dict) else None
    if isinstance(tree, dict):
        tree.pop(path[-1], None)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
