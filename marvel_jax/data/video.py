"""Video on the host: which frames are taken, how large, and their patches, two frames in each."""

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from marvel_jax.data import images, video_file
from marvel_jax.data.images import ImageGeometry
from marvel_jax.data.items import Image, Video
from marvel_jax.errors import MarvelError
from marvel_jax.video_geometry import VideoGeometry

if TYPE_CHECKING:
    import PIL.Image

Grid = tuple[int, int, int]
"""Patches of a video: in time, down and across."""


def grid(
    video: Video, geometry: ImageGeometry, rules: VideoGeometry, *, item_id: str | None = None
) -> Grid:
    """The patches that `cut` will give; of a file, the header and one frame are read."""
    height, width, frames = _shape(video, geometry, rules, item_id)
    with images.naming(video, item_id):
        sides = images.smart_resize(height, width, _of_frame(geometry, rules, frames))
    patch = geometry.patch_size
    return frames // geometry.temporal_patch_size, sides[0] // patch, sides[1] // patch


def cut(
    video: Video, geometry: ImageGeometry, rules: VideoGeometry, *, item_id: str | None = None
) -> tuple[np.ndarray, Grid]:
    """A video as uint8 patches [P, 3 * T * patch * patch], T frames in each, and its grid.

    One temporal patch after the other; inside, as `images.patchify`, with values as channel,
    frame, row, column: the order of the Hugging Face processor. Frames that do not fill the last
    patch are followed by the last one again.

    Raises:
      ImageError: it is missing, damaged or truncated; names the item and the file.
      MarvelError: PyAV, which reads files, is not installed.
    """
    frames = _shape(video, geometry, rules, item_id)[2]
    one = _of_frame(geometry, rules, frames)
    with images.naming(video, item_id):
        cuts = list(_frame_patches(video, one, frames))
    sides = {size for _, size in cuts}
    if len(sides) > 1:
        raise images.unreadable(video, item_id, "its frames are not all of one shape")
    rows, columns = sides.pop()
    together = geometry.temporal_patch_size
    pixels = np.stack([patches for patches, _ in cuts]).reshape(
        frames // together, together, rows * columns, 3, geometry.patch_size**2
    )
    ordered = pixels.transpose(0, 2, 3, 1, 4)
    return ordered.reshape(-1, together * geometry.patch_values), (
        frames // together,
        rows,
        columns,
    )


def first_frame(video: Video) -> "PIL.Image.Image":
    """The first frame, to show: RGB and upright.

    Raises:
      ImageError: as `cut`.
    """
    with images.naming(video, None):
        if isinstance(video.source, str | Path | bytes):
            return video_file.read_frames(video.source, lambda total: [0], lambda frame: frame)[0]
        return images.load_image(_given(video)[0])


def _shape(
    video: Video, geometry: ImageGeometry, rules: VideoGeometry, item_id: str | None
) -> tuple[int, int, int]:
    """Height and width in pixels, and the number of frames taken, a multiple of a patch's."""
    step = geometry.temporal_patch_size
    if isinstance(video.source, str | Path | bytes):
        video_file.require_pyav()  # without it no video could be read: that is not this one's fault
    with images.naming(video, item_id):
        if not isinstance(video.source, str | Path | bytes):
            given = _given(video)
            count = len(given) if video.num_frames is None else min(video.num_frames, len(given))
            return *images.image_size(given[0]), -(-count // step) * step
        header = video_file.read_header(video.source)
        if header.height * header.width > images.MOST_PIXELS:
            raise MarvelError(
                f"its frames have {header.width}x{header.height} pixels, more than the "
                f"{images.MOST_PIXELS:,} that are decoded; make it smaller."
            )
        if video.num_frames is not None:
            most = max(step, header.frames // step * step)
            count = min(max(step, round(video.num_frames / step) * step), most)
        elif header.rate is None:
            raise MarvelError("it does not say its frames a second: give num_frames.")
        else:
            seconds = header.frames / header.rate
            count = rules.count(header.frames, seconds, step=step, fps=video.fps)
    return header.height, header.width, count


def _of_frame(geometry: ImageGeometry, rules: VideoGeometry, frames: int) -> ImageGeometry:
    """The geometry of each of so many frames."""
    share = rules.total_pixels * geometry.temporal_patch_size // frames
    # A twentieth above the least, so that some shape always lies between both limits.
    most = max(min(rules.max_pixels, share), int(rules.min_pixels * 1.05))
    return dataclasses.replace(geometry, min_pixels=rules.min_pixels, max_pixels=most)


def _frame_patches(
    video: Video, geometry: ImageGeometry, frames: int
) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
    """The patches of each of so many frames."""
    if isinstance(video.source, str | Path | bytes):
        make = functools.partial(images.patchify, geometry=geometry)
        choose = functools.partial(_spread, count=frames)
        yield from video_file.read_frames(video.source, choose, make)
        return
    given = _given(video)
    if video.num_frames is not None:
        given = [given[place] for place in _spread(len(given), count=frames)]
    given += given[-1:] * (frames - len(given))
    for frame in given:
        yield images.patchify(images.load_image(frame), geometry)


def _spread(total: int, *, count: int) -> list[int]:
    """Evenly from the first frame to the last."""
    if total < count:
        return [*range(total), *[total - 1] * (count - total)]
    return cast("list[int]", np.linspace(0, total - 1, count).round().astype(int).tolist())


def _given(video: Video) -> list[Image]:
    """The frames of a video that brings its own."""
    if isinstance(video.source, np.ndarray):
        if video.source.dtype != np.uint8 or video.source.ndim != 4 or not len(video.source):
            raise MarvelError(
                "expected frames as a uint8 array [time, height, width, 3], found "
                f"{video.source.dtype} {list(video.source.shape)}."
            )
        return [Image(frame) for frame in video.source]
    return list(cast("tuple[Image, ...]", video.source))
