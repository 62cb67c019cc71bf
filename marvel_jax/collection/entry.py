"""What a row of a collection shows, and how it lies in `entries.jsonl`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from marvel_jax.data.items import Image, Item, Part
from marvel_jax.errors import MarvelError

Kind = Literal["text", "image", "image,text"]
"""What an entry, or a query, is made of, in M-BEIR's words."""

KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Entry:
    """One row.

    id: unique in the collection. kind: what it shows. text, image: that; a picture's path is
      absolute, without links, and lies inside the collection's roots or the collection.
    name: what the source calls it: a relative path, or an id.
    cut: whether the text is longer than the model reads; only its beginning was encoded.
    content: a hash of what it shows, equal for copies.
    parts: texts and pictures in the order in which they were encoded.
    """

    id: str
    kind: Kind
    text: str | None
    image: Path | None
    name: str
    cut: bool
    content: str
    parts: tuple[str | Path, ...]

    @property
    def item(self) -> Item:
        """As the model reads it, without an instruction."""
        return item_of(self.parts, id=self.id)


def item_of(parts: Sequence[str | Path], *, id: str) -> Item:
    """An item of texts and paths of pictures, in this order."""
    made: list[Part] = [Image(part) if isinstance(part, Path) else part for part in parts]
    return Item(parts=tuple(made), id=id)


def kind_of(parts: Sequence[str | Path]) -> Kind:
    """What texts and pictures are together."""
    pictured = any(isinstance(part, Path) for part in parts)
    told = any(isinstance(part, str) for part in parts)
    return "image,text" if pictured and told else "image" if pictured else "text"


def check_kind(kind: str) -> Kind:
    """Refuses what is none of `KINDS`."""
    if kind not in KINDS:
        raise MarvelError(f"kind={kind!r}: choose one of {', '.join(KINDS)}.")
    return kind


def entry_record(
    *, id: str, name: str, parts: Sequence[str | Path], content: str, cut: bool
) -> dict[str, Any]:
    """A line of `entries.jsonl`."""
    return {
        "id": id,
        "name": name,
        "parts": [{"image": str(one)} if isinstance(one, Path) else one for one in parts],
        "content": content,
        **({"cut": True} if cut else {}),
    }


def entry_of(
    record: Mapping[str, Any], *, roots: Sequence[Path], where: str, gone: bool = False
) -> Entry:
    """The entry of a line; its pictures' paths are resolved and must lie inside one of `roots`.

    With `gone` a picture that does not is left out, and the rest is given.

    Raises:
      MarvelError: the line is no entry, or a picture's path leads outside, as a link may that was
        changed since.
    """
    try:
        named = [one if isinstance(one, str) else Path(one["image"]) for one in record["parts"]]
        parts = tuple(
            one if isinstance(one, str) else inside(one, roots, where=where)
            for one in named
            if isinstance(one, str) or not gone or is_inside(one, roots)
        )
        texts = [one for one in parts if isinstance(one, str)]
        images = [one for one in parts if isinstance(one, Path)]
        return Entry(
            id=record["id"],
            kind=kind_of(named),
            text="\n".join(texts) if texts else None,
            image=images[0] if images else None,
            name=record["name"],
            cut=record.get("cut", False),
            content=record["content"],
            parts=parts,
        )
    except (KeyError, TypeError) as error:
        raise MarvelError(
            f"{where} is damaged: no entry ({error!r}). Remove the collection and index again."
        ) from error


def inside(path: Path, roots: Sequence[Path], *, where: str) -> Path:
    """The path without links; `roots` are without links, too.

    Raises:
      MarvelError: it is in none of them, or is no path.
    """
    try:
        resolved = path.resolve()
    except UnicodeEncodeError:  # it has its own words: see `source`
        raise
    except (OSError, ValueError, RuntimeError) as error:  # a NUL in it, links in a circle
        raise MarvelError(f"{where}: {path} leads nowhere ({error}).") from error
    if not any(resolved.is_relative_to(root) for root in roots):
        raise MarvelError(
            f"{where}: {path} leads to {resolved}, outside of {', '.join(map(str, roots))}: put "
            "the picture there, or name its folder with --root."
        )
    return resolved


def is_inside(path: Path, roots: Sequence[Path]) -> bool:
    """Whether `inside` gives it."""
    try:
        inside(path, roots, where="")
    except MarvelError:
        return False
    return True
