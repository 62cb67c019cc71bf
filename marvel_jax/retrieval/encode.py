"""Pools into vector stores, and queries, each under its seeded instruction, into vectors."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from marvel_jax.data.items import Candidate, Item, Query
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
    partial one is continued at its last whole shard.

    Raises:
      MarvelError: the store there was made otherwise, or an image cannot be read.
    """
    manifest = Manifest(
        **embedder.manifest_fields(), count=len(candidates), source_hash=source_hash
    )
    if Path(path).exists():
        store = VectorStore.open(path)
        store.require(**{**embedder.manifest_fields(), "source_hash": source_hash})
        return store
    writer = StoreWriter(path, manifest, shard_rows=shard_rows)
    for start in range(writer.completed, len(candidates), shard_rows):
        part = [candidates[i] for i in range(start, min(start + shard_rows, len(candidates)))]

        def report(done: int, _: int, start: int = start) -> None:
            if progress is not None:
                progress(start + done, len(candidates))

        vectors = embedder.encode([candidate.item for candidate in part], progress=report)
        writer.append([candidate.id for candidate in part], vectors)
    return writer.finish()


def encode_queries(
    embedder: Embedder,
    queries: Sequence[Query],
    instructions: Instructions,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Unit vectors float32 [Q, D] of queries, each under the instruction that `seed` chooses."""
    items = [instructed(query, instructions, seed=seed) for query in queries]
    return embedder.encode(items, progress=progress or False)


def instructed(query: Query, instructions: Instructions, *, seed: int) -> Item:
    """The query's item with one of its kind's instructions.

    The choice hangs on the seed and the query's id alone: not on the order, the batch or the
    machine.
    """
    prompts = instructions.get(query.instruction_key, ())
    if not prompts:
        return query.item
    digest = hashlib.blake2b(f"{seed}:{query.id}".encode(), digest_size=8).digest()
    return query.item.with_instruction(prompts[int.from_bytes(digest, "little") % len(prompts)])
