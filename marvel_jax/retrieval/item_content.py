"""What an item shows to the model, as a key: items of one key are copies, and embed alike.

An id does not count. Texts and the instruction count by their characters, files of pictures and
videos by their bytes, pictures in memory by their pixels.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.images import load_image
from marvel_jax.data.items import Image, Item, Part

_new_digest = partial(hashlib.blake2b, digest_size=16)


def content_key(item: Item) -> bytes:
    """16 bytes, the same for items that show the same.

    Raises:
      OSError: a file cannot be read.
      ImageError: a picture in memory cannot be.
    """
    instruction = item.instruction
    digest = _new_digest()
    for kind, content in (
        ("none" if instruction is None else "led", (instruction or "").encode()),
        *map(_part, item.parts),
    ):
        digest.update(f"{kind} {len(content)} ".encode())
        digest.update(content)
    return digest.digest()


def first_copies(keys: Sequence[bytes | None]) -> np.ndarray:
    """int64 [N]: the place of the first item that each item is a copy of, or its own.

    Where the key is None, the item is nobody's copy.
    """
    first = np.arange(len(keys))
    found: dict[bytes, int] = {}
    for place, key in enumerate(keys):
        if key is not None:
            first[place] = found.setdefault(key, place)
    return first


def _part(part: Part) -> tuple[str, bytes]:
    if isinstance(part, str):
        return "text", part.encode()
    if isinstance(part, Image):
        return "image", _bytes(part.source)
    if isinstance(part.source, tuple):
        kind, shown = "frames", b"".join(_bytes(frame.source) for frame in part.source)
    else:
        kind, shown = "video", _bytes(part.source)
    return f"{kind} {part.num_frames} {part.fps}", shown


def _bytes(source: Any) -> bytes:
    """16 bytes, of a file's bytes or of the pixels of a picture or video in memory."""
    if isinstance(source, bytes):
        return _new_digest(source).digest()
    if isinstance(source, str | Path):
        with Path(source).open("rb") as stream:
            return hashlib.file_digest(stream, _new_digest).digest()
    if not isinstance(source, np.ndarray):
        source = np.asarray(load_image(Image(source)))  # as the model sees it
    described = f"{source.dtype} {source.shape} ".encode()
    return _new_digest(described + source.tobytes()).digest()
