"""Pools and queries, each query under its seeded instruction, into vector stores."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from marvel_jax.data.items import Candidate, Item, Query
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode_shards import SHARD_ROWS, encode_share
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import StoreType

Instructions = Mapping[tuple[int, str, str], tuple[str, ...]]


def encode_candidates(
    embedder: Embedder,
    candidates: Sequence[Candidate],
    path: Path | str,
    *,
    source_hash: str,
    dtype: StoreType = "float32",
    dimension: int | None = None,
    tolerate: int = 0,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> VectorStore:
    """Embeds candidates into a store at `path`, in order, a shard at a time.

    A store that is there already is opened, if the same model made it from the same source; a
    partial one is continued at its last whole shard. `source_hash` is the caller's: where it
    covers the pool's files only, a picture that changed under its name is not noticed.

    Args:
      embedder: the model.
      candidates: read one by one, so they may be lazy and larger than memory.
      path: the store.
      source_hash: of what the candidates are.
      dtype: of the stored vectors.
      dimension: how many numbers of each vector are kept, which then has unit norm again; None
        keeps all.
      tolerate: items with pictures that cannot be used which the store may lack. They are listed
        in `PATH.failures.jsonl`, a JSON object of id, file and error each.
      shard_rows: items a shard.
      progress: told (items done, items in all).

    Raises:
      MarvelError: the store there was made otherwise or lacks more than `tolerate`; or more
        pictures cannot be used. All other items are then encoded and kept for the next run.
    """

    def read(number: int) -> tuple[str, Item]:
        candidate = candidates[number]
        return candidate.id, candidate.item

    return _whole(
        encode_share(
            embedder,
            read,
            len(candidates),
            path,
            source_hash=source_hash,
            dtype=dtype,
            dimension=dimension,
            tolerate=tolerate,
            shard_rows=shard_rows,
            progress=progress,
        )
    )


def encode_queries(
    embedder: Embedder,
    queries: Sequence[Query],
    instructions: Instructions,
    path: Path | str,
    *,
    seed: int,
    source_hash: str,
    dtype: StoreType = "float32",
    dimension: int | None = None,
    tolerate: int = 0,
    shard_rows: int = SHARD_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> VectorStore:
    """Embeds queries, each under the instruction that `seed` chooses, into a store at `path`.

    All else is as in `encode_candidates`.

    Raises:
      MarvelError: as there; or a query's kind has no instruction.
    """

    def read(number: int) -> tuple[str, Item]:
        query = queries[number]
        return query.id, instructed(query, instructions, seed=seed)

    prompts = repr((seed, sorted(instructions.items()))).encode()
    return _whole(
        encode_share(
            embedder,
            read,
            len(queries),
            path,
            source_hash=hash_bytes(source_hash.encode(), prompts),
            dtype=dtype,
            dimension=dimension,
            tolerate=tolerate,
            shard_rows=shard_rows,
            progress=progress,
        )
    )


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


def _whole(store: VectorStore | None) -> VectorStore:
    assert store is not None  # a process alone writes all shards
    return store
