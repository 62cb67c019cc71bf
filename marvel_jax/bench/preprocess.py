"""From decoded pictures to the vision tower's input: our path beside transformers' processor.

Decoding is not timed: both decode with Pillow. Both resize with Pillow's bicubic, too, which is the
floor. Ours gives uint8 patches that the device normalises; "normalised" does here what the device
does otherwise, so that the very array of transformers comes out.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from marvel_jax.bench.machine import result
from marvel_jax.bench.stopwatch import Lap, lap, median, ratio, take_turns
from marvel_jax.errors import MarvelError

if TYPE_CHECKING:
    import PIL.Image

    from marvel_jax.data.images import ImageGeometry

_PEER = "transformers, Pillow"
LARGEST_DIFFERENCE = 1e-6  # of normalised pixels, which lie between -1.8 and 2.2


@dataclass(frozen=True, kw_only=True)
class PreprocessOptions:
    """`pictures` of `width` x `height` pixels a lap; M-BEIR's mean is 396 x 265."""

    width: int = 396
    height: int = 265
    pictures: int = 64
    repeats: int = 9
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "height", "pictures", "repeats"):
            if getattr(self, name) < 1:
                raise MarvelError(f"{name}={getattr(self, name)}: give at least 1.")


def run(options: PreprocessOptions) -> dict[str, Any]:
    """Milliseconds a picture of each way, in turns, and transformers' time over theirs.

    Raises:
      MarvelError: what transformers makes of a picture is not what we make of it.
    """
    import PIL.Image

    from marvel_jax.data import images

    geometry = images.ImageGeometry()
    pictures = _pictures(options)
    height, width = images.smart_resize(options.height, options.width, geometry)
    ways: dict[str, Callable[[PIL.Image.Image], object]] = {
        "resize alone": lambda one: images.resize(one, height, width),
        "ours": lambda one: images.patchify(one, geometry),
        "ours, normalised": lambda one: normalised(one, geometry),
    }
    notes = []
    if importlib.util.find_spec("transformers") is None:
        notes.append("transformers is not installed: ours alone")
    else:
        ways[_PEER] = _transformers(geometry)
        notes.append(f"largest difference of the output: {_difference(pictures, geometry):.1e}")

    def contender(way: Callable[[PIL.Image.Image], object]) -> Callable[[], Lap]:
        def each() -> None:
            for one in pictures:  # nothing is kept: fresh memory would be timed with it
                way(one)

        each()  # what is done once is not timed
        return lambda: lap(each)

    laps = take_turns({name: contender(way) for name, way in ways.items()}, repeats=options.repeats)
    slowest = laps.get(_PEER)
    rows = [_row(name, taken, slowest, options.pictures) for name, taken in laps.items()]
    return result(
        "preprocess",
        rows,
        picture=f"{options.width}x{options.height}",
        resized=f"{width}x{height}",
        pictures=options.pictures,
        repeats=options.repeats,
        notes=notes,
    )


def normalised(picture: "PIL.Image.Image", geometry: "ImageGeometry") -> np.ndarray:
    """float32 [P, 3 * 2 * patch * patch]: the array that transformers' processor gives."""
    from marvel_jax import preprocessor
    from marvel_jax.data import images

    patches, _ = images.patchify(picture, geometry)
    mean, deviation = np.array(preprocessor.CLIP_MEAN), np.array(preprocessor.CLIP_STD)
    scale = (1 / (255 * deviation)).astype(np.float32)[:, None]
    shift = (-mean / deviation).astype(np.float32)[:, None]
    frames, area = geometry.temporal_patch_size, geometry.patch_size**2
    found = np.empty((len(patches), 3, frames, area), np.float32)
    np.multiply(patches.reshape(-1, 3, area), scale, out=found[:, :, 0])
    found[:, :, 0] += shift
    for frame in range(1, frames):
        found[:, :, frame] = found[:, :, 0]
    return found.reshape(len(patches), -1)


def _difference(pictures: "list[PIL.Image.Image]", geometry: "ImageGeometry") -> float:
    theirs = _transformers(geometry)
    worst = 0.0
    for picture in pictures[:4]:
        ours, other = normalised(picture, geometry), theirs(picture)
        if ours.shape != other.shape:
            raise MarvelError(f"transformers gives {other.shape}, ours is {ours.shape}.")
        worst = max(worst, float(np.abs(ours - other).max()))
    if not worst <= LARGEST_DIFFERENCE:
        raise MarvelError(
            f"transformers' pixels differ from ours by {worst:.1e}, more than "
            f"{LARGEST_DIFFERENCE:.0e}: the times would not compare."
        )
    return worst


def _transformers(geometry: "ImageGeometry") -> "Callable[[PIL.Image.Image], np.ndarray]":
    from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as module

    processor = module.Qwen2VLImageProcessorPil(
        patch_size=geometry.patch_size,
        merge_size=geometry.merge_size,
        temporal_patch_size=geometry.temporal_patch_size,
        min_pixels=geometry.min_pixels,
        max_pixels=geometry.max_pixels,
    )

    def prepare(picture: "PIL.Image.Image") -> np.ndarray:
        found = processor(images=[picture], return_tensors="np")
        return np.asarray(found["pixel_values"])

    return prepare


def _pictures(options: PreprocessOptions) -> "list[PIL.Image.Image]":
    import PIL.Image

    rng = np.random.default_rng(options.seed)
    size = (options.height, options.width, 3)
    return [
        PIL.Image.fromarray(rng.integers(0, 256, size).astype(np.uint8))
        for _ in range(options.pictures)
    ]


def _row(name: str, taken: list[Lap], slowest: list[Lap] | None, pictures: int) -> dict[str, Any]:
    one = median(taken)
    row = {
        "preprocess": name,
        "ms": round(1e3 * one.seconds / pictures, 3),
        "cpu_ms": round(1e3 * one.cpu_seconds / pictures, 3),
    }
    if slowest is not None:
        times = ratio(slowest, taken)
        row["transformers/this"] = round(times.seconds, 2)
        row["cpu"] = round(times.cpu_seconds, 2)
    return row
