"""A corpus becomes a vector store shard by shard, by one process or by several, and resumes.

Process i of n encodes the shards i, n + i, 2n + i and so on into one folder; nobody waits for
anybody, and who finds all shards there makes the store whole. What is written stays through a
kill. Within a shard, items of the same content are encoded once. Items with pictures that cannot be
used are listed beside the store, `STORE.failures.jsonl`.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.files import write_jsonl
from marvel_jax.lazy import LazySequence
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode_calls import Tally
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import StoreType
from marvel_jax.retrieval.store_writer import Manifest, StoreWriter

SHARD_ROWS = 16384

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
    _forget_mended(writer, own, embedder, read)
    sizes = {number: min(shard_rows, count - number * shard_rows) for number in own}
    done = sum(size for number, size in sizes.items() if writer.has(number))
    for number, size in sizes.items():
        if writer.has(number):
            continue

        def report(fresh: int, _: int, before: int = done) -> None:
            if progress is not None:
                progress(before + fresh, sum(sizes.values()))

        shard = _Shard(read, number * shard_rows, size)
        failures: dict[int, dict[str, Any]] = {}

        def note(
            place: int,
            error: ImageError,
            shard: _Shard = shard,
            failures: dict[int, dict[str, Any]] = failures,
        ) -> None:
            failures[place] = {
                "id": shard.ids[place],
                "number": shard.start + place,
                "file": error.file,
                "error": error.reason,
            }

        vectors = embedder.encode(
            shard, batch_tokens=batch_tokens, progress=report, on_failure=note, tally=tally
        )
        kept = [place for place in range(size) if place not in failures]
        try:
            writer.write(
                number,
                [shard.ids[place] for place in kept],
                vectors if len(kept) == size else vectors[kept],
                failures=[failures[place] for place in sorted(failures)],
            )
        except MarvelError:
            if not path.is_dir():
                raise
            return _opened(path, embedder, manifest, tolerate)  # another wrote the same
        done += size
    return _finished(writer, own, embedder, read, tolerate)


def failures_path(path: Path | str) -> Path:
    """The list of items that a store lacks, beside it."""
    path = Path(path)
    return path.with_name(f"{path.name}.failures.jsonl")


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


def _forget_mended(
    writer: StoreWriter,
    own: Sequence[int],
    embedder: Embedder,
    read: Callable[[int], tuple[str, Item]],
) -> None:
    """Has shards written again whose broken pictures can now be read."""
    for failure in writer.failures:
        shard = int(failure["number"]) // writer.shard_rows
        if shard in own and writer.has(shard) and _is_mended(failure, embedder, read):
            writer.discard(shard)


def _is_mended(
    failure: Mapping[str, Any], embedder: Embedder, read: Callable[[int], tuple[str, Item]]
) -> bool:
    try:
        embedder.processor(read(int(failure["number"]))[1])
    except ImageError:
        return False
    return True


def _finished(
    writer: StoreWriter,
    own: Sequence[int],
    embedder: Embedder,
    read: Callable[[int], tuple[str, Item]],
    tolerate: int,
) -> VectorStore | None:
    """The whole store, or None where shards are missing."""
    path, whole = writer.path, False
    try:
        known: list[Any] = writer.failures
        whole = _is_whole(writer)
        if not path.is_dir():
            return _closed(writer, known, own, embedder, read, tolerate, whole=whole)
    except (MarvelError, OSError):
        if not path.is_dir():
            if whole and not _is_whole(writer):  # another process writes a shard again
                return None
            raise
    return _opened(path, embedder, writer.manifest, tolerate)  # another process was faster


def _closed(
    writer: StoreWriter,
    known: Sequence[Mapping[str, Any]],
    own: Sequence[int],
    embedder: Embedder,
    read: Callable[[int], tuple[str, Item]],
    tolerate: int,
    *,
    whole: bool,
) -> VectorStore | None:
    """Of a process whose shards are done: the store, if all are, or what it lacks told."""
    mine = [one for one in known if int(one["number"]) // writer.shard_rows in own]
    told = known if whole else mine
    if whole or mine:
        _list_failures(writer.path, known)
    if len(told) > tolerate:
        others = [one for one in known if one not in mine] if whole else []
        if any(_is_mended(one, embedder, read) for one in others):
            return None  # whose shard it is encodes it again
        raise MarvelError(_complaint(writer.path, told, writer.manifest.count, tolerate))
    return writer.finish(tolerated=bool(known)) if whole else None


def _is_whole(writer: StoreWriter) -> bool:
    return all(writer.has(number) for number in range(writer.num_shards))


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
