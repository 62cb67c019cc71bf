"""One interface for exact and approximate search over a vector store."""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

from marvel_jax.retrieval.exact import TopK, top_k
from marvel_jax.retrieval.scann_index import ScannIndex, ScannUnavailableError
from marvel_jax.retrieval.store import VectorStore


class Searcher(Protocol):
    """What finds the nearest rows of a store: `ExactSearcher` or `ScannIndex`."""

    @property
    def store(self) -> VectorStore:
        """Whose rows are found."""

    @property
    def description(self) -> str:
        """One line for a report."""

    def search(self, queries: np.ndarray, k: int) -> TopK:
        """The k best rows for each of the unit queries [Q, D], with their cosines."""


class ExactSearcher:
    """Every query against every vector of the store."""

    def __init__(self, store: VectorStore) -> None:
        self.store = store

    @property
    def description(self) -> str:
        """One line for a report."""
        return "exact"

    def search(self, queries: np.ndarray, k: int) -> TopK:
        """The k best rows for each of the unit queries [Q, D]; see `exact.top_k`."""
        return top_k(queries, self.store, k)


def open_searcher(
    store: VectorStore,
    index: Path | str | None = None,
    *,
    say: Callable[[str], None] = lambda line: None,
    progress: Callable[[int, int], None] | None = None,
) -> Searcher:
    """The ScaNN index at the folder `index`; exact search without one.

    Where ScaNN has no build for the platform, `say` is told and the search is exact. `progress` is
    told (bytes of the index verified, bytes in all).

    Raises:
      MarvelError: the index is missing, damaged, half-written or of another store.
    """
    if index is not None:
        try:
            return ScannIndex.open(index, store, progress=progress)
        except ScannUnavailableError as error:
            say(f"{error} Searching exactly.")
    return ExactSearcher(store)
