"""A corpus becomes a vector store shard by shard, by one process or by several, and resumes.

Process i of n encodes the shards i, n + i, 2n + i and so on into one folder; nobody waits for
anybody, and who finds all shards there makes the store whole. What is written stays through a
kill. What a shard on disk shows already is not encoded again, and copies have the same vector, bit
for bit. Items with pictures that cannot be used are listed beside the store,
`STORE.failures.jsonl`.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.files import write_jsonl
from marvel_jax.lazy import LazySequence
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode_calls import Tally
from marvel_jax.retrieval.encode_known import KnownContent, as_keys, no_copies
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import StoreType
from marvel_jax.retrieval.store_writer import Copies, DamagedShardsError, Manifest, StoreWriter

SHARD_ROWS = 16384

_ROUNDS = 3  # of encoding again what a loss of power damaged
_NAMED = 5  # broken items in an error; all are in the file beside the store


class Share(NamedTuple):
    """Which process of how many: process i of n encodes the shards i, n + i, 2n + i and so on."""

    process: int = 0
    processes: int = 1


def encode_share(
    embedder: Embedder,
    read: Callable[[int], tuple[str, Item]],
    count: int,
    path: Path | str,
    *,
    source_hash: str,
    dtype: StoreType = "float32",
    dimension: int | None = None,
    tolerate: int = 0,
    shard_rows: int = SHARD_ROWS,
    batch_tokens: int = 4096,
    share: Share | None = None,
    progress: Callable[[int, int], None] | None = None,
    tally: Tally | None = None,
) -> VectorStore | None:
    """Encodes one process's shards; None while other processes still have shards to write.

    Whoever finds that all shards are there makes the store whole. `read` gives the id and item of
    each number below `count`; `progress` is told of this process's items; `tally` counts tokens.
    All else is as in `encode_candidates`.

    Raises:
      MarvelError: as `encode_candidates`.
    """
    share = Share() if share is None else share
    path, manifest = Path(path), _manifest(embedder, source_hash, dtype, dimension, count)
    if path.exists():
        return _opened(path, embedder, manifest, tolerate)
    try:
        writer = StoreWriter(path, manifest, shard_rows=shard_rows)
    except MarvelError:
        if not path.is_dir():
            raise
        return _opened(path, embedder, manifest, tolerate)  # made whole by another just now
    own = range(share.process, writer.num_shards, share.processes)
    work = _Work(embedder, read, writer, own, tolerate, batch_tokens, progress, tally)
    work.forget_mended()
    for turn in range(_ROUNDS):
        for number in own:  # another process of the same share may be writing, too
            if not writer.has(number) and not work.encode(number):
                return _opened(path, embedder, manifest, tolerate)  # another wrote the same
        try:
            return work.finished()
        except DamagedShardsError as error:
            if turn == _ROUNDS - 1 or not set(error.shards) <= set(own):
                raise
    raise AssertionError("the last round returns or raises")


def failures_path(path: Path | str) -> Path:
    """The list of items that a store lacks, beside it."""
    path = Path(path)
    return path.with_name(f"{path.name}.failures.jsonl")


class _Work:
    """One process's shards of an unfinished store."""

    def __init__(
        self,
        embedder: Embedder,
        read: Callable[[int], tuple[str, Item]],
        writer: StoreWriter,
        own: Sequence[int],
        tolerate: int,
        batch_tokens: int,
        progress: Callable[[int, int], None] | None,
        tally: Tally | None,
    ) -> None:
        self._embedder, self._read, self._writer = embedder, read, writer
        self._own, self._tolerate, self._batch_tokens = own, tolerate, batch_tokens
        self._progress, self._tally = progress, tally
        self._known = KnownContent(writer)

    def forget_mended(self) -> None:
        """Has shards written again whose broken pictures can now be read."""
        for failure in self._writer.failures:
            shard = int(failure["number"]) // self._writer.shard_rows
            if shard in self._own and self._writer.has(shard) and self._is_mended(failure):
                self._writer.discard(shard)

    def encode(self, number: int) -> bool:
        """Encodes a shard; False where another process has made the whole store meanwhile."""
        shard = _Shard(self._read, number * self._writer.shard_rows, self._size(number))
        failures: dict[int, dict[str, Any]] = {}
        keys, copies = np.zeros((len(shard), 2), np.uint64), no_copies()

        def known(contents: Sequence[bytes | None]) -> np.ndarray:
            nonlocal keys, copies
            keys = as_keys(contents)
            copies = self._known.find(keys)
            return np.isin(np.arange(len(shard)), copies.rows)

        def note(place: int, error: ImageError) -> None:
            failures[place] = {
                "id": shard.ids[place],
                "number": shard.start + place,
                "file": error.file,
                "error": error.reason,
            }

        vectors = self._embedder.encode(
            shard,
            batch_tokens=self._batch_tokens,
            progress=self._reporter(),
            on_failure=note,
            known=known,
            tally=self._tally,
        )
        if self._writer.has(number):  # another process of the same share was faster
            return True
        kept = np.setdiff1d(np.arange(len(shard)), list(failures))
        try:
            self._writer.write(
                number,
                [shard.ids[place] for place in kept],
                vectors if len(kept) == len(shard) else vectors[kept],
                failures=[failures[place] for place in sorted(failures)],
                contents=keys[kept],
                copies=Copies(np.searchsorted(kept, copies.rows), copies.stored),
            )
        except MarvelError:
            if not self._writer.path.is_dir():
                raise
            return False
        return True

    def finished(self) -> VectorStore | None:
        """The whole store, or None where shards of other processes are missing.

        Raises:
          DamagedShardsError: some must be encoded again.
          MarvelError: pictures cannot be used, or the disk is full.
        """
        writer, whole = self._writer, False
        try:
            known: list[Any] = writer.failures
            whole = self._is_whole()
            if not writer.path.is_dir():
                return self._closed(known, whole=whole)
        except DamagedShardsError:
            raise
        except (MarvelError, OSError):
            if not writer.path.is_dir():
                if whole and not self._is_whole():  # another process writes a shard again
                    return None
                raise
        return _opened(writer.path, self._embedder, writer.manifest, self._tolerate)

    def _closed(self, known: Sequence[Mapping[str, Any]], *, whole: bool) -> VectorStore | None:
        """Of a process whose shards are done: the store, if all are, or what it lacks told."""
        writer, tolerate = self._writer, self._tolerate
        mine = [one for one in known if int(one["number"]) // writer.shard_rows in self._own]
        told = known if whole else mine
        if whole or mine:
            _list_failures(writer.path, known)
        if len(told) > tolerate:
            others = [one for one in known if one not in mine] if whole else []
            if any(self._is_mended(one) for one in others):
                return None  # whose shard it is encodes it again
            raise MarvelError(_complaint(writer.path, told, writer.manifest.count, tolerate))
        if not whole:
            return None
        with writer.partial.alone():
            if writer.path.is_dir():  # another process was faster
                return _opened(writer.path, self._embedder, writer.manifest, tolerate)
            self._known.settle()
            return writer.finish(tolerated=bool(known))

    def _is_whole(self) -> bool:
        return all(self._writer.has(number) for number in range(self._writer.num_shards))

    def _is_mended(self, failure: Mapping[str, Any]) -> bool:
        try:
            self._embedder.processor(self._read(int(failure["number"]))[1])
        except ImageError:
            return False
        return True

    def _size(self, number: int) -> int:
        rows = self._writer.shard_rows
        return min(rows, self._writer.manifest.count - number * rows)

    def _reporter(self) -> Callable[[int, int], None]:
        """Tells of all items of this process, where a shard's are told."""
        progress = self._progress
        total = sum(map(self._size, self._own))
        before = sum(self._size(number) for number in self._own if self._writer.has(number))

        def report(fresh: int, _: int) -> None:
            if progress is not None:
                progress(before + fresh, total)

        return report


class _Shard(LazySequence[Item]):
    """The items of a shard, read when they are asked for and not kept; their ids are."""

    def __init__(self, read: Callable[[int], tuple[str, Item]], start: int, size: int) -> None:
        self._read, self.start = read, start
        self.ids = [""] * size

    def __len__(self) -> int:
        return len(self.ids)

    def make(self, index: int) -> Item:
        """The item at this place; its id is noted."""
        self.ids[index], item = self._read(self.start + index)
        return item


def _manifest(
    embedder: Embedder, source_hash: str, dtype: StoreType, dimension: int | None, count: int
) -> Manifest:
    fields = {**embedder.manifest_fields(), "source_hash": source_hash, "dtype": dtype}
    if dimension is not None and dimension != embedder.dimension:
        if not 1 <= dimension < embedder.dimension:
            raise MarvelError(
                f"dimension={dimension}: the model's vectors have {embedder.dimension} numbers, of "
                "which the first 1 or more are kept."
            )
        fields |= {"dimension": dimension, "full_dimension": embedder.dimension}
    return Manifest(**fields, count=count)


def _opened(path: Path, embedder: Embedder, wanted: Manifest, tolerate: int) -> VectorStore:
    """A store that is there, if it is what was asked for."""
    store = VectorStore.open(path)
    store.require(**embedder.manifest_fields(), source_hash=wanted.source_hash, dtype=wanted.dtype)
    if store.dimension != wanted.dimension:
        raise MarvelError(
            f"{path}: this vector store has dimension={store.dimension}, but "
            f"dimension={wanted.dimension} was asked for: choose another folder, or make one of "
            "the other with `marvel convert`."
        )
    lacking = store.manifest.failures
    if lacking > tolerate:
        raise MarvelError(
            f"{path} lacks {lacking} items whose pictures could not be used, and "
            f"{tolerate or 'none'} may be lacking: see {failures_path(path)}. Tolerate {lacking}, "
            "or mend the pictures, remove the store and encode again."
        )
    return store


def _list_failures(path: Path, failures: Sequence[Mapping[str, Any]]) -> None:
    """Keeps the list beside the store; several processes may."""
    listed = failures_path(path)
    if not failures:
        listed.unlink(missing_ok=True)
        return
    temporary = listed.with_name(f".{listed.name}-{uuid.uuid4().hex}")
    write_jsonl(temporary, [dict(one) for one in failures])
    temporary.replace(listed)


def _complaint(path: Path, failures: Sequence[Mapping[str, Any]], count: int, tolerate: int) -> str:
    told = (f"{one['id']} ({one['file']}): {one['error']}" for one in failures[:_NAMED])
    more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    return (
        f"{path}: {len(failures)} of {count} items have pictures that cannot be used, and "
        f"{tolerate or 'none'} may be lacking: {'; '.join(told)}{more}. All are listed in "
        f"{failures_path(path)}; the others are encoded and kept. Mend these and run the same "
        f"again, or tolerate {len(failures)}."
    )
