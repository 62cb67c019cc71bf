"""Items become the rows of one forward pass: measured by their headers, decoded, packed, counted.

What cannot be decoded is left out of its rows and told; the others keep their vectors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marvel_jax.data.batch import Rows, RowShape, build_rows
from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Item, Video
from marvel_jax.data.processor import EncodedItem, Processor
from marvel_jax.retrieval.item_content import content_key

Read = Callable[[int], Item]


class Measured(NamedTuple):
    """An item by its headers; `content` is None where it is to be nobody's copy."""

    length: tuple[int, int]  # tokens, patches
    video: bool
    content: bytes | None
    error: ImageError | None


class Call(NamedTuple):
    """One forward pass: rows, and the items in them."""

    rows: Rows
    places: np.ndarray  # [n] int64, among all items
    slots: np.ndarray  # [n] int32
    items_per_row: int
    failed: list[tuple[int, ImageError]]
    tokens: int
    patches: int


@dataclass
class Tally:
    """What encoding has done. A copy of an item counts as an item; its tokens are not computed."""

    items: int = 0
    copies: int = 0
    tokens: int = 0
    token_slots: int = 0
    patches: int = 0
    patch_slots: int = 0

    def add(self, call: Call, copies: np.ndarray) -> None:
        """Counts a call; `copies` [N] says how many items each stands for."""
        if not len(call.places):
            return
        held = int(copies[call.places].sum())
        self.items += held
        self.copies += held - len(call.places)
        self.tokens += call.tokens
        self.token_slots += call.rows.tokens.size
        self.patches += call.patches
        self.patch_slots += call.rows.patch_segments.size

    def reuse(self, copies: int) -> None:
        """Counts items whose vectors were there already."""
        self.items += copies
        self.copies += copies

    @property
    def token_fill(self) -> float:
        """The share of real tokens among all that were computed; 1 before there is any."""
        return self.tokens / self.token_slots if self.token_slots else 1.0


def measure(read: Read, processor: Processor, place: int) -> Measured:
    """An item's length and content."""
    item = read(place)
    try:
        length = processor.lengths(item)
    except ImageError as error:
        return Measured((0, 0), False, None, error)
    video = any(isinstance(part, Video) for part in item.parts)
    try:
        return Measured(length, video, content_key(item), None)
    except (OSError, ImageError):  # went away meanwhile, or is broken: who decodes it says so
        return Measured(length, video, None, None)


def prepare(
    read: Read,
    processor: Processor,
    placement: Sequence[Sequence[int]],
    *,
    group: np.ndarray,
    shape: RowShape,
    num_rows: int,
) -> Call:
    """Decodes and packs the items at the places `group` [N] as `placement` says."""
    encoded: list[EncodedItem] = []
    places: list[int] = []
    local: list[list[int]] = []
    failed: list[tuple[int, ImageError]] = []
    for row in placement:
        kept = []
        for member in row:
            place = int(group[member])
            try:
                encoded.append(processor(read(place)))
            except ImageError as error:
                failed.append((place, error))
                continue
            kept.append(len(places))
            places.append(place)
        local.append(kept)
    rows, slots = build_rows(encoded, local, shape, num_rows=num_rows)
    return Call(
        rows,
        np.array(places, np.int64),
        slots,
        shape.items,
        failed,
        sum(len(one.tokens) for one in encoded),
        sum(len(one.patches) for one in encoded),
    )
