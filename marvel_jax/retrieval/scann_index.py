"""Approximate search with ScaNN over a vector store: built, saved, loaded, searched.

ScaNN splits the unit vectors into leaves by spherical k-means, scores the nearest leaves with
4-bit anisotropic codes, and the best of those are scored again with the vectors themselves (Guo
et al., 2020): with a float32 copy in the index, or with those of the store. A corpus too large for
the former is split into shards that are built one after the other. Small corpora are searched by
brute force, which is exact.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_json
from marvel_jax.retrieval import scann_memory, scann_ops
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.scann_candidates import merge, score
from marvel_jax.retrieval.scann_config import ScannConfig
from marvel_jax.retrieval.scann_config import describe as describe
from marvel_jax.retrieval.scann_folder import IndexFolder, IndexManifest, open_folder
from marvel_jax.retrieval.scann_measure import Speed as Speed
from marvel_jax.retrieval.scann_measure import measure as measure
from marvel_jax.retrieval.scann_measure import recall_against_exact as recall_against_exact
from marvel_jax.retrieval.scann_ops import Candidates
from marvel_jax.retrieval.scann_ops import ScannUnavailableError as ScannUnavailableError
from marvel_jax.retrieval.scann_tune import tune
from marvel_jax.retrieval.store import VectorStore

_EXTRA = 16  # asked of brute force beyond k, so that equal scores at the end are ordered by id
_READ_ROWS = 8192
_QUERY_BLOCK = 8192  # at a time; candidates and their keys take some kilobytes a query

Say = Callable[[str], None]


class ScannIndex:
    """An index over one store. Make one with `ScannIndex.build` or `ScannIndex.open`."""

    def __init__(self, folder: Path, store: VectorStore, manifest: IndexManifest) -> None:
        self.path = folder
        self.store = store
        self.config = manifest.config
        self.build_seconds = manifest.build_seconds
        self.tuned = manifest.tuned
        self.bytes = manifest.bytes
        self._manifest = manifest
        self._resident = manifest.bytes <= scann_memory.budget(None)
        self._loaded: dict[int, Any] = {}

    @classmethod
    def build(
        cls,
        store: VectorStore,
        config: ScannConfig | None = None,
        *,
        path: Path | str,
        memory_gb: float | None = None,
        target_recall: float | None = None,
        queries: np.ndarray | None = None,
        say: Say = lambda line: None,
    ) -> "ScannIndex":
        """Builds the index of a store, saves it to the folder `path` and opens it.

        Killed, it goes on with the shard at which it was.

        Args:
          store: whose vectors.
          config: what shall not be chosen by the rule.
          path: the folder to write.
          memory_gb: GiB that building may take; None: 0.7 of what is free.
          target_recall: chooses leaves and candidates so that this share of the exact ten is
            found (see `scann_tune`); for a corpus searched by brute force nothing is to choose.
          queries: float32 [Q, D] to tune with.
          say: is told of every shard and every measured setting.

        Raises:
          MarvelError: `path` exists, memory does not suffice for a thousand vectors, or ScaNN is
            not available on this platform.
        """
        scann_ops.require()
        wanted = config or ScannConfig()
        resolved = wanted.resolve(
            len(store), store.dimension, memory=scann_memory.budget(memory_gb)
        )
        asked = {**dataclasses.asdict(wanted), "memory_gb": memory_gb}
        folder = IndexFolder.begin(Path(path), store, resolved, asked=asked)
        config = folder.config
        rows = config.shard_rows or len(store)
        starts = range(0, len(store), rows)
        for number, start in enumerate(starts):
            if folder.has(number):
                continue
            stop = min(start + rows, len(store))
            if len(starts) > 1:
                say(f"shard {number + 1} of {len(starts)}: rows {start:,} to {stop:,}")
            started = time.perf_counter()
            vectors = _read(store, start, stop)
            searcher = scann_ops.build(vectors, config)
            del vectors
            with folder.shard(number, start=start, stop=stop) as part:
                scann_ops.save(searcher, part)
                folder.seconds = time.perf_counter() - started
            del searcher
        if target_recall is not None and config.kind == "tree":
            index = cls(folder.path, store, folder.manifest())
            tuned = tune(
                index.search,
                store,
                leaves=config.leaves or 1,
                target=target_recall,
                queries=queries,
                say=say,
            )
            config = dataclasses.replace(
                config, search_leaves=tuned.chosen.search_leaves, reorder=tuned.chosen.reorder
            )
            folder.tuned(config, tuned)
        return cls(folder.finish(), store, folder.manifest())

    @classmethod
    def open(
        cls,
        path: Path | str,
        store: VectorStore,
        *,
        progress: Callable[[int, int], None] | None = None,
    ) -> "ScannIndex":
        """Loads a saved index for the store that it was built from.

        Every file is verified; `progress` is told (bytes done, bytes in all).

        Raises:
          MarvelError: the folder is missing, half-written or damaged, or the index is of another
            store: each field that differs is named with both values.
        """
        scann_ops.require()
        return cls(Path(path), store, open_folder(Path(path), store, progress=progress))

    @functools.cached_property
    def manifest_hash(self) -> str:
        """A hash of what the index is: its settings, and the content of its files."""
        return hash_json(
            {
                "config": dataclasses.asdict(self.config),
                "files": [
                    [shard.start, shard.stop, shard.files] for shard in self._manifest.shards
                ],
            }
        )

    @functools.cached_property
    def description(self) -> str:
        """One line for a report."""
        return f"ScaNN, {describe(self.config, count=len(self.store))}"

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
        queries = self._checked(queries, k)
        if len(queries) == 0:
            return TopK(np.empty((0, k), np.float32), np.empty((0, k), np.int32))
        parts = [
            self._top(
                queries[start : start + _QUERY_BLOCK],
                k,
                search_leaves=search_leaves,
                reorder=reorder,
            )
            for start in range(0, len(queries), _QUERY_BLOCK)
        ]
        return TopK(*(np.concatenate(values) for values in zip(*parts, strict=True)))

    def _top(
        self, queries: np.ndarray, k: int, *, search_leaves: int | None, reorder: int | None
    ) -> TopK:
        if self.config.kind == "brute_force":
            found = self.find(queries, min(k + _EXTRA, len(self.store)))
        elif self.config.vectors == "index":
            found = self.find(queries, k, search_leaves=search_leaves, reorder=reorder)
        else:
            count = min(max(reorder or self.config.reorder or k, k), len(self.store))
            found = self.find(queries, count, search_leaves=search_leaves)
        return score(queries, self.store, found.rows, k=k)

    def find(
        self,
        queries: np.ndarray,
        count: int,
        *,
        search_leaves: int | None = None,
        reorder: int | None = None,
    ) -> Candidates:
        """The `count` best rows as ScaNN itself scores them; `search` scores them again.

        Its scores are float32 dot products where the index holds vectors, else those of codes.
        The arguments are those of `search`.
        """
        queries = self._checked(queries, count)
        candidates = leaves = None
        if self.config.kind == "tree":
            candidates = max(reorder or self.config.reorder or count, count)
            leaves = search_leaves or self.config.search_leaves
        return self._candidates(queries, count, reorder=candidates, leaves=leaves)

    def _checked(self, queries: np.ndarray, k: int) -> np.ndarray:
        if not 1 <= k <= len(self.store):
            raise MarvelError(f"k={k}: the pool has {len(self.store)} candidates.")
        return self.store.fit(queries)

    def _candidates(
        self, queries: np.ndarray, count: int, *, reorder: int | None, leaves: int | None
    ) -> Candidates:
        """The best `count` of all shards. One that is not kept in memory is loaded once a call."""
        shards = self._manifest.shards

        def one(number: int) -> Candidates:
            shard = shards[number]
            # ScaNN fills an array of count results, whatever is there.
            most = min(count, shard.stop - shard.start)
            found = scann_ops.search(
                self._searcher(number), queries, most, reorder=reorder, leaves=leaves
            )
            rows = np.where(found.rows < 0, found.rows, found.rows + np.int32(shard.start))
            return Candidates(rows, found.scores)

        if len(shards) == 1:
            return one(0)
        return merge((one(number) for number in range(len(shards))), count)

    def _searcher(self, number: int) -> Any:
        if number in self._loaded:
            return self._loaded[number]
        searcher = scann_ops.load(self.path / self._manifest.shards[number].folder)
        if self._resident:
            self._loaded[number] = searcher
        return searcher


def _read(store: VectorStore, start: int, stop: int) -> np.ndarray:
    """float32 [stop - start, D], decoded a little at a time."""
    vectors = np.empty((stop - start, store.dimension), np.float32)
    for first in range(start, stop, _READ_ROWS):
        last = min(first + _READ_ROWS, stop)
        vectors[first - start : last - start] = store.vectors(np.arange(first, last))
    return vectors
