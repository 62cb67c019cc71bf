"""Which items of a list are the same to the model: the same texts and bytes of pictures, videos.

An id does not count. Pictures are compared by their files' bytes, and a file is read for it only
where another item has the same texts, sizes and instruction.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from marvel_jax.data.items import Image, Item, Part, is_pillow
from marvel_jax.retrieval.prefetch import ahead


def sketch(item: Item) -> bytes:
    """16 bytes that copies have in common: texts, instruction, and the sizes of pictures.

    Raises:
      OSError: a picture's file is not there.
    """
    return _digest(item, lambda image: str(_size(image)).encode())


def first_copies(
    sketches: Sequence[bytes | None],
    read: Callable[[int], Item],
    *,
    pool: ThreadPoolExecutor | None = None,
) -> np.ndarray:
    """int64 [N]: the place of the first item that each item is a copy of, or its own.

    Where the sketch is None, the item is nobody's copy. Pictures of those that share a sketch are
    read once, by the threads of `pool` if there is one.
    """
    first = np.arange(len(sketches))
    sharing: dict[bytes, list[int]] = {}
    for place, one in enumerate(sketches):
        if one is not None:
            sharing.setdefault(one, []).append(place)
    shared = [place for places in sharing.values() if len(places) > 1 for place in places]

    def content(place: int) -> bytes:
        return _content(read(place), place)

    contents = map(content, shared) if pool is None else ahead(pool, content, shared, depth=64)
    found: dict[bytes, int] = {}  # of equal content, the sketch is equal, too
    for place, one in zip(shared, contents, strict=True):
        first[place] = found.setdefault(one, place)
    return first


def _content(item: Item, place: int) -> bytes:
    try:
        return _digest(item, _bytes)
    except OSError:  # it went away meanwhile: whoever encodes it says so
        return f"unreadable {place}".encode()


def _digest(item: Item, of_image: Callable[[Image], bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    instruction = item.instruction
    for kind, content in (
        ("none" if instruction is None else "led", (instruction or "").encode()),
        *(_part(part, of_image) for part in item.parts),
    ):
        digest.update(f"{kind} {len(content)} ".encode())
        digest.update(content)
    return digest.digest()


def _part(part: Part, of_image: Callable[[Image], bytes]) -> tuple[str, bytes]:
    if isinstance(part, str):
        return "text", part.encode()
    if isinstance(part, Image):
        return "image", of_image(part)
    if isinstance(part.source, str | Path | bytes | np.ndarray):
        frames = [Image(part.source)]  # a file by its bytes, as a picture's is
    else:
        frames = list(part.source)
    shown = [of_image(one) for one in frames]
    kind = f"video {part.num_frames} {part.fps} {[len(one) for one in shown]}"
    return kind, b"".join(shown)


def _size(image: Image) -> tuple[int, ...]:
    source = image.source
    if isinstance(source, bytes):
        return (len(source),)
    if isinstance(source, str | Path):
        return (Path(source).stat().st_size,)
    if isinstance(source, np.ndarray):
        return source.shape
    return (*source.size, -1)


def _bytes(image: Image) -> bytes:
    source = image.source
    if isinstance(source, bytes):
        return source
    if isinstance(source, str | Path):
        return Path(source).read_bytes()
    kind = getattr(source, "mode", "array")
    # A picture in memory may be opened and not read: where that fails, its encoding says so.
    if is_pillow(source):
        try:
            return f"{kind} {source.size} ".encode() + source.tobytes()
        except Exception as error:
            raise OSError(str(error)) from error
    pixels = np.asarray(source)
    return f"{kind} {pixels.shape} ".encode() + pixels.tobytes()
