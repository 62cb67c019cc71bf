"""Small stores of random unit vectors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_writer import Manifest, StoreWriter


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def random_unit(rows: int, dimension: int, *, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(rows, dimension)))


def manifest(rows: int, dimension: int, **changes: object) -> Manifest:
    fields = {
        "model_hash": "m0",
        "processor_hash": "p0",
        "template": "marvel",
        "attention": "bidirectional",
        "pooling": "mean",
        "positions": "mrope",
        "min_pixels": 3136,
        "max_pixels": 12544,
        "dimension": dimension,
        "count": rows,
        "source_hash": "s0",
    }
    return Manifest(**{**fields, **changes})  # type: ignore[arg-type]


def write_store(
    path: Path,
    vectors: np.ndarray,
    ids: Sequence[str] | None = None,
    *,
    shard_rows: int = 65536,
    **changes: object,
) -> VectorStore:
    ids = [f"c:{row}" for row in range(len(vectors))] if ids is None else ids
    writer = StoreWriter(path, manifest(*vectors.shape, **changes), shard_rows=shard_rows)
    writer.append(ids, vectors)
    return writer.finish()


def exact_reference(
    queries: np.ndarray, corpus: np.ndarray, ids: Sequence[str], k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every float64 score rounded to float32, sorted by score and then by id, in plain Python."""
    scores = (queries[:, None].astype(np.float64) * corpus[None]).sum(-1).astype(np.float32)
    order = np.array(
        [sorted(range(len(ids)), key=lambda row: (-line[row], ids[row]))[:k] for line in scores]
    )
    return np.take_along_axis(scores, order, axis=1), order
