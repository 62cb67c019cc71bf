"""The batch contract: items packed into rows of one shape, and what the loss reads beside them."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data.images import widen
from marvel_jax.data.processor import EncodedItem
from marvel_jax.errors import MarvelError

Array = Any  # numpy on the host, jax on the device


class Rows(NamedTuple):
    """R rows of one shape: exactly what the model reads.

    S tokens, P patches of C uint8 values: of one frame, or of two in rows that hold video. Segments
    tell a row's items apart and patch segments its pictures (images, and a video's frames two by
    two); both count from 1, 0 is padding. `vision_index` is row-local, so that placing
    visual tokens needs no communication.
    """

    tokens: Array  # [R, S] int32
    positions: Array  # [R, S, 3] int32
    segments: Array  # [R, S] int32
    pooled: Array  # [R, S] bool
    patches: Array  # [R, P, C] uint8
    patch_hw: Array  # [R, P, 2] int32
    patch_segments: Array  # [R, P] int32
    vision_index: Array  # [R, S] int32: merged token of this row, -1 = text


class Batch(NamedTuple):
    """Rows, and what the loss reads. Leading axes are shards * (size per shard).

    A shard has b queries and c = b * (P + H + K) candidates: P labelled positives, H hard
    negatives and K of the teacher's list of its first query, of its second, and so on. Slots are
    row * G + segment - 1 within the shard's own rows. `positive_ids` holds every known positive of
    the query that is among the candidates of the global batch, so that none counts as a negative.
    """

    rows: Rows
    item_key: Array  # [R, G, 2] uint32: `item_key` of each segment's item, 0 = none
    query_slot: Array  # [B] int32
    candidate_slot: Array  # [C] int32, 0 where invalid
    candidate_id: Array  # [C, 2] uint32: its item key, 0 where invalid
    candidate_query: Array  # [C] int32: which of the shard's queries brought it
    positive_ids: Array  # [B, M, 2] uint32, 0 where invalid
    positive_valid: Array  # [B, M] bool
    own_positive: Array  # [B, P] int32: the labels among the shard's candidates, -1 = none
    query_valid: Array  # [B] bool
    candidate_valid: Array  # [C] bool
    lists: Any = None  # `data.taught.ListScores`, with distillation
    texts: Any = None  # `data.retention.TextRows`, with retention


@dataclass(frozen=True)
class RowShape:
    """The size of a row: tokens (S), patches (P; 0 for text only) and items (G)."""

    tokens: int
    patches: int
    items: int

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.items < 1 or self.patches < 0:
            raise MarvelError(
                f"{self}: a row needs at least one token and one item, and patches of 0 or more."
            )


def item_key(kind: str, identifier: str) -> np.ndarray:
    """The name, uint32 [2], of a "query" or a "candidate": both may have the same id."""
    return id_hash(f"{kind}:{identifier}")


def id_hash(identifier: str) -> np.ndarray:
    """64 bits of an id as uint32 [2] (BLAKE2b), the same on every machine."""
    return np.frombuffer(hashlib.blake2b(identifier.encode(), digest_size=8).digest(), "<u4")


def pack(
    lengths: np.ndarray, shape: RowShape, *, names: Sequence[str] | None = None
) -> list[list[int]]:
    """Places items of (tokens, patches) [N, 2] into rows; returns the item indices of each row.

    A row begins with the largest item that is left, and then always takes the one that leaves the
    least of it free: the norm-based greedy of Panigrahy et al., "Heuristics for Vector Bin
    Packing" (2011), which fills tokens and patches together where first-fit fills one of them.
    `names` are for messages.

    Raises:
      MarvelError: an item is larger than a row; the message names it and both sizes.
    """
    lengths = np.asarray(lengths, np.int64).reshape(-1, 2)
    _refuse_oversized(lengths, shape, names)
    left = _SizesLeft(lengths, shape)
    rows: list[list[int]] = []
    placed = 0
    while placed < len(lengths):
        tokens, patches = shape.tokens, shape.patches
        row: list[int] = []
        size = left.largest()
        while size is not None:
            row.append(left.take(size))
            tokens -= int(left.tokens[size])
            patches -= int(left.patches[size])
            size = left.best_fit(tokens, patches) if len(row) < shape.items else None
        placed += len(row)
        rows.append(row)
    return rows


class _SizesLeft:
    """The items that wait to be packed, by size: many have the same."""

    def __init__(self, lengths: np.ndarray, shape: RowShape) -> None:
        # Sums of integers and no matrix product: every machine has to find the same placement.
        room = np.array([shape.tokens, max(shape.patches, 1)], np.float64)
        demand = lengths.sum(axis=0) / room
        weight = demand / max(demand.sum(), 1e-9)
        sizes, of_item, counts = np.unique(lengths, axis=0, return_inverse=True, return_counts=True)
        share = sizes / room * weight
        order = np.argsort(-(share[:, 0] + share[:, 1]), kind="stable")
        self._items = np.argsort(of_item.ravel(), kind="stable").tolist()
        self._next = (np.cumsum(counts) - counts)[order]
        self._count = counts[order]
        self.tokens, self.patches = sizes[order].T.copy()
        # |free - size|^2, weighted, without the part that is the same for all sizes.
        square = share * sizes / room
        self._square = (square[:, 0] + square[:, 1])[order]
        self._slope = (2 * share / room)[order].T.copy()
        self._gone = 0

    def largest(self) -> int | None:
        """The size that decreases first, or None where none is left."""
        self._forget()
        return 0 if len(self._count) else None

    def best_fit(self, tokens: int, patches: int) -> int | None:
        """The size that leaves the least of this room, or None where none fits."""
        rest = self._square - self._slope[0] * tokens - self._slope[1] * patches
        rest[(self.tokens > tokens) | (self.patches > patches) | (self._count == 0)] = np.inf
        best = int(rest.argmin())
        return best if rest[best] < np.inf else None

    def take(self, size: int) -> int:
        """One item of a size."""
        item = self._items[self._next[size]]
        self._next[size] += 1
        self._count[size] -= 1
        self._gone += self._count[size] == 0
        return int(item)

    def _forget(self) -> None:
        """Drops sizes without items when they are many, or when they stand in front."""
        if len(self._count) and (self._count[0] == 0 or 4 * self._gone > len(self._count)):
            here = self._count > 0
            self._next, self._count = self._next[here], self._count[here]
            self.tokens, self.patches = self.tokens[here], self.patches[here]
            self._square, self._slope = self._square[here], self._slope[:, here]
            self._gone = 0


def _refuse_oversized(lengths: np.ndarray, shape: RowShape, names: Sequence[str] | None) -> None:
    oversized = np.flatnonzero((lengths[:, 0] > shape.tokens) | (lengths[:, 1] > shape.patches))
    if not len(oversized):
        return
    worst = int(oversized[0])
    more = f" (and {len(oversized) - 1} more)" if len(oversized) > 1 else ""
    tokens, patches = lengths[worst].tolist()
    name = names[worst] if names is not None else f"number {worst}"
    raise MarvelError(
        f"Item {name}{more} has {tokens} tokens and {patches} patches, but a row holds "
        f"{shape.tokens} tokens and {shape.patches} patches: enlarge the rows, or lower "
        "max_pixels or max_text_tokens."
    )


def build_rows(
    items: Sequence[EncodedItem],
    placement: Sequence[Sequence[int]],
    shape: RowShape,
    *,
    num_rows: int,
) -> tuple[Rows, np.ndarray]:
    """Writes encoded items into `num_rows` rows as placed; the rest is padding.

    Patches are as wide as the widest item's: an image among video is its frame twice. Returns the
    rows and each item's slot [N] int32 (row * G + segment - 1).

    Raises:
      MarvelError: the placement has more rows than `num_rows`, leaves an item out, places one
        twice, or overfills a row.
    """
    if len(placement) > num_rows:
        raise MarvelError(f"{len(placement)} rows were placed, but only {num_rows} were asked for.")
    if sorted(itertools.chain.from_iterable(placement)) != list(range(len(items))):
        raise MarvelError(f"The placement does not hold each of {len(items)} items exactly once.")
    values = max((item.patches.shape[1] for item in items), default=0)
    rows = _padding(num_rows, shape, values)
    slots = np.zeros(len(items), np.int32)
    for row, members in enumerate(placement):
        if len(members) > shape.items:
            raise MarvelError(f"Row {row} holds {len(members)} items: at most {shape.items} fit.")
        token = patch = image = merged = 0
        for segment, index in enumerate(members, start=1):
            item = items[index]
            tokens = slice(token, token + len(item.tokens))
            patches = slice(patch, patch + len(item.patches))
            if tokens.stop > shape.tokens or patches.stop > shape.patches:
                raise MarvelError(
                    f"Row {row} overflows at item number {index}: {tokens.stop} tokens and "
                    f"{patches.stop} patches, but {shape} holds fewer. Did the data change after "
                    "its lengths were indexed?"
                )
            slots[index] = row * shape.items + segment - 1
            rows.tokens[row, tokens] = item.tokens
            rows.positions[row, tokens] = item.positions
            rows.segments[row, tokens] = segment
            rows.pooled[row, tokens] = item.pooled
            token = tokens.stop
            if len(item.patches) == 0:
                continue
            rows.vision_index[row, tokens] = np.where(
                item.vision_index >= 0, item.vision_index + merged, -1
            )
            rows.patches[row, patches] = widen(item.patches, values)
            rows.patch_hw[row, patches] = item.patch_hw
            rows.patch_segments[row, patches] = item.patch_image + image + 1
            patch = patches.stop
            image += int(item.patch_image[-1]) + 1
            merged += int(item.vision_index.max()) + 1
    return rows, slots


def _padding(num_rows: int, shape: RowShape, values: int) -> Rows:
    tokens, patches = (num_rows, shape.tokens), (num_rows, shape.patches)
    return Rows(
        tokens=np.zeros(tokens, np.int32),
        positions=np.zeros((*tokens, 3), np.int32),
        segments=np.zeros(tokens, np.int32),
        pooled=np.zeros(tokens, bool),
        patches=np.zeros((*patches, values), np.uint8),
        patch_hw=np.zeros((*patches, 2), np.int32),
        patch_segments=np.zeros(patches, np.int32),
        vision_index=np.full(tokens, -1, np.int32),
    )


def row_batches(
    lengths: np.ndarray,
    shape: RowShape,
    *,
    num_rows: int,
    window: int = 1024,
    names: Sequence[str] | None = None,
) -> Iterator[list[list[int]]]:
    """Groups of `num_rows` packed rows that hold every item once, for plain encoding.

    Takes (tokens, patches) [N, 2] and yields placements of item indices; only the last group may
    have fewer rows. Items go through in windows, so that a reader of the items stays near its
    place, and what would leave a group partly filled is packed again with the next window.
    """
    lengths = np.asarray(lengths, np.int64).reshape(-1, 2)
    _refuse_oversized(lengths, shape, names)
    waiting = np.zeros(0, np.int64)
    for start in range(0, len(lengths), window):
        stop = min(start + window, len(lengths))
        members = np.concatenate([waiting, np.arange(start, stop)])
        rows = [members[row].tolist() for row in pack(lengths[members], shape)]
        last = stop == len(lengths)
        whole = len(rows) if last else len(rows) // num_rows * num_rows
        for first in range(0, whole, num_rows):
            yield rows[first : min(first + num_rows, whole)]
        waiting = np.array(sorted(itertools.chain.from_iterable(rows[whole:])), np.int64)
