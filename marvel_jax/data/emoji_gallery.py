"""The pictures of the emoji corpus: drawn once, compared pixel by pixel, kept as PNG bytes."""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from marvel_jax.data.emoji_fonts import Painter, Undrawable, encode_png
from marvel_jax.data.emoji_lexicon import Emoji

PICTURE_FOLDER = "mbeir_images/emoji/color"
DRAWING_FOLDER = "mbeir_images/emoji/line"

Progress = Callable[[str, int, int], None]
"""Called with the stage's name, how much of it is done, and how much there is."""


@dataclass(frozen=True)
class Gallery:
    """What the fonts could draw.

    Attributes:
      pictures: PNG bytes of the colour picture, by the emoji's number.
      drawings: PNG bytes of the line drawing, by number; only where there is a picture too.
      twins: for every picture, the numbers of all pictures with the same pixels (itself too).
      undrawn: for each reason, the sequences without a picture.
    """

    pictures: Mapping[int, bytes]
    drawings: Mapping[int, bytes]
    twins: Mapping[int, tuple[int, ...]]
    undrawn: Mapping[str, tuple[str, ...]]


def draw(emoji: Sequence[Emoji], painter: Painter, *, progress: Progress) -> Gallery:
    """Draws every emoji in both typefaces. PNG encoding runs in threads beside the drawing."""
    pictures: dict[int, Future[bytes]] = {}
    drawings: dict[int, Future[bytes]] = {}
    alike: dict[bytes, list[int]] = defaultdict(list)
    undrawn: dict[str, list[str]] = {"apart": [], "missing": []}
    with ThreadPoolExecutor() as encoders:
        for done, one in enumerate(emoji):
            if done % 256 == 0:
                progress("draw", done, len(emoji))
            picture = painter.picture(one.sequence)
            if isinstance(picture, Undrawable):
                undrawn[picture.reason].append(one.sequence)
                continue
            alike[hashlib.blake2b(picture.tobytes()).digest()].append(one.number)
            pictures[one.number] = encoders.submit(encode_png, picture)
            drawing = painter.drawing(one.sequence)
            if not isinstance(drawing, Undrawable):
                drawings[one.number] = encoders.submit(encode_png, drawing)
    progress("draw", len(emoji), len(emoji))
    return Gallery(
        pictures={number: future.result() for number, future in pictures.items()},
        drawings={number: future.result() for number, future in drawings.items()},
        twins={number: tuple(group) for group in alike.values() for number in group},
        undrawn={reason: tuple(sequences) for reason, sequences in undrawn.items()},
    )


def picture_path(one: Emoji) -> str:
    """Where the layout keeps an emoji's colour picture, relative to its root."""
    return f"{PICTURE_FOLDER}/{one.code}.png"


def drawing_path(one: Emoji) -> str:
    """Where the layout keeps an emoji's line drawing, relative to its root."""
    return f"{DRAWING_FOLDER}/{one.code}.png"
