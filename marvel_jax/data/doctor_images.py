"""Looks at pictures on disk: there, whole, decodable, and of a size that a model can take."""

import json
import os
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import PIL.Image

from marvel_jax.data.doctor_layout import LayoutFile
from marvel_jax.data.doctor_lines import picture_path
from marvel_jax.data.doctor_problems import Kind, Problem
from marvel_jax.data.images import MOST_PIXELS, ImageGeometry, load_image, smart_resize
from marvel_jax.data.items import Image
from marvel_jax.errors import MarvelError

MIN_SIDE, MAX_SIDE = 8, 10_000  # beyond them a picture can be used, and is worth a look
_TAIL = 4096
_JPEG_END, _PNG_END = b"\xff\xd9", b"IEND\xaeB`\x82"

_STARTS = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF"}


class PictureTask(NamedTuple):
    """Some pictures that a file's lines name.

    `offsets` and `lines` [P] say where each is named first, `named` [P] by how many lines in all.
    Those under the folders `skipped` are not looked at. With `decode`, pixels are read too.
    """

    root: Path
    file: LayoutFile
    offsets: np.ndarray
    lines: np.ndarray
    named: np.ndarray
    skipped: frozenset[str]
    decode: bool


class Looked(NamedTuple):
    """How many pictures were looked at, and what is wrong with them, in the lines' order."""

    looked_at: int
    problems: list[Problem]


def look(task: PictureTask) -> Looked:
    """Looks at each picture of a task once."""
    problems = []
    count = 0
    id_field = "qid" if task.file.role == "queries" else "did"
    with (task.root / task.file.name).open("rb") as stream:
        places = zip(task.offsets.tolist(), task.lines.tolist(), task.named.tolist(), strict=True)
        for offset, line, named in places:
            stream.seek(offset)
            record = json.loads(stream.readline())
            path = picture_path(record, task.file.role)
            if path.partition("/")[0] in task.skipped:
                continue
            count += 1
            found = examine(task.root / path, decode=task.decode)
            if found is not None:
                kind, reason = found
                others = f" ({named:,} lines do)" if named > 1 else ""
                id = record.get(id_field)
                message = f"{id} names {path}{others}: {reason}"
                problems.append(Problem(kind, task.file.name, line, id, message, path))
    return Looked(count, problems)


def examine(path: Path, *, decode: bool) -> tuple[Kind, str] | None:
    """What is wrong with a picture, or None.

    Without `decode` its header and its end are read, and its pixels only where the end is not that
    of a whole file: what is reported as truncated could not be decoded either way.
    """
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        return Kind.IMAGE_MISSING, f"there is no such file ({_reason(error)})"
    if size == 0:
        return Kind.IMAGE_TRUNCATED, "the file is empty"
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it reads; what it refuses is an error of its own.
            warnings.simplefilter("ignore")
            with PIL.Image.open(path) as opened:
                width, height, form = *opened.size, opened.format or ""
    except PIL.Image.DecompressionBombError as error:
        return Kind.IMAGE_TOO_LARGE, str(error)
    except OSError as error:
        if error.errno is not None:  # a folder, or a file that may not be read
            return Kind.IMAGE_UNDECODABLE, f"it cannot be opened ({_reason(error)})"
        return _headless(path, size, error)
    except Exception as error:  # Pillow's plugins raise whatever a broken header leads them to.
        return _headless(path, size, error)
    if width * height > MOST_PIXELS:
        return Kind.IMAGE_TOO_LARGE, f"it has {width}x{height} pixels"
    try:
        smart_resize(height, width, ImageGeometry())
    except MarvelError as error:
        return Kind.IMAGE_TOO_LONG, str(error).rstrip(".")
    whole = _ends_well(path, size, form)
    if decode or not whole:
        reason = _decode(path)
        if reason is not None:
            kind = Kind.IMAGE_UNDECODABLE if whole else Kind.IMAGE_TRUNCATED
            return kind, f"its pixels cannot be decoded ({reason})"
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
        return Kind.IMAGE_EXTREME, f"it has {width}x{height} pixels"
    return None


def _headless(path: Path, size: int, error: Exception) -> tuple[Kind, str]:
    kind = Kind.IMAGE_UNDECODABLE if _ends_well(path, size, _form(path)) else Kind.IMAGE_TRUNCATED
    return kind, f"its header cannot be read ({_reason(error)})"


def _decode(path: Path) -> str | None:
    """Why a picture cannot be decoded, by the reader that training uses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_image(Image(path))
    except MarvelError as error:
        return _reason(error.__cause__ or error)
    except Exception as error:  # what our reader would not expect either
        return _reason(error)
    return None


def _form(path: Path) -> str:
    """What a file says that it is, by its first bytes; "" for anything else."""
    with path.open("rb") as stream:
        head = stream.read(12)
    if head.startswith(b"RIFF") and head.endswith(b"WEBP"):
        return "WEBP"
    return next((form for start, form in _STARTS.items() if head.startswith(start)), "")


def _ends_well(path: Path, size: int, form: str) -> bool:
    """Whether a file ends as its form says. Others than those below count as whole."""
    with path.open("rb") as stream:
        if form == "WEBP":
            head = stream.read(8)
            return 8 + int.from_bytes(head[4:8], "little") <= size
        stream.seek(-min(size, _TAIL), os.SEEK_END)
        tail = stream.read()
    match form:
        # Between its header and its end a JPEG has no such two bytes: 0xFF is followed by 0.
        case "JPEG" | "MPO":
            return _JPEG_END in tail
        case "PNG":
            return _PNG_END in tail
        case "GIF":
            return tail.rstrip(b"\0").endswith(b";")
    return True


def _reason(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (said or type(error).__name__).splitlines()[0][:200]
