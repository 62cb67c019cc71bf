"""Approximate search with ScaNN over a vector store: built, saved, loaded, searched, measured.

ScaNN splits the unit vectors into leaves by spherical k-means, scores the nearest leaves with
4-bit anisotropic codes, and scores the best of those again with the vectors themselves (Guo et
al., 2020). Small corpora are searched by brute force, which is exact.
"""

import contextlib
import dataclasses
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, hash_files, read_json, write_json
from marvel_jax.retrieval.exact import TopK, rescore
from marvel_jax.retrieval.store import VectorStore

_BRUTE_FORCE_BELOW = 3000
_TRAINING_SAMPLE = 250_000


@dataclasses.dataclass(frozen=True)
class ScannConfig:
    """How an index is built and searched. None is chosen from the corpus size N by `resolve`.

    kind: "tree" (leaves and codes) or "brute_force" (exact); None: a tree from 3,000 vectors on.
    leaves: number of leaves; None: the square root of N.
    search_leaves: leaves looked at for a query; None: a sixteenth of them, at least 100.
    reorder: candidates scored again with their vectors; None: 512.
    """

    kind: Literal["tree", "brute_force"] | None = None
    leaves: int | None = None
    search_leaves: int | None = None
    reorder: int | None = None

    def __post_init__(self) -> None:
        for name in ("leaves", "search_leaves", "reorder"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MarvelError(f"{name}={value}: expected at least 1, or None for the rule.")

    def resolve(self, count: int) -> "ScannConfig":
        """This config with every None replaced by the rule's choice for `count` vectors.

        Raises:
          MarvelError: more leaves than vectors.
        """
        kind = self.kind or ("brute_force" if count < _BRUTE_FORCE_BELOW else "tree")
        if kind == "brute_force":
            return ScannConfig(kind=kind)
        leaves = self.leaves or max(1, round(math.sqrt(count)))
        if leaves > count:
            raise MarvelError(f"leaves={leaves} for {count} vectors: expected at most {count}.")
        search = self.search_leaves or max(100, leaves // 16)
        return ScannConfig(kind, leaves, min(search, leaves), self.reorder or 512)


class ScannUnavailableError(MarvelError):
    """ScaNN has no build for this platform; exact search does the work."""


class Speed(NamedTuple):
    """Milliseconds a query: one at a time (median), and in one batch of many."""

    single: float
    batched: float


class ScannIndex:
    """An index over one store. Make one with `ScannIndex.build` or `ScannIndex.open`."""

    def __init__(
        self, searcher: Any, store: VectorStore, config: ScannConfig, *, build_seconds: float
    ) -> None:
        self._searcher = searcher
        self.store = store
        self.config = config
        self.build_seconds = build_seconds

    @classmethod
    def build(
        cls, store: VectorStore, config: ScannConfig | None = None, *, path: Path | str
    ) -> "ScannIndex":
        """Builds the index of a store, saves it to the folder `path` and opens it.

        Needs the store's vectors in memory once (count x dimension x 4 bytes).

        Raises:
          MarvelError: `path` exists, or ScaNN is not available on this platform.
        """
        ops = _scann()
        config = (config or ScannConfig()).resolve(len(store))
        with atomic_folder(Path(path)) as folder:
            started = time.perf_counter()
            builder = ops.builder(np.asarray(store.vectors()), 10, "dot_product")
            if config.kind == "brute_force":
                builder = builder.score_brute_force()
            else:
                builder = builder.tree(
                    num_leaves=config.leaves,
                    num_leaves_to_search=config.search_leaves,
                    training_sample_size=min(len(store), _TRAINING_SAMPLE),
                    spherical=True,  # for unit vectors: at recall 0.95 5x faster than without
                )
                builder = builder.score_ah(2, anisotropic_quantization_threshold=0.2)
                builder = builder.reorder(config.reorder)
            with _quiet():
                searcher = builder.build()
                # Relative paths, so that the folder can be renamed and moved.
                searcher.serialize(str(folder), relative_path=True)
            seconds = time.perf_counter() - started
            files = {file.name: hash_files(file) for file in sorted(folder.iterdir())}
            manifest = {
                **_store_fields(store),
                "config": dataclasses.asdict(config),
                "build_seconds": round(seconds, 3),
                "files": files,
            }
            write_json(folder / "manifest.json", manifest)
        return cls(searcher, store, config, build_seconds=seconds)

    @classmethod
    def open(cls, path: Path | str, store: VectorStore) -> "ScannIndex":
        """Loads a saved index for the store that it was built from.

        Raises:
          MarvelError: the folder is missing or damaged, or the index is of another store: each
            field that differs is named with both values.
        """
        ops = _scann()
        path = Path(path)
        if not path.is_dir():
            raise MarvelError(f"{path} is not an index: no such folder. Make one: `marvel index`.")
        manifest = read_json(path / "manifest.json")
        for name, wanted in _store_fields(store).items():
            if manifest.get(name) != wanted:
                raise MarvelError(
                    f"{path}: this index was built with {name}={manifest.get(name)!r}, but the "
                    f"store {store.path} has {name}={wanted!r}. Build the index of this store."
                )
        for name, expected in manifest["files"].items():
            if not (path / name).is_file() or hash_files(path / name) != expected:
                raise MarvelError(f"{path / name} is missing or damaged: build the index again.")
        # ScaNN unpickles one optional file; only what `build` wrote may be read.
        unknown = {file.name for file in path.iterdir()} - {*manifest["files"], "manifest.json"}
        if unknown:
            raise MarvelError(f"{path}: unknown files {sorted(unknown)}: build the index again.")
        with _quiet():
            searcher = ops.load_searcher(str(path), assets_backcompat_shim=False)
        config = ScannConfig(**manifest["config"])
        return cls(searcher, store, config, build_seconds=manifest["build_seconds"])

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        search_leaves: int | None = None,
        reorder: int | None = None,
    ) -> TopK:
        """The k best rows of the store that the index finds; scores are exact cosines.

        Args:
          queries: float32 [Q, D], unit norm.
          k: how many; where the leaves searched hold fewer, index -1 and score -inf.
          search_leaves: leaves to look at instead of the config's.
          reorder: candidates to score again instead of the config's.

        Raises:
          MarvelError: k exceeds the pool, or the dimension is not the index's.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.store.dimension:
            raise MarvelError(
                f"The queries have shape {queries.shape}, but the index has dimension "
                f"{self.store.dimension}: encode both with the same model."
            )
        if not 1 <= k <= len(self.store):
            raise MarvelError(f"k={k}: the pool has {len(self.store)} candidates.")
        if len(queries) == 0:
            return TopK(np.empty((0, k), np.float32), np.empty((0, k), np.int32))
        if self.config.kind == "brute_force":
            indices, scores = self._searcher.search_batched_parallel(queries, k)
        else:
            candidates = max(reorder or self.config.reorder or k, k)
            leaves = search_leaves or self.config.search_leaves
            if len(queries) == 1:
                one = self._searcher.search(queries[0], k, candidates, leaves)
                indices, scores = one[0][None], one[1][None]
            else:
                indices, scores = self._searcher.search_batched_parallel(
                    queries, k, candidates, leaves
                )
        # Where ScaNN has no k results it fills with row 0 and NaN.
        rows = np.where(np.isfinite(scores), indices.astype(np.int32), -1)
        return rescore(queries, self.store, rows, k=k, rank=self.store.id_rank)


def recall_against_exact(approximate: TopK, exact: TopK) -> np.ndarray:
    """Float64 [Q]: the share of each query's exact top k that the approximate search found."""
    if approximate.indices.shape != exact.indices.shape:
        raise MarvelError(
            f"Rankings of shapes {approximate.indices.shape} and {exact.indices.shape} cannot be "
            "compared: search both with the same queries and k."
        )
    pairs = zip(approximate.indices, exact.indices, strict=True)
    found = [np.isin(right, got).sum() for got, right in pairs]
    return np.array(found, np.float64) / exact.indices.shape[1]


def measure(
    search: Callable[[np.ndarray], TopK],
    queries: np.ndarray,
    *,
    singles: int = 32,
    repeats: int = 3,
) -> Speed:
    """Times a search on the queries [Q, D]: one by one (`singles` of them) and all in one batch.

    Both are called once before the clock starts, so that compilation is not counted.
    """

    def seconds(part: np.ndarray) -> float:
        started = time.perf_counter()
        search(part)
        return time.perf_counter() - started

    search(queries[:1])
    single = [seconds(queries[i : i + 1]) for i in range(min(singles, len(queries)))]
    search(queries)
    batched = [seconds(queries) for _ in range(repeats)]
    return Speed(1e3 * float(np.median(single)), 1e3 * float(np.median(batched)) / len(queries))


def _store_fields(store: VectorStore) -> dict[str, Any]:
    return {
        "model_hash": store.manifest.model_hash,
        "dimension": store.manifest.dimension,
        "count": store.manifest.count,
        "content_hash": store.content_hash,
    }


def _scann() -> ModuleType:
    try:
        from scann import scann_ops_pybind
    except ImportError as error:
        raise ScannUnavailableError(
            f"ScaNN cannot be loaded ({error}). It has wheels for Linux only (x86-64 and aarch64): "
            "there `pip install scann`; elsewhere use exact search."
        ) from error
    return scann_ops_pybind


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps ScaNN's log lines off the terminal (they tear a progress display) unless it fails."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield
        except BaseException:
            log.seek(0)
            os.write(kept, log.read())
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def describe(config: ScannConfig) -> str:
    """One line for a report, e.g. "148 leaves, 100 searched, 512 scored again"."""
    if config.kind == "brute_force":
        return "brute force"
    return (
        f"{config.leaves} leaves, {config.search_leaves} searched, "
        f"{config.reorder} scored again exactly"
    )
