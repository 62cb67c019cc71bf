"""Which frames of a video are read, and how large: part of what decides a vector."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

from marvel_jax.errors import MarvelError


@dataclass(frozen=True)
class VideoGeometry:
    """How many frames of a video are taken and how large they may be; areas in pixels.

    `total_pixels` bounds a long video: each frame has its even share of it, a temporal patch's
    frames counting once, but never less than `min_pixels`. Source: Qwen2-VL's own utilities, with
    the constants of the specification (umarvel.md 2.3).
    """

    fps: float = 2.0
    min_frames: int = 4
    max_frames: int = 768
    min_pixels: int = 128 * 28 * 28
    max_pixels: int = 768 * 28 * 28
    total_pixels: int = 24_576 * 28 * 28

    def __post_init__(self) -> None:
        if not 0 < self.fps < float("inf"):
            raise MarvelError(f"video fps is {self.fps}: give more than 0, as 2.")
        for low, high in (("min_frames", "max_frames"), ("min_pixels", "max_pixels")):
            if not 0 < getattr(self, low) <= getattr(self, high):
                raise MarvelError(
                    f"video {low} ({getattr(self, low)}) must be positive and at most {high} "
                    f"({getattr(self, high)})."
                )
        if self.total_pixels < 1:
            raise MarvelError(f"video total_pixels is {self.total_pixels}: give a positive number.")

    @classmethod
    def from_dict(cls, fields: Any, *, name: str) -> Self:
        """Reads the object "video" of the file `name`; what it leaves out is the default.

        Raises:
          MarvelError: no object, an unknown field, or a value of another type.
        """
        if not isinstance(fields, dict):
            raise MarvelError(f"{name}: video is {fields!r}; expected an object.")
        known = [field.name for field in dataclasses.fields(cls)]
        for field, value in fields.items():
            if field not in known:
                raise MarvelError(
                    f"{name}: unknown field video.{field}; there are {', '.join(known)}."
                )
            whole = type(value) is int
            if not (whole or (field == "fps" and type(value) is float)):
                raise MarvelError(f"{name}: video.{field} is {value!r}; expected a number.")
        return cls(**fields)

    def count(self, total: int, seconds: float, *, step: int, fps: float | None = None) -> int:
        """Frames taken of a file of `total` frames: a multiple of `step` (frames of a patch).

        `fps` a second, `min_frames` at least and `max_frames` at most, never more than there are;
        `step` where there are fewer than that.
        """
        least = -(-self.min_frames // step) * step
        most = min(self.max_frames, total) // step * step
        wanted = min(max(seconds * (self.fps if fps is None else fps), least), most)
        return max(step, int(wanted) // step * step)
