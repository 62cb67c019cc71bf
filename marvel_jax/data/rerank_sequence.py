"""Parts of a prompt put together: tokens, pictures and M-RoPE positions of the whole sequence."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marvel_jax.data.processor import EncodedItem, mrope_positions


class Part(NamedTuple):
    """A query or a candidate within a prompt: L tokens and its pictures in order.

    `spans` are the places (start, end) of each picture's tokens, `grids` their merged rows and
    columns, `patches` [P, C] uint8 and `patch_hw` [P, 2] int32 theirs.
    """

    tokens: tuple[int, ...]
    spans: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int], ...]
    patches: tuple[np.ndarray, ...]
    patch_hw: tuple[np.ndarray, ...]


class Prompted(NamedTuple):
    """One sequence. `item.pooled` marks the tokens of the reply that a loss covers (none in
    scoring), and the token at place `answer` is the one behind which the answer's first comes.
    """

    item: EncodedItem
    answer: int


class Branched(NamedTuple):
    """A prefix that stands once and its continuations, none of which sees another.

    `branches` [L] is 0 in the prefix and counts continuations from 1; positions go on from the
    prefix in each. `answers` [K] are the places of the tokens before the answers.
    """

    item: EncodedItem
    branches: np.ndarray
    answers: np.ndarray


Piece = Part | tuple[int, ...]
"""A part, or plain tokens between parts."""


def join(pieces: Sequence[Piece], *, supervised: Sequence[bool], values: int) -> EncodedItem:
    """One sequence of some pieces; `values` are those of a patch.

    `supervised` says of the last tokens which of them a loss covers.
    """
    tokens: list[int] = []
    parts: list[Part] = []
    spans: list[tuple[int, int]] = []
    for piece in pieces:
        if isinstance(piece, Part):
            spans += [(len(tokens) + first, len(tokens) + end) for first, end in piece.spans]
            parts.append(piece)
            tokens += piece.tokens
        else:
            tokens += piece
    grids = [grid for part in parts for grid in part.grids]
    patches = [one for part in parts for one in part.patches]
    places = [one for part in parts for one in part.patch_hw]
    pooled = np.zeros(len(tokens), bool)
    pooled[len(tokens) - len(supervised) :] = supervised
    vision_index = np.full(len(tokens), -1, np.int32)
    inside = [np.arange(first, end) for first, end in spans]
    if inside:
        vision_index[np.concatenate(inside)] = np.arange(sum(map(len, inside)))
    return EncodedItem(
        tokens=np.array(tokens, np.int32),
        positions=mrope_positions(len(tokens), spans, grids),
        pooled=pooled,
        patches=np.concatenate(patches) if patches else np.zeros((0, values), np.uint8),
        patch_hw=np.concatenate(places) if places else np.zeros((0, 2), np.int32),
        patch_image=np.repeat(
            np.arange(len(patches), dtype=np.int32), [len(one) for one in patches]
        ),
        vision_index=vision_index,
    )


def branch(pairs: Sequence[Prompted], *, prefix: int, merge_area: int) -> Branched:
    """Sequences whose first `prefix` tokens and their pictures are the same, as one."""
    first = pairs[0].item
    merged = int((first.vision_index[:prefix] >= 0).sum())
    patches = merged * merge_area
    images = int(first.patch_image[:patches].max(initial=-1)) + 1
    items = [_cut(first, slice(0, prefix), slice(0, patches))]
    branches, answers = [np.zeros(prefix, np.int32)], []
    place, seen, shown = prefix, merged, images
    for number, pair in enumerate(pairs, start=1):
        own = pair.item
        cut = _cut(own, slice(prefix, None), slice(patches, None))
        vision_index = np.where(cut.vision_index >= 0, cut.vision_index - merged + seen, -1)
        items.append(
            cut._replace(
                vision_index=vision_index.astype(np.int32),
                patch_image=cut.patch_image - images + shown,
            )
        )
        branches.append(np.full(len(cut.tokens), number, np.int32))
        answers.append(place + pair.answer - prefix)
        place += len(cut.tokens)
        seen += int((cut.vision_index >= 0).sum())
        shown += int(own.patch_image.max(initial=-1)) + 1 - images
    item = EncodedItem(*(np.concatenate(field) for field in zip(*items, strict=True)))
    return Branched(item, np.concatenate(branches), np.array(answers, np.int32))


def _cut(item: EncodedItem, tokens: slice, patches: slice) -> EncodedItem:
    return EncodedItem(
        tokens=item.tokens[tokens],
        positions=item.positions[tokens],
        pooled=item.pooled[tokens],
        patches=item.patches[patches],
        patch_hw=item.patch_hw[patches],
        patch_image=item.patch_image[patches],
        vision_index=item.vision_index[tokens],
    )
