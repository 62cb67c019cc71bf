"""What an approximate search finds of the exact answer, and how fast a search is."""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import TopK


class Speed(NamedTuple):
    """Milliseconds a query: one at a time (median), and in one batch of many."""

    single: float
    batched: float


def recall_against_exact(approximate: TopK, exact: TopK) -> np.ndarray:
    """Float64 [<= Q]: the share of each query's exact top k that the approximate search found.

    A query without exact results, as one that could not be read, is left out.
    """
    if approximate.indices.shape != exact.indices.shape:
        raise MarvelError(
            f"Rankings of shapes {approximate.indices.shape} and {exact.indices.shape} cannot be "
            "compared: search both with the same queries and k."
        )
    there = exact.indices >= 0
    pairs = zip(approximate.indices, exact.indices, there, strict=True)
    found = [np.isin(right[real], got).sum() for got, right, real in pairs]
    counts = there.sum(axis=1)
    return np.array(found, np.float64)[counts > 0] / counts[counts > 0]


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
