"""A video file's size, length and frames, through PyAV (FFmpeg); imported when one is read."""

import contextlib
import importlib.util
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from marvel_jax.errors import MarvelError

if TYPE_CHECKING:
    import PIL.Image

File = str | Path | bytes
_Made = TypeVar("_Made")

# Some containers count frames that no decoder gives (packed B-frames, edit lists): a file that has
# nearly all that its header promises is whole.
_WHOLE = 0.9


class BrokenVideoError(MarvelError):
    """Why a file cannot be used; who knows its item and its name adds them."""


def require_pyav() -> None:
    """Raises a MarvelError where PyAV is not installed."""
    if importlib.util.find_spec("av") is None:
        raise MarvelError(
            "Reading a video file needs PyAV: pip install 'marvel-jax[video]', or give the video's "
            "frames as images."
        )


class VideoHeader(NamedTuple):
    """What is known of a file before its frames: pixels as they are shown, frames, frames/s."""

    height: int
    width: int
    frames: int
    rate: float | None


def read_header(file: File) -> VideoHeader:
    """Reads the header and decodes the first frame, whose size is the one that counts.

    Where the header does not count the frames, the packets are counted, which decodes nothing.

    Raises:
      BrokenVideoError: the file is missing or no video, or its first frame cannot be decoded.
    """
    with _opened(file) as (container, stream):
        first = next(container.decode(stream), None)
        if first is None:
            raise BrokenVideoError("it has no frame.")
        height, width = first.height, first.width
        if _turns(first) % 2:
            height, width = width, height
        frames, rate = stream.frames, stream.average_rate or stream.guessed_rate
    if not frames:
        with _opened(file) as (container, stream):
            frames = sum(1 for packet in container.demux(stream) if packet.size)
    return VideoHeader(height, width, frames, float(rate) if rate else None)


def read_frames(
    file: File, choose: Callable[[int], Sequence[int]], make: Callable[["PIL.Image.Image"], _Made]
) -> list[_Made]:
    """What `make` makes of the frames, RGB and upright, that `choose` picks out of so many.

    `choose` gives ascending places, again if the file turns out to have a few frames less than it
    says. Frames are decoded in order and dropped once they are made.

    Raises:
      BrokenVideoError: the file is missing, damaged or truncated.
    """
    promised = read_header(file).frames
    made, seen = _made(file, choose(promised), make)
    if made is not None:
        return made
    if seen < _WHOLE * promised:
        raise BrokenVideoError(f"it ends after {seen} of {promised} frames: it is truncated.")
    made, seen = _made(file, choose(seen), make)
    if made is None:
        raise BrokenVideoError(f"its {seen} frames cannot be decoded twice alike.")
    return made


def _made(
    file: File, places: Sequence[int], make: Callable[["PIL.Image.Image"], _Made]
) -> tuple[list[_Made] | None, int]:
    """The frames at `places` and the frames seen; None where the file ends before the last."""
    made: list[_Made] = []
    seen = 0
    with _opened(file) as (container, stream):
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            if seen == places[len(made)]:
                one = make(_upright(frame))
                # A place comes again where there are fewer frames than a temporal patch takes.
                made += [one] * sum(place == seen for place in places)
            seen += 1
            if len(made) == len(places):
                return made, seen
    return None, seen


def _upright(frame: Any) -> "PIL.Image.Image":
    import PIL.Image

    turned = (None, PIL.Image.Transpose.ROTATE_90, PIL.Image.Transpose.ROTATE_180)
    operation = (*turned, PIL.Image.Transpose.ROTATE_270)[_turns(frame)]
    picture: PIL.Image.Image = frame.to_image()
    return picture if operation is None else picture.transpose(operation)


def _turns(frame: Any) -> int:
    """Quarters, counterclockwise, by which a frame is turned to be shown."""
    return round((frame.rotation or 0) / 90) % 4


@contextlib.contextmanager
def _opened(file: File) -> Iterator[tuple[Any, Any]]:
    """A container and its first video stream; what goes wrong inside is a BrokenVideoError."""
    import av

    try:
        with av.open(io.BytesIO(file) if isinstance(file, bytes) else str(file)) as container:
            if not container.streams.video:
                raise BrokenVideoError("it holds no video stream.")
            yield container, container.streams.video[0]
    except FileNotFoundError as error:
        raise BrokenVideoError("the file does not exist.") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise BrokenVideoError(f"it cannot be decoded ({error}).") from error
