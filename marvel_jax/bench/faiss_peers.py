"""FAISS's indexes for unit vectors, each with a stated grid of settings."""

import importlib.util
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.bench.search_child import Setting
from marvel_jax.retrieval.store import VectorStore

_ADDED_AT_ONCE = 65536
_TRAINING_VECTORS = 64  # a list; FAISS asks for 39 at least
_PROBES = (1, 2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
_FACTORS = (2, 4, 8, 16, 32, 64)
_EF_CONSTRUCTION = 128  # FAISS's 40 is quicker to build, and slower at recall 0.99
_EF_SEARCH = (10, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512)


class _Kind(NamedTuple):
    """How an index is made: FAISS's own words for it, and its lists over sqrt(N)."""

    factory: str
    lists: int = 4


# "x4fs" codes the vectors, "x4fsr" what is left of them behind their list's centre, as ScaNN does.
_KINDS = {
    "faiss ivf-flat": _Kind("IVF{lists},Flat"),
    "faiss ivf-flat, sqrt(N) lists": _Kind("IVF{lists},Flat", lists=1),
    "faiss ivf-pq2-fastscan-refine": _Kind("IVF{lists},PQ{half}x4fs,RFlat"),
    "faiss ivf-pq4-fastscan-refine": _Kind("IVF{lists},PQ{quarter}x4fs,RFlat"),
    "faiss ivf-pq2-residual-fastscan-refine": _Kind("IVF{lists},PQ{half}x4fsr,RFlat"),
    "faiss ivf-pq4-residual-fastscan-refine": _Kind("IVF{lists},PQ{quarter}x4fsr,RFlat"),
    "faiss ivf-pq2-residual-fastscan-refine, sqrt(N) lists": _Kind(
        "IVF{lists},PQ{half}x4fsr,RFlat", lists=1
    ),
    "faiss hnsw32": _Kind("HNSW32"),
}
NAMES = tuple(_KINDS)


def why_not() -> str | None:
    """Why FAISS cannot be measured here; None where it can."""
    if importlib.util.find_spec("faiss") is None:
        return "faiss is not installed (pip install 'marvel-jax[bench]')"
    return None


class FaissPeer:
    """4 sqrt(N) lists where it has lists and nothing else is said, inner products, float32 vectors
    for what is refined.

    ivf-flat: nprobe on the grid. ivf-pqM-fastscan-refine: 4-bit codes of M numbers each, of the
    vectors or of their residuals, nprobe and the factor of refined candidates on the grid. hnsw32:
    32 links, efConstruction 128, efSearch on the grid.
    """

    def __init__(self, name: str, *, threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self._name = name
        self._index: Any = None
        self._lists = 1

    def build(self, store: VectorStore, *, workdir: Path) -> float | None:
        """Trains on a sample where there is something to train, and adds the store in blocks."""
        import faiss

        kind, dimension = _KINDS[self._name], store.dimension
        lists = self._lists = max(1, round(kind.lists * math.sqrt(len(store))))
        factory = kind.factory.format(lists=lists, half=dimension // 2, quarter=dimension // 4)
        self._index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        if factory.startswith("HNSW"):
            self._index.hnsw.efConstruction = _EF_CONSTRUCTION
        if not self._index.is_trained:
            count = min(len(store), _TRAINING_VECTORS * lists)
            rows = np.random.default_rng(0).choice(len(store), count, replace=False)
            self._index.train(store.vectors(np.sort(rows)))
        for _, vectors in store.blocks(_ADDED_AT_ONCE):
            self._index.add(np.ascontiguousarray(vectors))
        return None

    def settings(self) -> list[list[Setting]]:
        """The grid; nprobe up to the lists there are, for more makes fast scan answer at random."""
        if self._name == "faiss hnsw32":
            return [[{"efSearch": value} for value in _EF_SEARCH]]
        probes = [value for value in _PROBES if value <= self._lists]
        if self._name.startswith("faiss ivf-flat"):
            return [[{"nprobe": value} for value in probes]]
        return [[{"nprobe": value, "k_factor": factor} for value in probes] for factor in _FACTORS]

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
