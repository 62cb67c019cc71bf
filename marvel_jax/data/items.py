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


Part = str | Image


@dataclass(frozen=True)
class Item:
    """Ordered text and images that become one embedding, with an optional instruction.

    Texts are raw: the chat template formats them. The instruction is read by the model but is
    not pooled.

    Raises:
      MarvelError: there is no part, or a part is neither a str nor an `Image`.
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
            if not isinstance(part, str | Image):
                raise MarvelError(
                    f"Item {self.id or '(no id)'}: a part is a str or an Image, found "
                    f"{type(part).__name__}; Item.of(text=..., image=...) wraps images."
                )

    @classmethod
    def of(
        cls,
        *,
        text: str | None = None,
        image: "Image | ImageSource | Sequence[Image | ImageSource] | None" = None,
        instruction: str | None = None,
        id: str | None = None,
    ) -> "Item":
        """An item with its images first and then its text, the field's order.

        A blank text counts as no text.

        Raises:
          MarvelError: neither a text nor an image is given.
        """
        several: Sequence[Image | ImageSource] = ()
        if image is not None:
            several = image if isinstance(image, list | tuple) else (cast("ImageSource", image),)
        images: list[Part] = [one if isinstance(one, Image) else Image(one) for one in several]
        texts: list[Part] = [text] if text is not None and text.strip() else []
        return cls(parts=(*images, *texts), instruction=instruction, id=id)

    @property
    def images(self) -> tuple[Image, ...]:
        """The images among the parts, in order."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def modality(self) -> str:
        """`text`, `image` or `image,text`, in M-BEIR's words."""
        count = len(self.images)
        if count == 0:
            return "text"
        return "image" if count == len(self.parts) else "image,text"

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
