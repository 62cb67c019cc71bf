"""FAISS's indexes for unit vectors, each with a stated grid of settings."""

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.bench.search_child import Setting
from marvel_jax.retrieval.store import VectorStore

_ADDED_AT_ONCE = 65536
_TRAINING_VECTORS = 64  # a list; FAISS asks for 39 at least
_PROBES = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 512)
_FACTORS = (2, 4, 8, 16, 32, 64)
_EF_SEARCH = (10, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512)

NAMES = (
    "faiss ivf-flat",
    "faiss ivf-pq2-fastscan-refine",
    "faiss ivf-pq4-fastscan-refine",
    "faiss hnsw32",
)


def why_not() -> str | None:
    """Why FAISS cannot be measured here; None where it can."""
    if importlib.util.find_spec("faiss") is None:
        return "faiss is not installed (pip install 'marvel-jax[bench]')"
    return None


class FaissPeer:
    """4 sqrt(N) lists where it has lists, inner products, float32 vectors for what is refined.

    ivf-flat: nprobe on the grid. ivf-pqM-fastscan-refine: 4-bit codes of M numbers each, nprobe
    and the factor of refined candidates on the grid. hnsw32: 32 links, efConstruction 40,
    efSearch on the grid.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self._name = name
        self._index: Any = None

    def build(self, store: VectorStore, *, workdir: Path) -> float | None:
        """Trains on a sample where there is something to train, and adds the store in blocks."""
        import faiss

        lists = max(1, round(4 * math.sqrt(len(store))))
        dimension = store.dimension
        factory = {
            "faiss ivf-flat": f"IVF{lists},Flat",
            "faiss ivf-pq2-fastscan-refine": f"IVF{lists},PQ{dimension // 2}x4fs,RFlat",
            "faiss ivf-pq4-fastscan-refine": f"IVF{lists},PQ{dimension // 4}x4fs,RFlat",
            "faiss hnsw32": "HNSW32",
        }[self._name]
        self._index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        if not self._index.is_trained:
            count = min(len(store), _TRAINING_VECTORS * lists)
            rows = np.random.default_rng(0).choice(len(store), count, replace=False)
            self._index.train(store.vectors(np.sort(rows)))
        for _, vectors in store.blocks(_ADDED_AT_ONCE):
            self._index.add(np.ascontiguousarray(vectors))
        return None

    def settings(self) -> list[list[Setting]]:
        """The grid."""
        if self._name == "faiss hnsw32":
            return [[{"efSearch": value} for value in _EF_SEARCH]]
        if self._name == "faiss ivf-flat":
            return [[{"nprobe": value} for value in _PROBES]]
        return [
            [{"nprobe": probes, "k_factor": factor} for probes in _PROBES] for factor in _FACTORS
        ]

    def search(self, queries: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        """int64 [Q, k]: the rows found."""
        import faiss

        index = self._index
        if "efSearch" in setting:
            index.hnsw.efSearch = setting["efSearch"]
        elif "k_factor" in setting:
            index.k_factor = setting["k_factor"]
            faiss.downcast_index(index.base_index).nprobe = setting["nprobe"]
        else:
            index.nprobe = setting["nprobe"]
        found: np.ndarray = index.search(queries, k)[1]
        return found
