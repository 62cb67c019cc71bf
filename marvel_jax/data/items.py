"""What is retrieved and what it is retrieved with: items, queries, candidates and tasks."""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

import numpy as np

from marvel_jax.errors import MarvelError

if TYPE_CHECKING:  # text needs no Pillow
    import PIL.Image

ImageSource: TypeAlias = "str | Path | bytes | PIL.Image.Image | np.ndarray"


def is_pillow(value: Any) -> bool:
    """Whether it is a picture of Pillow's; it cannot be where nobody has imported Pillow."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(value, pillow.Image)


@dataclass(frozen=True)
class Image:
    """One picture: a path, an encoded file's bytes, a PIL image or a uint8 array [H, W(, 3)].

    It is decoded as late as possible. `name` is what an error calls it where there is no path.
    """

    source: ImageSource
    name: str | None = None

    def __post_init__(self) -> None:
        known = isinstance(self.source, str | Path | bytes | np.ndarray)
        if not (known or is_pillow(self.source)):
            raise MarvelError(
                f"An image is a path, bytes, a PIL image or an array; found "
                f"{type(self.source).__name__}."
            )

    def describe(self) -> str:
        """A short name for messages: the given name, the path, or the kind of the source."""
        if self.name is not None:
            return self.name
        if isinstance(self.source, str | Path):
            return str(self.source)
        return f"<{type(self.source).__name__}>"


VideoSource: TypeAlias = "str | Path | bytes | np.ndarray | Sequence[Image]"


@dataclass(frozen=True)
class Video:
    """One video: a path, an encoded file's bytes, frames as a uint8 array [T, H, W, 3] or Images.

    Its frames are decoded as late as possible. Of a file, so many a second are taken as the
    processor says (`data.video.VideoGeometry`), or `fps`, or `num_frames` evenly over the whole;
    frames that are given are all taken, or `num_frames` of them. `name` is what an error calls it.

    Raises:
      MarvelError: another source, or `num_frames` and `fps` that cannot be.
    """

    source: VideoSource
    num_frames: int | None = None
    fps: float | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.source, list | tuple):
            object.__setattr__(self, "source", tuple(self.source))
        if not isinstance(self.source, str | Path | bytes | np.ndarray | tuple):
            raise MarvelError(
                f"A video is a path, bytes, an array or a list of Images; found "
                f"{type(self.source).__name__}."
            )
        if isinstance(self.source, tuple) and not (
            self.source and all(isinstance(frame, Image) for frame in self.source)
        ):
            raise MarvelError("A video's frames are one Image or more: wrap each, as Image(path).")
        if self.num_frames is not None and self.fps is not None:
            raise MarvelError(f"{self.describe()}: give num_frames or fps, not both.")
        if self.fps is not None and not 0 < self.fps < float("inf"):
            raise MarvelError(f"{self.describe()}: fps is {self.fps}; give more than 0, as 2.")
        if self.num_frames is not None and self.num_frames < 1:
            raise MarvelError(
                f"{self.describe()}: num_frames is {self.num_frames}; give 1 or more."
            )
        if self.fps is not None and isinstance(self.source, tuple | np.ndarray):
            raise MarvelError(
                f"{self.describe()}: frames have no time, so fps cannot choose among them: "
                "give num_frames."
            )

    def describe(self) -> str:
        """A short name for messages: the given name, the path, or the kind of the source."""
        if self.name is not None:
            return self.name
        if isinstance(self.source, str | Path):
            return str(self.source)
        if isinstance(self.source, tuple):
            return f"<{len(self.source)} frames from {self.source[0].describe()}>"
        return f"<{type(self.source).__name__}>"


Visual = Image | Video
Part = str | Image | Video


@dataclass(frozen=True)
class Item:
    """Ordered text, images and videos that become one embedding, with an optional instruction.

    Texts are raw: the chat template formats them. The instruction is read by the model but is
    not pooled.

    Raises:
      MarvelError: there is no part, or a part is not a str, an `Image` or a `Video`.
    """

    parts: tuple[Part, ...]
    instruction: str | None = None
    id: str | None = None

    def __post_init__(self) -> None:
        if not self.parts:
            raise MarvelError(
                f"Item {self.id or '(no id)'} is empty: give it a text, an image or both."
            )
        for part in self.parts:
            if not isinstance(part, str | Image | Video):
                raise MarvelError(
                    f"Item {self.id or '(no id)'}: a part is a str, an Image or a Video, found "
                    f"{type(part).__name__}; Item.of(text=..., image=..., video=...) wraps them."
                )

    @classmethod
    def of(
        cls,
        *,
        text: str | None = None,
        image: "Image | ImageSource | Sequence[Image | ImageSource] | None" = None,
        video: "Video | str | Path | bytes | np.ndarray | None" = None,
        instruction: str | None = None,
        id: str | None = None,
    ) -> "Item":
        """An item with its images first, then its video and then its text, the field's order.

        A blank text counts as no text. `Item(parts=...)` takes any number in any order.

        Raises:
          MarvelError: nothing is given.
        """
        several: Sequence[Image | ImageSource] = ()
        if image is not None:
            several = image if isinstance(image, list | tuple) else (cast("ImageSource", image),)
        images: list[Part] = [one if isinstance(one, Image) else Image(one) for one in several]
        videos: list[Part] = []
        if video is not None:
            videos = [video if isinstance(video, Video) else Video(video)]
        texts: list[Part] = [text] if text is not None and text.strip() else []
        return cls(parts=(*images, *videos, *texts), instruction=instruction, id=id)

    @property
    def images(self) -> tuple[Image, ...]:
        """The images among the parts, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def visuals(self) -> tuple[Visual, ...]:
        """The images and videos among the parts, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image | Video))

    @property
    def modality(self) -> str:
        """`text`, `image` or `image,text`, in M-BEIR's words; `video` stands before `text`."""
        kinds = (("image", Image), ("video", Video), ("text", str))
        return ",".join(
            name for name, kind in kinds if any(isinstance(part, kind) for part in self.parts)
        )

    def with_instruction(self, instruction: str | None) -> "Item":
        """The same item under another instruction."""
        return dataclasses.replace(self, instruction=instruction)


@dataclass(frozen=True)
class Task:
    """One of M-BEIR's kinds of retrieval: which modality asks for which."""

    id: int
    name: str
    query_modality: str
    candidate_modality: str


TASKS: dict[int, Task] = {
    task.id: task
    for task in (
        Task(0, "t->i", "text", "image"),
        Task(1, "t->t", "text", "text"),
        Task(2, "t->(i,t)", "text", "image,text"),
        Task(3, "i->t", "image", "text"),
        Task(4, "i->i", "image", "image"),
        Task(6, "(i,t)->t", "image,text", "text"),
        Task(7, "(i,t)->i", "image,text", "image"),
        Task(8, "(i,t)->(i,t)", "image,text", "image,text"),
    )
}
"""M-BEIR's eight tasks by their id in the data set (5 is unused there)."""


@dataclass(frozen=True)
class Query:
    """A question: its item (without instruction), its task, and the ids that answer it."""

    id: str
    item: Item
    task: Task
    positives: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    dataset: int = 0

    @property
    def instruction_key(self) -> tuple[int, str, str]:
        """Where `RetrievalSource.instructions` keeps this query's prompts."""
        return (self.dataset, self.task.query_modality, self.task.candidate_modality)


@dataclass(frozen=True)
class Candidate:
    """A possible answer of a pool."""

    id: str
    item: Item
    modality: str


class RetrievalSource(Protocol):
    """What training and evaluation read. Both sequences give random access and are lazy.

    `instructions` maps (data set id, query modality, candidate modality) to prompts; an empty
    mapping means that queries carry none, an empty tuple that those of one kind carry none.
    `fingerprint` is a hash of the content.
    """

    @property
    def queries(self) -> Sequence[Query]: ...

    @property
    def candidates(self) -> Sequence[Candidate]: ...

    @property
    def instructions(self) -> Mapping[tuple[int, str, str], tuple[str, ...]]: ...

    @property
    def fingerprint(self) -> str: ...

    def candidate_index(self, id: str) -> int:
        """The position of a candidate's id; MarvelError for an unknown one."""
        ...
