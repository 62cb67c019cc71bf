"""A store's vectors in another type, or the first of their numbers."""

import dataclasses
from pathlib import Path

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import store_types
from marvel_jax.retrieval.store import Progress, VectorStore
from marvel_jax.retrieval.store_manifest import Manifest
from marvel_jax.retrieval.store_types import STORE_TYPES, StoreType, check_type
from marvel_jax.retrieval.store_writer import StoreWriter

_BLOCK = 16384


def convert(
    store: VectorStore,
    path: Path | str,
    *,
    dtype: StoreType | None = None,
    dimension: int | None = None,
    progress: Progress | None = None,
) -> VectorStore:
    """Writes the store again at `path` with fewer bytes a vector; a killed conversion goes on.

    Streamed: memory does not grow with the store.

    Args:
      store: what is read.
      path: the new store's folder.
      dtype: its type, no finer than the old one; None keeps that.
      dimension: how many numbers of each vector to keep, normalised again; None keeps all.
      progress: called with (rows done, rows in all).

    Raises:
      MarvelError: nothing would change, or the old store lacks what the new one would hold.
    """
    dimension = store.dimension if dimension is None else dimension
    manifest = _converted(store, dtype=dtype or store.dtype, dimension=dimension)
    writer = StoreWriter(path, manifest, made_of=store.content_hash)
    first = writer.completed
    for start, vectors in store.blocks(_BLOCK):
        stop = start + len(vectors)
        if stop > first:
            kept = store_types.truncate(vectors[max(0, first - start) :], dimension)
            if store.dtype == "bfloat16":  # of norm 1 only as far as it rounds
                kept = kept / np.linalg.norm(kept, axis=1, keepdims=True)
            writer.append(store.ids[max(start, first) : stop], kept)
        if progress is not None:
            progress(stop, len(store))
    return writer.finish()


def _converted(store: VectorStore, *, dtype: StoreType, dimension: int) -> Manifest:
    check_type(dtype)
    if STORE_TYPES.index(dtype) < STORE_TYPES.index(store.dtype):
        raise MarvelError(
            f"{store.path} holds {store.dtype}: as {dtype} it would take more room and hold no "
            "more. Encode the corpus again for finer vectors."
        )
    if not 1 <= dimension <= store.dimension:
        raise MarvelError(
            f"dimension={dimension}: {store.path} holds {store.dimension} numbers a vector; give "
            "1 to that."
        )
    if (dtype, dimension) == (store.dtype, store.dimension):
        raise MarvelError(
            f"{store.path} holds {dtype} of dimension {dimension} already: copy the folder."
        )
    full = store.manifest.model_dimension
    return dataclasses.replace(
        store.manifest,
        dtype=dtype,
        dimension=dimension,
        full_dimension=full if full > dimension else None,
    )
