"""A step's pairs dealt to the data shards and packed, and the few sizes that batches come in."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marvel_jax.data.batch import RowShape, pack

MAX_SHAPES = 6
_ROUNDING = 0.01  # of the rows: as much padding as is not worth another compilation


class ShardPlan(NamedTuple):
    """One data shard's part: which of the batch's pairs, and where their items go.

    Placement counts the shard's queries first (0..b-1), then the candidates that are there,
    query by query.
    """

    members: np.ndarray  # [b] int32
    placement: list[list[int]]


class BatchShape(NamedTuple):
    """What a compiled step is made for."""

    num_rows: int  # of each shard
    known_positives: int  # M


def place_shards(
    queries: np.ndarray,
    candidates: np.ndarray,
    present: np.ndarray,
    *,
    row: RowShape,
    num_shards: int,
) -> tuple[ShardPlan, ...]:
    """Deals the pairs to the shards so that all carry about the same, and packs each.

    Takes (tokens, patches) of queries [B, 2] and of the candidates that each brings [B, K, 2],
    of which only those `present` [B, K] count.
    """
    weight = queries + np.where(present[..., None], candidates, 0).sum(axis=1)
    return tuple(
        ShardPlan(
            members=members.astype(np.int32),
            placement=pack(
                np.concatenate([queries[members], candidates[members][present[members]]]), row
            ),
        )
        for members in _deal(weight, num_shards)
    )


def _deal(weight: np.ndarray, num_shards: int) -> np.ndarray:
    """Deals pairs of (tokens, patches) [B, 2] to shards of the same size: [shards, b].

    The heaviest go first, one to each shard in a round, the heavier one of a round to the shard
    that is the lightest so far, in tokens and patches together.
    """
    share = weight / np.maximum(weight.mean(axis=0), 1e-9)
    rounds = np.argsort(-(share[:, 0] + share[:, 1]), kind="stable").reshape(-1, num_shards)
    dealt = np.empty_like(rounds)
    load = np.zeros((num_shards, 2))
    for number, pairs in enumerate(rounds):
        free = np.ones(num_shards, bool)
        for pair in pairs:
            # The growth of the sum of squares, which is least when all shards are alike.
            growth = load[:, 0] * share[pair, 0] + load[:, 1] * share[pair, 1]
            shard = int(np.where(free, growth, np.inf).argmin())
            free[shard] = False
            dealt[number, shard] = pair
            load[shard] += share[pair]
    return dealt.T


def batch_shapes(
    packed: Sequence[int],
    *,
    sizes: int,
    chunk: int,
    most_rows: int,
    known_positives: int,
    most_known: int,
) -> tuple[BatchShape, ...]:
    """At most six sizes, each larger than the one before, of which the last holds any batch.

    `packed` are the rows that some steps need: up to `sizes` row counts, multiples of `chunk`,
    are chosen for them. A rarer batch, of more rows or of more known positives than
    `known_positives`, is rounded up to one of the larger sizes.
    """
    needed = -(-np.asarray(packed) // chunk) * chunk
    chosen = _choose_sizes(needed, sizes)
    top, width = chosen[-1], min(known_positives, most_known)
    shapes = [BatchShape(size, width) for size in chosen]
    last = BatchShape(-(-most_rows // chunk) * chunk, most_known)
    # First as far above what was seen as that was spread, then by leaps.
    above = [top + max(top - int(needed.min()), chunk), 5 * top // 4, 2 * top, 4 * top]
    for rows in above[: MAX_SHAPES - len(chosen) - 1]:
        rows = -(-rows // chunk) * chunk
        width = min(2 * width, most_known)
        if shapes[-1].num_rows < rows < last.num_rows:
            shapes.append(BatchShape(rows, width))
    return tuple(shapes) if shapes[-1] == last else (*shapes, last)


def _choose_sizes(needed: np.ndarray, most: int) -> list[int]:
    """The fewest of the counts to round up to that pad little, at most `most` of them."""
    values, times = np.unique(needed, return_counts=True)
    for count in range(1, min(most, len(values)) + 1):
        choices = itertools.combinations(range(len(values) - 1), count - 1)
        ends = np.array([(*choice, len(values) - 1) for choice in choices])
        first_not_below = (np.arange(len(values))[:, None] > ends[:, None, :]).sum(axis=-1)
        rounded = values[np.take_along_axis(ends, first_not_below, axis=1)]
        padding = (times * (rounded - values)).sum(axis=1)
        best = int(padding.argmin())
        if padding[best] <= _ROUNDING * (times * values).sum():
            break
    return [int(size) for size in values[ends[best]]]
