"""Invented embeddings that are as hard to search as real ones: clustered, uneven, correlated."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Literal

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_json
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_manifest import Manifest
from marvel_jax.retrieval.store_types import StoreType
from marvel_jax.retrieval.store_writer import StoreWriter

_ROWS_PER_CLUSTER = 100
_BLOCK = 8192
_CENTRES, _CORPUS, _QUERIES, _TUNING, _ROTATION = range(5)  # streams of random numbers


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clustered:
    """A mixture of clusters on the unit sphere; every block of rows is a function of the seed.

    A vector is the unit vector of centre + spread x noise. Centres and noise have the same
    covariance, whose variances fall as 1/j along the axes of a random rotation: a few directions
    carry much, none carries nothing, and no coordinate is special. Cluster c has a share of the
    rows in proportion to 1/(c+1)^power: few large ones, many small ones. With a spread near 1
    clusters overlap, so that the neighbours of a query lie in several leaves of an index.

    rows: vectors of the corpus.
    dimension: length of a vector.
    clusters: None: one for 100 rows.
    spread: length of the noise beside a centre's.
    power: of the cluster sizes.
    apart: length of a displacement that all vectors share, beside a centre's: parts of a union
      with different `part` lie apart so, as the data sets of a benchmark do.
    part: which part of a union it is.
    seed: of everything. Parts of one seed have the same rotation.
    """

    rows: int
    dimension: int
    clusters: int | None = None
    spread: float = 0.8
    power: float = 0.7
    apart: float = 0.0
    part: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.dimension, self.clusters or 1) < 1:
            raise MarvelError(
                f"rows={self.rows}, dimension={self.dimension}, clusters={self.clusters}: give at "
                "least 1 of each."
            )

    def corpus(self, start: int, stop: int) -> np.ndarray:
        """float32 [stop - start, D]: these rows; whichever are asked for, they are the same."""
        stop = min(stop, self.rows)
        first = start // _BLOCK
        parts = [self._block(_CORPUS, block) for block in range(first, -(-stop // _BLOCK))]
        return np.concatenate(parts)[start - first * _BLOCK : stop - first * _BLOCK]

    def queries(
        self, count: int, *, stream: Literal["measured", "tuning"] = "measured"
    ) -> np.ndarray:
        """float32 [count, D]: draws from the same mixture that are not in the corpus.

        Those to tune with are others than those to measure.
        """
        number = _QUERIES if stream == "measured" else _TUNING
        parts = [self._block(number, block) for block in range(-(-count // _BLOCK))]
        return np.concatenate(parts)[:count]

    def _block(self, stream: int, block: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, stream, self.part, block])
        members = np.searchsorted(self._shares, rng.random(_BLOCK)).astype(np.int64)
        noise = rng.standard_normal((_BLOCK, self.dimension), dtype=np.float32)
        noise *= self._scale * np.float32(self.spread)
        noise += self._centres[np.minimum(members, len(self._centres) - 1)]
        vectors = noise @ _rotation(self.dimension, self.seed)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    @cached_property
    def _shares(self) -> np.ndarray:
        count = self.clusters or max(1, self.rows // _ROWS_PER_CLUSTER)
        weights = np.arange(1, count + 1, dtype=np.float64) ** -self.power
        return np.cumsum(weights / weights.sum())

    @cached_property
    def _scale(self) -> np.ndarray:
        """float32 [D]: standard deviations along the rotated axes, of unit length together."""
        variance = 1 / np.arange(1, self.dimension + 1)
        return np.sqrt(variance / variance.sum()).astype(np.float32)

    @cached_property
    def _centres(self) -> np.ndarray:
        rng = np.random.default_rng([self.seed, _CENTRES, self.part])
        shape = (len(self._shares) + 1, self.dimension)
        centres = rng.standard_normal(shape, dtype=np.float32) * self._scale
        moved: np.ndarray = centres[1:] + np.float32(self.apart) * centres[:1]
        return moved


@lru_cache(maxsize=1)  # parts share it
def _rotation(dimension: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, _ROTATION])
    square = rng.standard_normal((dimension, dimension), dtype=np.float32)
    return np.linalg.qr(square)[0]


def write_store(
    parts: Sequence[tuple[str, Clustered]],
    path: Path,
    *,
    dtype: StoreType,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> VectorStore:
    """A store of named parts, one after the other; what is there, whole or in part, is kept.

    Ids are NAME:0, NAME:1, ... `progress` is called with (rows written, rows in all).
    """
    count = sum(part.rows for _, part in parts)
    described = hash_json([[name, dataclasses.asdict(part)] for name, part in parts])
    manifest = Manifest(
        model_hash="invented",
        processor_hash="invented",
        template="none",
        attention="none",
        pooling="none",
        positions="none",
        min_pixels=0,
        max_pixels=0,
        dimension=parts[0][1].dimension,
        count=count,
        source_hash=described,
        dtype=dtype,
    )
    if path.is_dir():
        store = VectorStore.open(path, check="layout")
        store.require(source_hash=described, dtype=dtype, count=count)
        return store
    writer = StoreWriter(path, manifest)
    there, done = writer.completed, 0
    for name, part in parts:
        for start in range(max(0, there - done), part.rows, _BLOCK):
            stop = min(start + _BLOCK, part.rows)
            writer.append([f"{name}:{row}" for row in range(start, stop)], part.corpus(start, stop))
            progress(done + stop, count)
        done += part.rows
    return writer.finish()
