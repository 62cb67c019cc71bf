"""Queries that would bring a copy into a batch are moved to another batch of the same epoch."""

from collections.abc import Iterable, Sequence

import numpy as np

from marvel_jax.data.lengths import LengthsIndex

# How far ahead of a batch is looked for queries that bring no copy, and how many other batches
# are tried at the end for those that found no place.
_LOOK_AHEAD, _LEAST_AHEAD, _TRIED = 4, 1024, 256


class Copies:
    """What each query would bring twice: keys that another query of the source brings too.

    A query brings itself (sources repeat the queries of small sets) and, if it has no more
    positives than it brings, all of those. Queries that can choose choose later
    (`choose_distinct`).
    """

    def __init__(self, index: LengthsIndex, *, labels: int) -> None:
        counts = np.diff(index.offsets)
        fixed = counts <= labels
        owner = np.concatenate(
            [np.arange(len(counts)), np.repeat(np.arange(len(counts)), np.where(fixed, counts, 0))]
        )
        brought = index.positives[np.repeat(fixed, counts)]
        pairs = np.concatenate([index.query_keys, index.candidate_keys[brought]])
        _, key, times = np.unique(
            np.ascontiguousarray(pairs).view(np.uint64).ravel(),
            return_inverse=True,
            return_counts=True,
        )
        several = times[key] > 1
        order = np.argsort(owner[several], kind="stable")
        self._keys = key[several][order]
        self._ends = np.searchsorted(owner[several][order], np.arange(len(counts) + 1))

    def of(self, query: int) -> list[int]:
        """The keys of a query, none for most."""
        found: list[int] = self._keys[self._ends[query] : self._ends[query + 1]].tolist()
        return found

    def any(self, queries: np.ndarray) -> bool:
        """Whether two of the queries would bring the same."""
        lengths = (self._ends[queries + 1] - self._ends[queries]).astype(np.int64)
        first = np.repeat(self._ends[queries], lengths)
        within = np.arange(len(first)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        keys = self._keys[first + within]
        return len(np.unique(keys)) < len(keys)

    def without_copies(self, queries: Iterable[int], count: int) -> list[int]:
        """The first `count` of the queries that bring no copy; if too few, then others."""
        used: set[int] = set()
        kept: list[int] = []
        passed: list[int] = []
        for query in queries:
            if len(kept) == count:
                break
            keys = self.of(query)
            if used.intersection(keys):
                passed.append(query)
            else:
                kept.append(query)
                used.update(keys)
        return kept + passed[: count - len(kept)]


def spread(
    order: np.ndarray, sizes: Sequence[int], copies: Copies, *, begun: Sequence[int]
) -> np.ndarray:
    """The queries in an order whose batches, of these sizes, hold no copies where that can be.

    The first batch has the queries `begun` already, none of which may come again. What stands
    early in `order` stays early.
    """
    batches = _fill(order.tolist(), sizes, copies, begun)
    _exchange(batches, copies, set(begun))
    return np.array([query for batch in batches for query in batch], np.int64)


def _fill(
    order: list[int], sizes: Sequence[int], copies: Copies, begun: Sequence[int]
) -> list[list[int]]:
    """Batch by batch, each taking those that wait and then the next that bring no copy."""
    waiting: list[int] = []
    batches: list[list[int]] = []
    place = 0
    used = {key for query in begun for key in copies.of(query)}
    barred = set(begun)
    for size in sizes:
        batch: list[int] = []
        still: list[int] = []
        for query in waiting:
            keys = copies.of(query)
            if len(batch) < size and query not in barred and not used.intersection(keys):
                batch.append(query)
                used.update(keys)
            else:
                still.append(query)
        limit = min(len(order), place + _LOOK_AHEAD * size + _LEAST_AHEAD)
        while len(batch) < size and place < limit:
            query = order[place]
            place += 1
            keys = copies.of(query)
            if query in barred or used.intersection(keys):
                still.append(query)
            else:
                batch.append(query)
                used.update(keys)
        while len(batch) < size:  # nothing else is near
            free = next((i for i, query in enumerate(still) if query not in barred), None)
            if free is not None:
                batch.append(still.pop(free))
            else:
                batch.append(order[place])
                place += 1
        waiting = still
        batches.append(batch)
        used, barred = set(), set()
    return batches


def _exchange(batches: list[list[int]], copies: Copies, begun: set[int]) -> None:
    """Queries that bring a copy change places with some of other batches, where both then fit."""
    held = [[key for query in batch for key in copies.of(query)] for batch in batches]
    if batches:
        held[0] += [key for query in begun for key in copies.of(query)]
    for number, batch in enumerate(batches):
        if len(held[number]) == len(set(held[number])):
            continue
        for place, query in enumerate(batch):
            keys = copies.of(query)
            if all(held[number].count(key) == 1 for key in keys):
                continue
            rest = set(_less(held[number], keys))
            for other in [n for n in range(1, len(batches)) if n != number][:_TRIED]:
                if set(held[other]).intersection(keys):
                    continue
                fit = next(
                    (
                        (at, one)
                        for at, one in enumerate(batches[other])
                        if not rest.intersection(copies.of(one))
                        and not (number == 0 and one in begun)
                    ),
                    None,
                )
                if fit is not None:
                    at, one = fit
                    batches[other][at], batch[place] = query, one
                    held[other] = [*_less(held[other], copies.of(one)), *keys]
                    held[number] = [*_less(held[number], keys), *copies.of(one)]
                    break


def _less(keys: list[int], taken: list[int]) -> list[int]:
    left = list(keys)
    for key in taken:
        left.remove(key)
    return left


def choose_distinct(
    drawn: np.ndarray, queries: np.ndarray, *, positives: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    """Drawn positives [B, P] with those that another query brought changed for others of its own.

    A query that can choose takes the next of its positives that nobody has; if all are taken, it
    keeps what it drew.
    """
    labels = drawn.shape[1]
    can_choose = np.diff(offsets)[queries] > labels
    taken = set(drawn[~can_choose].ravel().tolist())
    changed = drawn.copy()
    for row in np.flatnonzero(can_choose).tolist():
        own = positives[offsets[queries[row]] : offsets[queries[row] + 1]].tolist()
        have = drawn[row].tolist()
        for column, place in enumerate(have):
            if place in taken:
                start = own.index(place)
                free = (one for one in own[start:] + own[:start] if one not in taken)
                have[column] = next((one for one in free if one not in have), place)
            taken.add(have[column])
        changed[row] = have
    return changed
