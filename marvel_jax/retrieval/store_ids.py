"""The ids of a vector store: found by row, found by name, ordered.

On disk a shard's ids are its UTF-8 bytes, each id closed by a NUL, which no id may hold. In memory
stand each id's first bytes, of one width for all, their order, and where each ends on disk; one
very long id costs its own bytes, not its width for every row.
"""

import bisect
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.lazy import LazySequence

_PREFIX = 48  # bytes of an id in memory; M-BEIR's ids have at most 10


def encode_ids(ids: Sequence[str], *, where: object) -> list[bytes]:
    """The ids as UTF-8.

    Raises:
      MarvelError: an id is empty, holds a NUL, or half of a surrogate pair; `where` is named.
    """
    found = []
    for name in ids:
        try:
            encoded = name.encode()
        except UnicodeEncodeError as error:
            raise MarvelError(f"{where}: {name!r} cannot be an id: {error.reason}.") from error
        if not encoded or b"\0" in encoded:
            raise MarvelError(f"{where}: {name!r} cannot be an id: empty, or with a NUL.")
        found.append(encoded)
    return found


def ids_blob(ids: Sequence[bytes]) -> np.ndarray:
    """uint8: encoded ids as they lie on disk."""
    return np.frombuffer(b"".join(name + b"\0" for name in ids), np.uint8)


class Ids(LazySequence[str]):
    """The ids of a store in its order."""

    def __init__(self, blobs: Sequence[np.ndarray], *, where: object) -> None:
        """Reads and orders the ids of the shards' `ids_blob`s.

        Raises:
          MarvelError: an id occurs twice; `where` is named.
        """
        self._where = where
        self._blobs = blobs
        self._ends = [_ends(blob) for blob in blobs]
        self._starts = np.cumsum([0] + [len(ends) for ends in self._ends])
        longest = max((int(np.diff(ends, prepend=-1).max()) - 1 for ends in self._ends), default=1)
        self._cut = longest > _PREFIX
        self._keys = np.empty(len(self), f"S{min(longest, _PREFIX)}")
        for start, blob in zip(self._starts[:-1], blobs, strict=True):
            names = blob.tobytes().split(b"\0")[:-1]
            self._keys[start : start + len(names)] = names
        # UTF-8 bytes sort as their strings do.
        self._order = np.argsort(self._keys, kind="stable").astype(np.int32)
        self._settle_equal_keys()

    def __len__(self) -> int:
        return int(self._starts[-1])

    def make(self, index: int) -> str:
        """The id of a row."""
        return self._bytes(index).decode()

    def __iter__(self) -> Iterator[str]:
        for blob in self._blobs:
            for name in blob.tobytes().split(b"\0")[:-1]:
                yield name.decode()

    def rank(self) -> np.ndarray:
        """int32 [N]: the place of each row's id among the sorted ids."""
        rank = np.empty(len(self), np.int32)
        rank[self._order] = np.arange(len(self), dtype=np.int32)
        return rank

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """int64 [n]: the rows of these ids; -1 for an id that is not there."""
        if not len(ids):
            return np.empty(0, np.int64)
        asked = [name.encode(errors="surrogatepass") for name in ids]
        lengths = np.array([len(name) for name in asked])
        keys = np.array(asked, dtype=self._keys.dtype)
        places = np.searchsorted(self._keys, keys, sorter=self._order)
        rows = self._order[np.minimum(places, len(self) - 1)].astype(np.int64)
        width = self._keys.itemsize
        rows[(self._keys[rows] != keys) | (lengths > width)] = -1
        if self._cut:
            for place in np.flatnonzero(lengths >= width).tolist():
                rows[place] = self._row_of_long(asked[place], first=int(places[place]))
        # numpy's bytes end at their last byte that is no NUL: "a" would be found as "a\0".
        for place, name in enumerate(asked):
            if b"\0" in name:
                rows[place] = -1
        return rows

    def _row_of_long(self, name: bytes, *, first: int) -> int:
        last = np.searchsorted(
            self._keys, np.array(name, self._keys.dtype), side="right", sorter=self._order
        )
        same: list[int] = self._order[first:last].tolist()
        place = bisect.bisect_left(same, name, key=self._bytes)
        found = place < len(same) and self._bytes(same[place]) == name
        return same[place] if found else -1

    def _bytes(self, row: int) -> bytes:
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        within = row - self._starts[shard]
        ends = self._ends[shard]
        start = int(ends[within - 1]) + 1 if within else 0
        return self._blobs[shard][start : int(ends[within])].tobytes()

    def _settle_equal_keys(self) -> None:
        """Orders ids whose first bytes are equal by their whole bytes; refuses those twice."""
        ordered = self._keys[self._order]
        equal = ordered[1:] == ordered[:-1]
        if not equal.any():
            return
        repeated: list[tuple[int, int]] = []
        bounds = np.flatnonzero(np.diff(np.concatenate([[False], equal, [False]]).astype(np.int8)))
        for first, last in bounds.reshape(-1, 2).tolist():
            run = sorted(self._order[first : last + 1].tolist(), key=self._bytes)
            self._order[first : last + 1] = run
            repeated += [
                (one, other)
                for one, other in itertools.pairwise(run)
                if self._bytes(one) == self._bytes(other)
            ]
        if repeated:
            one, other = repeated[0]
            raise MarvelError(
                f"{self._where}: the id {self[one]!r} occurs twice (rows {one} and {other}); "
                f"{len(repeated)} ids in all are repeated. Ids must be unique."
            )


def _ends(blob: np.ndarray) -> np.ndarray:
    ends = np.flatnonzero(blob == 0)
    return ends.astype(np.uint32) if len(blob) < 1 << 32 else ends
