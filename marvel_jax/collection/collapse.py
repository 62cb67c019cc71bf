"""Near-duplicates among the hits of a search, folded under the best of them.

Two hits are copies of each other where

- they show the same: the same texts and the same bytes of pictures; or
- both are pictures (with the same text, if any) whose vectors have a cosine of `SAME_PICTURE` or
  more: one picture saved again, in another size or format.

Texts of different words are never copies, however near: "in 2019" and "in 2020" are not one
answer. Nor are a picture and its name. Only the hits at hand are compared, so it costs nothing that
grows with the collection.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

# Emoji saved again as JPEG, or smaller, were at 0.9999 and more of themselves under a model that
# was trained on them, and no other of 56 was nearer than 0.99.
SAME_PICTURE = 0.999


class Group(NamedTuple):
    """Places in the list of hits: the first of its copies, and the others."""

    first: int
    copies: tuple[int, ...]


class Shown(NamedTuple):
    """What of an entry decides whether it is a copy."""

    content: str
    texts: tuple[str, ...]
    pictured: bool


def shown_of(record: Mapping[str, Any]) -> Shown:
    """Of a line of `entries.jsonl`."""
    texts = tuple(part for part in record["parts"] if isinstance(part, str))
    return Shown(record["content"], texts, len(texts) < len(record["parts"]))


def fold_copies(
    hits: Iterable[tuple[Shown, np.ndarray]], *, most: int | None = None
) -> list[Group]:
    """Groups of copies in the order of their first.

    Every hit is compared with the first of each group before it, and joins the first group that it
    is a copy of. Memory grows with the groups and not with the hits.

    Args:
      hits: what each shows, and its unit vector [D].
      most: groups to make; what is no copy of theirs is passed over.
    """
    firsts: list[_First] = []
    groups: dict[int, list[int]] = {}
    for place, (shown, vector) in enumerate(hits):
        wide = vector.astype(np.float64)
        for first in firsts:
            if _are_copies(first, shown, wide):
                groups[first.place].append(place)
                break
        else:
            if most is None or len(firsts) < most:
                firsts.append(_First(place, shown, wide))
                groups[place] = []
    return [Group(first, tuple(copies)) for first, copies in groups.items()]


class _First(NamedTuple):
    place: int
    shown: Shown
    vector: np.ndarray


def _are_copies(first: _First, other: Shown, vector: np.ndarray) -> bool:
    one = first.shown
    if one.content == other.content:
        return True
    if not (one.pictured and other.pictured and one.texts == other.texts):
        return False
    return float(first.vector @ vector) >= SAME_PICTURE
