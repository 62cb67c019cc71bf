"""What is to be indexed: a folder of pictures and text files, a jsonl, or an M-BEIR pool.

Reading never stops at something that cannot be used: it is a `Failure`, and takes no row.
"""

import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from marvel_jax.collection.contents import check_length, content_hash, read_text
from marvel_jax.collection.entry import inside
from marvel_jax.data.item_json import item_from_json
from marvel_jax.data.items import Image, Part, Video
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError

PICTURES = frozenset(
    (
        *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        ".avif",
    )
)
TEXTS = frozenset((".txt", ".text", ".md"))
# What reading raises for one file or line; `json` recurses as deep as a line is nested.
_BROKEN = (MarvelError, OSError, ValueError, RecursionError)

SourceKind = Literal["folder", "jsonl", "mbeir"]
Parts = tuple[str | Path, ...]

_HALF = "no Unicode text: it holds half of a surrogate pair"


class Failure(NamedTuple):
    """What could not be used, and why. `file` is a path or a line."""

    id: str
    file: str
    error: str


class Read(NamedTuple):
    """Something of the source: its id, its name, texts and pictures in order, their content hash.

    Pictures' paths are absolute and without links.
    """

    id: str
    name: str
    parts: Parts
    content: str


@dataclass(frozen=True)
class Source:
    """What to read, as `find_source` found it.

    path: the folder or file. kind: of what form. roots: folders that pictures may be in.
    captions: whether a text file beside a picture of the same name is its caption.
    left_out: files of a folder that are neither pictures nor texts, by ending; filled by reading.
    """

    path: Path
    kind: SourceKind
    roots: tuple[Path, ...]
    captions: bool = False
    apart: Path | None = None
    left_out: Counter[str] = field(default_factory=Counter)

    def under(self, roots: Sequence[Path], *, captions: bool) -> "Source":
        """The same source with other roots beside its own."""
        own = (self.roots[0], *(root.resolve() for root in roots))
        return dataclasses.replace(self, roots=tuple(dict.fromkeys(own)), captions=captions)

    def pieces(self) -> "list[Piece]":
        """What there is to read, in the source's order: cheap, nothing is opened but a jsonl.

        Of pieces with one id the first is kept, and each other one is a failure when it is read.

        Raises:
          MarvelError: there is nothing.
        """
        found = self._files() if self.kind == "folder" else list(self._lines())
        seen: dict[str, str] = {}
        for place, one in enumerate(found):
            before = seen.setdefault(one.id, one.file)
            if before != one.file:
                reason = f"id {one.id!r} was used before, at {before}: rename one"
                found[place] = one._replace(parts=_failing(reason))
        if not found:
            what = "no picture and no text file" if self.kind == "folder" else "no item"
            told = f" ({told_left_out(self.left_out)})" if self.left_out else ""
            raise MarvelError(f"{self.path} holds {what}{told}.")
        return found

    def read(self, piece: "Piece") -> Read | Failure:
        """Reads a piece and hashes it. Safe among threads."""
        try:
            _check_id(piece.id, of_file=self.kind == "folder")
            parts = piece.parts()
            return Read(piece.id, piece.name, parts, content_hash(parts))
        except _BROKEN as error:
            told = (piece.id, piece.file, _reason(error))
            return Failure(*map(_printable, told))

    def _files(self) -> "list[Piece]":
        pictures, texts = [], []
        for path in self._walk():
            ending = path.suffix.lower()
            if ending in PICTURES:
                pictures.append(path)
            elif ending in TEXTS:
                texts.append(path)
            else:
                self.left_out[_printable(ending or "without an ending")] += 1
        captions: dict[Path, Path] = {}
        others: list[Piece] = []
        if self.captions:
            stems = {path.with_suffix("") for path in pictures}
            for path in (one for one in texts if one.with_suffix("") in stems):
                kept = captions.setdefault(path.with_suffix(""), path)
                if kept != path:
                    reason = f"{kept.name} captions the same picture: keep one"
                    others.append(self._file_piece(path, None)._replace(parts=_failing(reason)))
        pieces = [self._file_piece(path, captions.get(path.with_suffix(""))) for path in pictures]
        told = {*captions.values(), *(Path(one.file) for one in others)}
        pieces += [self._file_piece(path, None) for path in texts if path not in told]
        return sorted([*pieces, *others], key=lambda one: one.id)

    def _walk(self) -> Iterator[Path]:
        """Every file that is not hidden. Links to folders, which may go in circles, are counted."""
        for folder, inner, names in os.walk(self.path):
            hidden = [one for one in (*inner, *names) if one.startswith(".")]
            paths = [Path(folder, one) for one in inner if not one.startswith(".")]
            links = [path for path in paths if path.is_symlink()]
            inner[:] = sorted(
                path.name for path in paths if path not in links and path.resolve() != self.apart
            )
            for reason, members in (("hidden", hidden), ("links to folders", links)):
                if members:
                    self.left_out[reason] += len(members)
            yield from (Path(folder, one) for one in sorted(names) if not one.startswith("."))

    def _file_piece(self, path: Path, caption: Path | None) -> "Piece":
        name = path.relative_to(self.path).as_posix()

        def parts() -> Parts:
            where = inside(path, self.roots, where=name)
            if path.suffix.lower() in TEXTS:
                return (read_text(where),)
            if caption is None:
                return (where,)
            return (where, read_text(inside(caption, self.roots, where=caption.name)))

        return Piece(name, name, str(path), parts)

    def _lines(self) -> Iterator["Piece"]:
        lines = JsonLines(self.path)
        root = self.roots[0]
        mbeir = self.kind == "mbeir"
        for number in range(len(lines)):
            where = lines.where(number)
            try:
                row = lines[number]
                id = row.get("did" if mbeir else "id")
                if not isinstance(id, str) or not id:
                    raise MarvelError(f"expected an id (text), found {id!r}")
            except _BROKEN as error:
                yield Piece(where, where, where, _failing(_reason(error)))
                continue
            yield self._line_piece(lines, number, id, where, root)

    def _line_piece(
        self, lines: JsonLines, number: int, id: str, where: str, root: Path
    ) -> "Piece":
        def parts() -> Parts:
            row = lines[number]
            if self.kind == "mbeir":
                row = {"text": row.get("txt"), "image": row.get("img_path") or None}
            item = item_from_json(row, root=root, where=where, id=id)
            return tuple(self._part(one, where) for one in item.parts)

        return Piece(id, id, where, parts)

    def _part(self, part: Part, where: str) -> str | Path:
        if isinstance(part, str):
            check_length(len(part.encode()))
            return part
        if isinstance(part, Video):
            raise MarvelError("a collection holds pictures and texts, and this is a video")
        assert isinstance(part, Image) and isinstance(part.source, str | Path)
        return inside(Path(part.source), self.roots, where=where)


class Piece(NamedTuple):
    """One file or line before it is read."""

    id: str
    name: str
    file: str
    parts: Callable[[], Parts]


def find_source(
    path: Path,
    *,
    roots: Sequence[Path] = (),
    captions: bool = False,
    apart: Path | None = None,
) -> Source:
    """What `path` is: an M-BEIR folder, another folder, a pool file of M-BEIR, or a jsonl.

    Args:
      path: the folder or file. Of an M-BEIR folder the union pool of test is read.
      roots: folders, besides its own, that a picture may be in.
      captions: see `Source`.
      apart: a folder inside of it that is not looked into: the collection's own.

    Raises:
      MarvelError: it is none of them, or a root is no folder.
    """
    for root in roots:
        if not root.is_dir():
            raise MarvelError(f"--root {root} is no folder.")
    others = [root.resolve() for root in roots]
    whole = path.resolve()
    kind: SourceKind
    if path.is_dir():
        if (path / "query").is_dir() and (path / "cand_pool").is_dir():
            kind, file, root = "mbeir", MbeirFolder(whole).pool("test").files[0].path, whole
        else:
            kind, file, root = "folder", whole, whole
    elif path.is_file():
        kind, file, root = "jsonl", whole, whole.parent
        if _is_pool(whole):
            kind = "mbeir"
            root = whole.parents[2] if whole.parents[1].name == "cand_pool" else whole.parent
    else:
        raise MarvelError(f"{path} does not exist: name a folder, a jsonl or an M-BEIR pool.")
    if captions and kind != "folder":
        raise MarvelError(
            f"--captions is for a folder of pictures and text files; in {path} an item says itself "
            "what belongs to it."
        )
    return Source(
        path=file,
        kind=kind,
        roots=tuple(dict.fromkeys((root, *others))),
        captions=captions,
        apart=None if apart is None else apart.resolve(),
    )


def told_left_out(left_out: Counter[str] | dict[str, int]) -> str:
    """Files that are neither pictures nor texts, in words."""
    kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(left_out.items()))
    return f"left out: {kinds}"


def _is_pool(path: Path) -> bool:
    with path.open("rb") as stream:
        for line in stream:
            if line.strip():
                try:
                    row: Any = json.loads(line)
                except (ValueError, RecursionError):
                    return False
                return isinstance(row, dict) and "did" in row and "id" not in row
    return False


def _failing(reason: str) -> Callable[[], Parts]:
    def fail() -> Parts:
        raise MarvelError(reason)

    return fail


def _check_id(id: str, *, of_file: bool) -> None:
    try:
        id.encode()
    except UnicodeEncodeError as error:
        what = "its name is not UTF-8: rename it" if of_file else f"its id is {_HALF}"
        raise MarvelError(what) from error
    if not id or "\0" in id:
        raise MarvelError("its id is empty or holds a NUL")


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return f"a text or a path of it is {_HALF}"
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8 text ({error.reason} at byte {error.start})"
    if isinstance(error, OSError):
        return f"it cannot be read: {error.strerror or error}"
    if isinstance(error, RecursionError):
        return "its JSON is nested too deep"
    return str(error)


def _printable(text: str) -> str:
    """Without halves of surrogate pairs, which no UTF-8 file can hold."""
    return text.encode(errors="backslashreplace").decode()
