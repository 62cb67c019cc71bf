"""What the shards of an unfinished store hold, by content, so that no shard encodes it again.

Each shard keeps the keys of its rows (`item_content`) until the store is whole. Who encodes a shard
takes what another on disk shows already, vector for vector. Of shards that were encoded at the same
time, the copies are given the vectors of the first when all are there.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.store_writer import Copies, StoreWriter

Record = Mapping[str, Any] | None
Records = Sequence[Record]


class _Shard(NamedTuple):
    """A shard's keys, ordered by their first halves; about 28 bytes a row."""

    version: str  # of its vectors
    halves: np.ndarray  # uint64 [n], rising
    keys: np.ndarray  # uint64 [n, 2]
    rows: np.ndarray  # int32 [n]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """int32 [m]: the row of each of the keys uint64 [m, 2]; -1 where it is not here."""
        if not len(self.halves):
            return np.full(len(keys), -1, np.int32)
        place = np.searchsorted(self.halves, keys[:, 0])
        place[place == len(self.halves)] = 0
        return np.where((self.keys[place] == keys).all(axis=1), self.rows[place], np.int32(-1))


class KnownContent:
    """The vectors of an unfinished store, found by what their items show."""

    def __init__(self, writer: StoreWriter) -> None:
        self._writer = writer
        self._shards: dict[int, _Shard] = {}
        self._sound: dict[tuple[int, str], bool] = {}  # files that were read against their hashes

    def find(
        self, keys: np.ndarray, *, below: int | None = None, records: Records | None = None
    ) -> Copies:
        """Which of the keys uint64 [n, 2] shards on disk hold (below a number), and the vectors.

        Keys of zeros stand for nothing. A key in several shards has the vector of the first.
        `records` are those of the writer, if they were just read.
        """
        found: list[Copies] = []
        sought = np.flatnonzero(keys.any(axis=1))
        records = self._writer.partial.records() if records is None else records
        for number, record in enumerate(records[:below]):
            if not len(sought):
                break
            shard = self._shard(number, record)
            if shard is None:
                continue
            rows = shard.find(keys[sought])
            here = rows >= 0
            stored = self._stored(number, shard, rows[here]) if here.any() else None
            if stored is not None:
                found.append(Copies(sought[here], stored))
                sought = sought[~here]
        if not found:
            return no_copies()
        return Copies(*(np.concatenate(part) for part in zip(*found, strict=True)))

    def settle(self) -> None:
        """Gives every copy the vector of the first, where shards that were encoded at the same
        time have others in the last bit. All shards are on disk, and no other process settles.

        Raises:
          DamagedShardsError: a loss of power undid shards that hold copies.
          MarvelError: the disk is full; all shards are still there.
        """
        records: list[Record] = [*self._writer.partial.records()]
        for number, record in enumerate(records):
            shard, keys = self._shard(number, record), self._contents(number)
            if shard is None or keys is None:
                continue
            first = self.find(keys, below=number, records=records)
            own = self._stored(number, shard, first.rows) if len(first.rows) else None
            if own is None:
                continue
            other = (own != first.stored).any(axis=1)
            if other.any():
                self._writer.partial.change(number, first.rows[other], first.stored[other])
                records[number] = self._writer.partial.record(number)
        if not all(self._sound.values()):
            self._writer.discard_damaged()

    def _shard(self, number: int, record: Record) -> _Shard | None:
        if record is None or not record["rows"]:
            return None
        known = self._shards.get(number)
        if known is not None and known.version == record["vectors_hash"]:
            return known
        keys = self._contents(number)
        if keys is None or len(keys) != record["rows"]:
            return None
        order = np.argsort(keys[:, 0], kind="stable").astype(np.int32)
        ordered = keys[order]
        halves = np.ascontiguousarray(ordered[:, 0])
        found = self._shards[number] = _Shard(record["vectors_hash"], halves, ordered, order)
        return found

    def _contents(self, number: int) -> np.ndarray | None:
        try:
            return self._writer.partial.contents(number)
        except MarvelError:  # damaged by a loss of power: its items are encoded again elsewhere
            return None

    def _stored(self, number: int, shard: _Shard, rows: np.ndarray) -> np.ndarray | None:
        """Stored rows, if they are what was written, and the shard was there all the while."""
        partial = self._writer.partial
        try:
            record = partial.record(number)
            if record is None or record["vectors_hash"] != shard.version:
                return None
            seen = number, shard.version
            if seen not in self._sound:
                self._sound[seen] = partial.is_sound(number, record)
            if not self._sound[seen]:
                return None
            stored = np.asarray(partial.vectors(number)[rows])
        except (MarvelError, OSError, IndexError):
            return None
        # Another process may have discarded it and written other rows, or fewer, meanwhile.
        return stored if partial.record(number) == record else None


def no_copies() -> Copies:
    """Of a shard that shows nothing that is stored elsewhere."""
    return Copies(np.zeros(0, np.int64), np.zeros((0, 0)))


def as_keys(contents: Sequence[bytes | None]) -> np.ndarray:
    """uint64 [N, 2] of content keys; zeros for those that are not known."""
    whole = b"".join(bytes(16) if key is None else key for key in contents)
    return np.frombuffer(whole, "<u8").reshape(-1, 2)
