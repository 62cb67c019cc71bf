"""Pictures from a client, and thumbnails for one."""

import base64
import binascii
import io
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from marvel_jax.data.images import (
    FORMATS,
    ImageError,
    ImageGeometry,
    image_size,
    known_formats,
    load_image,
    naming,
    resize,
    smart_resize,
)
from marvel_jax.data.items import Image
from marvel_jax.serving.problems import Problem

if TYPE_CHECKING:
    import PIL.Image

SIZES = {"small": 320, "large": 1280}
"""Longer side of a thumbnail in pixels at most."""


def query_pictures(
    encoded: str, *, pixels: int, geometries: Sequence[ImageGeometry]
) -> "list[PIL.Image.Image]":
    """The RGB picture of a base64 text, with or without a `data:` address, once for each model.

    Each is resized as the model of that geometry would: what waits to be encoded is as small as
    what the model takes, however large a picture was sent, and its vector is the same.

    Raises:
      Problem: it is no base64, no picture of a known format, broken, of a shape that a model does
        not take, or has more pixels than that.
    """
    import PIL.Image

    if encoded.startswith("data:"):
        encoded = encoded.partition(",")[2]
    try:
        content = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Problem(
            422, "bad_image", "image: expected a picture's bytes in base64, found something else."
        ) from None
    try:
        opened = PIL.Image.open(io.BytesIO(content), formats=known_formats())
    except MemoryError:
        raise
    except Exception:  # what Pillow's readers raise for broken files has no end
        raise Problem(
            422,
            "bad_image",
            f"image: this is no picture that is taken here: send one of {', '.join(FORMATS)}.",
        ) from None
    image = Image(opened, name="the query's picture")
    try:
        height, width = image_size(image)
        if height * width > pixels:
            raise Problem(
                413,
                "too_many_pixels",
                f"image: {width} x {height} pixels are more than the {pixels:,} that are taken: "
                "make it smaller.",
            )
        whole = load_image(image)
        with naming(image, None):
            return [fitted(whole, geometry) for geometry in geometries]
    except ImageError as error:
        raise Problem(422, "bad_image", f"image: {error}") from None


def fitted(picture: "PIL.Image.Image", geometry: ImageGeometry) -> "PIL.Image.Image":
    """The picture at the size to which `patchify` brings it, which then has nothing to resize.

    Raises:
      MarvelError: its sides differ too much.
    """
    height, width = smart_resize(picture.height, picture.width, geometry)
    if (height, width) == (picture.height, picture.width):
        return picture
    return resize(picture, height, width)


class Thumbnails:
    """Pictures of a collection, decoded and written anew, the last ones remembered.

    What is sent is never a file as it lies: no metadata leaves, and nothing that only looks like a
    picture.
    """

    def __init__(self, *, most_bytes: int = 64 << 20) -> None:
        self._most, self._bytes = most_bytes, 0
        self._kept: OrderedDict[tuple[str, int, int, int], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def webp(self, path: Path, *, side: int) -> bytes:
        """The picture at `path` as WebP, its longer side at most so many pixels.

        Raises:
          MarvelError: it is missing or cannot be decoded.
        """
        try:
            stat = path.stat()
        except OSError:
            load_image(Image(path, name=path.name))  # says what is wrong, without the folder
            raise
        key = (str(path), stat.st_mtime_ns, stat.st_size, side)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        picture = load_image(Image(path, name=path.name))
        picture.thumbnail((side, side))
        stream = io.BytesIO()
        picture.save(stream, "webp", quality=86, method=2)
        made = stream.getvalue()
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > self._most:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made
