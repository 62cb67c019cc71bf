"""Small videos for the tests of data/: frames whose number can be read off their pixels."""

import io
from pathlib import Path

import numpy as np


def frames(count: int, height: int = 28, width: int = 28, *, seed: int = 0) -> np.ndarray:
    """[T, H, W, 3] uint8 noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), np.uint8)


def grey(count: int, height: int = 16, width: int = 24) -> np.ndarray:
    """[T, H, W, 3]: frame t is grey, of value 3 t."""
    values = 3 * np.arange(count, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, height, width, 3))


def encoded(pixels: np.ndarray, *, rate: int = 10, container: str = "avi") -> bytes:
    """A file that decodes to exactly these pixels (FFV1)."""
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as file:
        track = file.add_stream("ffv1", rate=rate)
        track.height, track.width = pixels.shape[1:3]
        track.pix_fmt = "bgr0"
        for frame in pixels:
            made = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            file.mux(track.encode(made.reformat(format="bgr0")))
        file.mux(track.encode())
    return stream.getvalue()


def write(path: Path, pixels: np.ndarray, *, rate: int = 10) -> Path:
    """The same as a file, in the container of its suffix."""
    container = {".avi": "avi", ".mkv": "matroska"}[path.suffix]
    path.write_bytes(encoded(pixels, rate=rate, container=container))
    return path
