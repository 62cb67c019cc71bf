"""A split's candidates as vectors: a union pool, which others may have encoded, and what it lacks.

The union pool of test is encoded once for test and validation, though validation has some
candidates beside it (`MbeirFolder.judged_pool`): those have a small store of their own.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.mbeir_pools import JudgedPool
from marvel_jax.data.records import Records
from marvel_jax.files import hash_bytes, hash_files
from marvel_jax.recipes.evaluation import Ticker
from marvel_jax.recipes.evaluation_inputs import failures
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates
from marvel_jax.retrieval.exact import top_k
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import StoreType

Rows = tuple[np.ndarray, ...]
"""Rows of each store of a pool."""


@dataclass(frozen=True)
class SearchedPool:
    """A store of the union pool, and one of what is beside it, searched as one.

    missing: candidates that could not be encoded, which nothing finds.
    """

    union: VectorStore
    beside: VectorStore | None = None
    missing: frozenset[str] = frozenset()

    @classmethod
    def encode(
        cls,
        embedder: Embedder,
        pool: JudgedPool,
        folder: Path,
        *,
        dtype: StoreType = "float32",
        dimension: int | None = None,
        tolerate: int = 0,
        say: Callable[[str], None],
    ) -> "SearchedPool":
        """Encodes a pool into `folder`, or opens what is there of the same model and pool.

        `folder/store` holds the union pool, as an evaluation keeps it, `folder/beside` the rest.
        `dtype`, `dimension` and `tolerate` are those of `encode_candidates`.

        Raises:
          MarvelError: what is there was made otherwise, or more than `tolerate` pictures cannot
            be read.
        """
        there = {"store": pool.union} | ({"beside": pool.beside} if len(pool.beside) else {})
        stores = [
            encode_candidates(
                embedder,
                records,
                folder / name,
                source_hash=_content(records),
                dtype=dtype,
                dimension=dimension,
                tolerate=tolerate,
                progress=Ticker(say, "candidates"),
            )
            for name, records in there.items()
        ]
        # The list of what a store lacks lies beside it, and the store may be a link to it.
        lacking = [failures((folder / name).resolve()) for name in there]
        return cls(
            union=stores[0],
            beside=stores[1] if len(stores) > 1 else None,
            missing=frozenset[str]().union(*lacking),
        )

    @cached_property
    def _ids_beside(self) -> frozenset[str]:
        return frozenset(() if self.beside is None else self.beside.ids)

    @property
    def _stores(self) -> list[VectorStore]:
        return [self.union] if self.beside is None else [self.union, self.beside]

    def rows(self, ids: Sequence[str]) -> Rows:
        """Where these candidates are, in ascending order; those that are missing are left out.

        Raises:
          MarvelError: one of the others is in neither store.
        """
        if self.missing:
            ids = [one for one in ids if one not in self.missing]
        found = [self.union.rows_of([one for one in ids if one not in self._ids_beside])]
        if self.beside is not None:
            found.append(self.beside.rows_of([one for one in ids if one in self._ids_beside]))
        return tuple(np.unique(one) for one in found)

    def nearest(
        self, vectors: np.ndarray, depth: int, *, among: Rows | None = None
    ) -> Iterator[tuple[list[str], list[float]]]:
        """Of each query [Q, D] the ids and cosines of the best `depth`; equal ones by id.

        Queries of more numbers than a store keeps are cut to it, as everywhere.
        """
        found = []
        for number, store in enumerate(self._stores):
            subset = None if among is None else among[number]
            size = len(store) if subset is None else len(subset)
            if size:
                top = top_k(vectors, store, min(depth, size), subset=subset)
                found.append((store.ids, top))
        for query in range(len(vectors)):
            ranked = sorted(
                (-float(score), ids[int(row)])
                for ids, top in found
                for score, row in zip(top.scores[query], top.indices[query], strict=True)
            )[:depth]
            yield [id for _, id in ranked], [-negated for negated, _ in ranked]

    def cosines(self, ids: Sequence[str], vector: np.ndarray) -> np.ndarray:
        """float32 [n]: of one query with those that have a vector, in no particular order."""
        rows = self.rows(ids)
        parts = [store.vectors(own) for store, own in zip(self._stores, rows, strict=True)]
        cosines: np.ndarray = np.concatenate(parts) @ self.union.fit(vector[None])[0]
        return cosines


def _content(records: Records[Any]) -> str:
    """What candidates are: their files, and which of them where not all are."""
    files = hash_files(*(file.path for file in records.files))
    if records.chosen is None:
        return files
    return hash_bytes(files.encode(), records.chosen.tobytes())
