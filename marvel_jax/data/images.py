"""Images on the host: decode, smart resize, patchify. Pixels stay uint8; the device normalises."""

import contextlib
import functools
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from marvel_jax import files, preprocessor
from marvel_jax.data.items import Image, Visual, is_pillow
from marvel_jax.errors import MarvelError

if TYPE_CHECKING:  # Pillow is imported by what reads a picture
    import PIL.Image

MOST_PIXELS = 89_478_485
"""The largest picture that is decoded, by its header: where Pillow begins to warn of decompression
bombs. 268 MB in RGB, about 9,459 x 9,459 pixels."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""What is read, whatever a file is called: Pillow knows formats that run other programs (EPS)."""

_MAX_ASPECT_RATIO = 200
_EXIF_ORIENTATION = 0x0112
_SIDEWAYS = (5, 6, 7, 8)


class ImageError(MarvelError):
    """A picture that cannot be used; `file` is what it is called, `reason` what is wrong."""

    def __init__(self, message: str, *, file: str, reason: str) -> None:
        super().__init__(message)
        self.file, self.reason = file, reason


@dataclass(frozen=True)
class ImageGeometry:
    """How a picture is cut: patch side and merge in pixels and patches, and the area's limits.

    The default limits are those of the reference's training (spec: at most 300 merged tokens).
    """

    patch_size: int = 14
    merge_size: int = 2
    temporal_patch_size: int = 2
    min_pixels: int = 4 * 28 * 28
    max_pixels: int = 300 * 28 * 28

    def __post_init__(self) -> None:
        if min(self.patch_size, self.merge_size, self.temporal_patch_size) < 1:
            raise MarvelError("patch_size, merge_size and temporal_patch_size must be positive.")
        if not 0 < self.min_pixels <= self.max_pixels:
            raise MarvelError(
                f"min_pixels ({self.min_pixels}) must be positive and at most max_pixels "
                f"({self.max_pixels})."
            )

    @property
    def factor(self) -> int:
        """The side in pixels of one merged token: sides are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def merge_area(self) -> int:
        """Patches in a merged token."""
        return self.merge_size**2

    @property
    def patch_values(self) -> int:
        """uint8 values of one still patch: three channels of patch_size squared."""
        return 3 * self.patch_size**2

    @classmethod
    def from_folder(cls, folder: Path | str) -> "ImageGeometry":
        """Reads a Hugging Face folder's image processor, whichever file describes it.

        Raises:
          MarvelError: no file does, or it asks for a preparation that we do not do.
        """
        if preprocessor.find(folder) is None:
            raise MarvelError(
                f"{folder} has no preprocessor_config.json: put the model's own beside its weights."
            )
        found = preprocessor.read(folder)
        default = cls()
        return cls(
            patch_size=found.get("patch_size", default.patch_size),
            merge_size=found.get("merge_size", default.merge_size),
            temporal_patch_size=found.get("temporal_patch_size", default.temporal_patch_size),
            min_pixels=found.get("min_pixels", preprocessor.MIN_PIXELS),
            max_pixels=found.get("max_pixels", preprocessor.MAX_PIXELS),
        )

    def to_preprocessor_dict(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json` that transformers reads to the same cut."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2VLProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(preprocessor.CLIP_MEAN),
            "image_std": list(preprocessor.CLIP_STD),
            "patch_size": self.patch_size,
            "merge_size": self.merge_size,
            "temporal_patch_size": self.temporal_patch_size,
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
        }


def smart_resize(height: int, width: int, geometry: ImageGeometry) -> tuple[int, int]:
    """The (height, width) in pixels that Qwen2-VL gives a picture.

    Both are multiples of `geometry.factor`; the area lies within the geometry's limits where the
    shape allows it; the aspect ratio is kept as nearly as that permits.

    Raises:
      MarvelError: the sides differ by more than 200 times.
    """
    if min(height, width) < 1 or max(height, width) / min(height, width) > _MAX_ASPECT_RATIO:
        raise MarvelError(
            f"an image of {width}x{height} pixels cannot be used: its longer side may be at most "
            f"{_MAX_ASPECT_RATIO} times the shorter one. Crop it."
        )
    factor = geometry.factor
    rounded = (round(height / factor) * factor, round(width / factor) * factor)
    if rounded[0] * rounded[1] > geometry.max_pixels:
        shrink = math.sqrt((height * width) / geometry.max_pixels)
        return (
            max(factor, math.floor(height / shrink / factor) * factor),
            max(factor, math.floor(width / shrink / factor) * factor),
        )
    if rounded[0] * rounded[1] < geometry.min_pixels:
        grow = math.sqrt(geometry.min_pixels / (height * width))
        return (
            math.ceil(height * grow / factor) * factor,
            math.ceil(width * grow / factor) * factor,
        )
    return rounded


def grid(image: Image, geometry: ImageGeometry, *, item_id: str | None = None) -> tuple[int, int]:
    """Patches down and across that `patchify` will give, from the file's header only."""
    height, width = image_size(image, item_id=item_id)
    with naming(image, item_id):
        height, width = smart_resize(height, width, geometry)
    return height // geometry.patch_size, width // geometry.patch_size


def image_size(image: Image, *, item_id: str | None = None) -> tuple[int, int]:
    """(height, width) in pixels as `load_image` would give it, from the file's header only."""
    source = image.source
    if isinstance(source, np.ndarray):
        return _checked_array(image, item_id).shape[:2]
    opened = _open(image, item_id)
    width, height = opened.size
    sideways = _orientation(opened) in _SIDEWAYS
    if opened is not source:
        opened.close()
    return (width, height) if sideways else (height, width)


def load_image(image: Image, *, item_id: str | None = None) -> "PIL.Image.Image":
    """Decodes a picture to RGB, upright by its EXIF orientation.

    Transparency is dropped, not blended, as the Hugging Face processor does.

    Raises:
      MarvelError: it is missing, truncated, too large or no image; names the item and the path.
    """
    import PIL.Image
    import PIL.ImageOps

    if isinstance(image.source, np.ndarray):
        return PIL.Image.fromarray(_checked_array(image, item_id)).convert("RGB")
    opened = _open(image, item_id)
    turned = _orientation(opened) not in (None, 1)
    try:
        upright = PIL.ImageOps.exif_transpose(opened) if turned else opened
        return upright.convert("RGB")
    except MemoryError:
        raise
    except Exception as error:  # what Pillow's readers raise for broken files has no end
        raise unreadable(image, item_id, f"its pixels cannot be decoded ({error})") from error


def patchify(
    picture: "PIL.Image.Image", geometry: ImageGeometry
) -> tuple[np.ndarray, tuple[int, int]]:
    """Cuts an RGB picture into uint8 patches [P, 3 * patch * patch] and gives (grid_h, grid_w).

    Patches come in merge blocks (the patches of one merged token are neighbours), values inside
    as channel, row, column: the order of the Hugging Face processor, one temporal half of it.
    """
    height, width = smart_resize(picture.height, picture.width, geometry)
    if (height, width) != (picture.height, picture.width):
        picture = resize(picture, height, width)
    patch, merge = geometry.patch_size, geometry.merge_size
    rows, columns = height // patch, width // patch
    blocks = np.asarray(picture).reshape(
        rows // merge, merge, patch, columns // merge, merge, patch, 3
    )
    ordered = blocks.transpose(0, 3, 1, 4, 6, 2, 5)
    return ordered.reshape(rows * columns, geometry.patch_values), (rows, columns)


def resize(picture: "PIL.Image.Image", height: int, width: int) -> "PIL.Image.Image":
    """Pillow's antialiased bicubic, as the Hugging Face processor resizes."""
    import PIL.Image

    return picture.resize((width, height), PIL.Image.Resampling.BICUBIC)


def widen(patches: np.ndarray, values: int) -> np.ndarray:
    """Patches [P, C] of one frame as patches [P, values] of that frame again and again.

    Values come as channel, frame, row, column; the channels are three.
    """
    if patches.shape[1] == values:
        return patches
    frames = values // patches.shape[1]
    still = patches.reshape(len(patches), 3, 1, -1)
    return np.repeat(still, frames, axis=2).reshape(len(patches), values)


@functools.lru_cache(maxsize=4096)
def patch_coordinates(rows: int, columns: int, merge: int) -> np.ndarray:
    """(row, column) of each patch [rows * columns, 2] int32, in the order of `patchify`."""
    index = np.indices((rows, columns), dtype=np.int32)
    blocks = index.reshape(2, rows // merge, merge, columns // merge, merge)
    coordinates = blocks.transpose(1, 3, 2, 4, 0).reshape(rows * columns, 2)
    coordinates.setflags(write=False)
    return coordinates


class PatchCache:
    """The last patches cut, by the picture's content, up to so many bytes. Safe among threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._entries: OrderedDict[str, tuple[np.ndarray, tuple[int, int]]] = OrderedDict()
        self._lock = threading.Lock()

    def patches(
        self, image: Image, geometry: ImageGeometry, *, item_id: str | None = None
    ) -> tuple[np.ndarray, tuple[int, int]]:
        """As `patchify(load_image(image))`, remembered for paths and encoded bytes."""
        key = self._key(image, geometry) if self._max_bytes > 0 else None
        if key is not None:
            with self._lock:
                if key in self._entries:
                    self._entries.move_to_end(key)
                    return self._entries[key]
        picture = load_image(image, item_id=item_id)
        with naming(image, item_id):
            cut = patchify(picture, geometry)
        cut[0].setflags(write=False)
        if key is not None:
            with self._lock:
                if key not in self._entries:
                    self._entries[key] = cut
                    self._bytes += cut[0].nbytes
                while self._bytes > self._max_bytes:
                    self._bytes -= self._entries.popitem(last=False)[1][0].nbytes
        return cut

    @staticmethod
    def _key(image: Image, geometry: ImageGeometry) -> str | None:
        if isinstance(image.source, bytes):
            return f"{files.hash_bytes(image.source)} {geometry}"
        if isinstance(image.source, str | Path):
            try:
                stat = Path(image.source).stat()
            except OSError:
                return None
            return f"{image.source} {stat.st_mtime_ns} {stat.st_size} {geometry}"
        return None


def _open(image: Image, item_id: str | None) -> "PIL.Image.Image":
    """The picture with its header read, and no pixels yet."""
    import PIL
    import PIL.Image

    source = image.source
    try:
        if is_pillow(source):
            opened = cast("PIL.Image.Image", source)
        elif isinstance(source, bytes):
            opened = PIL.Image.open(io.BytesIO(source), formats=known_formats())
        else:
            opened = PIL.Image.open(cast(str | Path, source), formats=known_formats())
    except FileNotFoundError as error:
        raise unreadable(image, item_id, "the file does not exist") from error
    except PIL.UnidentifiedImageError as error:
        known = ", ".join(known_formats())
        reason = f"it is not an image of a format that is read ({known})"
        raise unreadable(image, item_id, reason) from error
    except MemoryError:
        raise
    except Exception as error:  # what Pillow's readers raise for broken files has no end
        raise unreadable(image, item_id, str(error) or repr(error)) from error
    width, height = opened.size
    if width * height > MOST_PIXELS:
        if opened is not source:
            opened.close()
        raise unreadable(
            image,
            item_id,
            f"it has {width}x{height} pixels, more than the {MOST_PIXELS:,} that are decoded; "
            "make it smaller",
        )
    return opened


@functools.cache
def known_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has, to open pictures with."""
    import PIL.Image

    PIL.Image.init()
    return tuple(one for one in FORMATS if one in PIL.Image.OPEN)


def _orientation(opened: "PIL.Image.Image") -> int | None:
    # Asking a PNG for EXIF that its header does not hold would decode all of it.
    if "exif" not in opened.info:
        return None
    try:
        return opened.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # its EXIF is broken, its pixels need not be: it is taken as it lies
        return None


def _checked_array(image: Image, item_id: str | None) -> np.ndarray:
    array = image.source
    assert isinstance(array, np.ndarray)
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.shape[2:] in ((3,), (4,))):
        raise unreadable(
            image,
            item_id,
            f"expected a uint8 array [height, width] or [height, width, 3], found {array.dtype} "
            f"{list(array.shape)}",
        )
    return array


def unreadable(visual: Visual, item_id: str | None, reason: str) -> ImageError:
    """The error of an image or a video that cannot be used."""
    return ImageError(
        f"{_owner(visual, item_id)} cannot be read: {reason}.",
        file=visual.describe(),
        reason=reason,
    )


@contextlib.contextmanager
def naming(visual: Visual, item_id: str | None) -> Iterator[None]:
    """Gives the errors within the names of the item and of its image or video."""
    try:
        yield
    except MarvelError as error:
        message = f"{_owner(visual, item_id)}: {error}"
        raise ImageError(message, file=visual.describe(), reason=str(error)) from error


def _owner(visual: Visual, item_id: str | None) -> str:
    kind = "image" if isinstance(visual, Image) else "video"
    if item_id:
        return f"Item {item_id}: {kind} {visual.describe()}"
    return f"{kind.capitalize()} {visual.describe()}"
