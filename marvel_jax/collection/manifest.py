"""What a collection says about itself: `manifest.json` of a version of it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from marvel_jax.collection.instructions import Prompts
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object, write_json

VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CollectionManifest:
    """What a collection was made of, and by what.

    model: the folder or Hub id. embedder: `Embedder.manifest_fields`, all that decides a vector.
    compute: the type of the weights. dtype: of the stored vectors.
    source, source_kind, captions, roots: what was indexed; see `source.Source`.
    count: rows. counts: rows by kind. failures: what could not be used. cut: texts longer than the
      model reads. left_out: files of other types, by ending.
    changes: added, changed, removed, moved and unchanged since the version before.
    dimensions: how many numbers of a vector can be searched, all of them first.
    asked_dimensions, asked_scann: what was asked for beside the rule's, and is kept.
    instructions: the source's own, by kinds of query and target.
    built: when, UTC.
    """

    model: str
    embedder: dict[str, Any]
    compute: str
    source: str
    source_kind: str
    captions: bool
    roots: tuple[str, ...]
    count: int
    counts: dict[str, int]
    failures: int
    cut: int
    left_out: dict[str, int]
    changes: dict[str, int]
    dimensions: tuple[int, ...]
    has_scann: bool
    built: str
    instructions: Prompts = field(default_factory=dict)
    asked_dimensions: tuple[int, ...] | None = None
    asked_scann: bool = False
    dtype: str = "float32"
    version: int = VERSION

    @property
    def model_hash(self) -> str:
        """The content hash of the weights."""
        return str(self.embedder["model_hash"])

    @property
    def dimension(self) -> int:
        """Numbers of a vector."""
        return int(self.embedder["dimension"])

    def write(self, folder: Path) -> None:
        """Writes it into a version's folder."""
        told = dataclasses.asdict(self)
        told["instructions"] = [
            {"query": query, "target": target, "prompts": list(prompts)}
            for (query, target), prompts in self.instructions.items()
        ]
        write_json(folder / MANIFEST, told)

    @classmethod
    def read(cls, folder: Path) -> "CollectionManifest":
        """Reads it from a version's folder.

        Raises:
          MarvelError: it is missing or damaged, or of another version of this package.
        """
        path = folder / MANIFEST
        found = read_json_object(path)
        if found.get("version") != VERSION:
            raise MarvelError(
                f"{path}: version={found.get('version')!r}, and {VERSION} is read here: index "
                "again into a new folder."
            )
        try:
            prompts = {
                (one["query"], one["target"]): tuple(one["prompts"])
                for one in found.pop("instructions")
            }
            found |= {name: tuple(found[name]) for name in ("roots", "dimensions")}
            if found.get("asked_dimensions") is not None:
                found["asked_dimensions"] = tuple(found["asked_dimensions"])
            return cls(**found, instructions=prompts)
        except (KeyError, TypeError) as error:
            raise MarvelError(
                f"{path} is damaged ({error}): remove the collection and index again."
            ) from error
