"""Pools and queries, each query under its seeded instruction, into vector stores."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from marvel_jax.data.items import Candidate, Item, Query
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.store import Manifest, StoreWriter, VectorStore

Instructions = Mapping[tuple[int, str, str], tuple[str, ...]]


def encode_candidates(
    embedder: Embedder,
    candidates: Sequence[Candidate],
    path: Path | str,
    *,
    source_hash: str,
    shard_rows: int = 16384,
    progress: Callable[[int, int], None] | None = None,
) -> VectorStore:
    """Embeds candidates into a store at `path`, in order, a shard at a time.

    A store that is there already is opened, if the same model made it from the same source; a
    partial one is continued at its last whole shard. `source_hash` is the caller's: where it
    covers the pool's files only, a picture that changed under its name is not noticed.

    Raises:
      MarvelError: the store there was made otherwise, or an image cannot be read.
    """

    def read(number: int) -> tuple[str, Item]:
        candidate = candidates[number]
        return candidate.id, candidate.item

    return _encode(embedder, read, len(candidates), path, source_hash, shard_rows, progress)


def encode_queries(
    embedder: Embedder,
    queries: Sequence[Query],
    instructions: Instructions,
    path: Path | str,
    *,
    seed: int,
    source_hash: str,
    shard_rows: int = 16384,
    progress: Callable[[int, int], None] | None = None,
) -> VectorStore:
    """Embeds queries, each under the instruction that `seed` chooses, into a store at `path`.

    What is there already is used as `encode_candidates` uses it.

    Raises:
      MarvelError: the store there was made otherwise, or an image cannot be read.
    """

    def read(number: int) -> tuple[str, Item]:
        query = queries[number]
        return query.id, instructed(query, instructions, seed=seed)

    prompts = repr((seed, sorted(instructions.items()))).encode()
    whole = hash_bytes(source_hash.encode(), prompts)
    return _encode(embedder, read, len(queries), path, whole, shard_rows, progress)


def instructed(query: Query, instructions: Instructions, *, seed: int) -> Item:
    """The query's item with one of its kind's instructions.

    The choice hangs on the seed and the query's id alone: not on the order, the batch or the
    machine.
    """
    if not instructions:
        return query.item
    prompts = instructions.get(query.instruction_key, ())
    if not prompts:
        dataset, asks, wants = query.instruction_key
        raise MarvelError(
            f"query {query.id}: there is no instruction for data set {dataset}, query modality "
            f"{asks!r}, candidate modality {wants!r}. Add a line to the instructions."
        )
    digest = hashlib.blake2b(f"{seed}:{query.id}".encode(), digest_size=8).digest()
    return query.item.with_instruction(prompts[int.from_bytes(digest, "little") % len(prompts)])


def _encode(
    embedder: Embedder,
    read: Callable[[int], tuple[str, Item]],
    count: int,
    path: Path | str,
    source_hash: str,
    shard_rows: int,
    progress: Callable[[int, int], None] | None,
) -> VectorStore:
    """`read` gives the id and item of each number below `count`."""
    made_by = {**embedder.manifest_fields(), "source_hash": source_hash}
    if Path(path).exists():
        store = VectorStore.open(path)
        store.require(**made_by)
        return store
    writer = StoreWriter(path, Manifest(**made_by, count=count), shard_rows=shard_rows)
    for start in range(writer.completed, count, shard_rows):
        part = [read(number) for number in range(start, min(start + shard_rows, count))]

        def report(done: int, _: int, start: int = start) -> None:
            if progress is not None:
                progress(start + done, count)

        vectors = embedder.encode([item for _, item in part], progress=report)
        writer.append([id for id, _ in part], vectors)
    return writer.finish()
