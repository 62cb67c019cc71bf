"""The fastest setting of an index that finds a given share of the exact answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import NamedTuple, Protocol

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import TopK, top_k
from marvel_jax.retrieval.scann_measure import recall_against_exact
from marvel_jax.retrieval.store import VectorStore

_QUERIES = 1000
_K = 10
_REORDER = (20, 30, 45, 65, 100, 150, 220, 330, 500, 750, 1100)
_STEP = 1.4  # between numbers of leaves
_ENOUGH = 3  # in a row that are slower than the best
_COSINE = 0.8


class Point(NamedTuple):
    """One setting, what it found, and queries a second in one batch."""

    search_leaves: int
    reorder: int
    recall: float
    queries_per_second: float


@dataclass(frozen=True)
class Tuned:
    """The curve that was measured, and the point that was chosen.

    reached: whether it finds the target: recall less a standard error is no lower, so that other
      queries of the kind may be expected to reach it, too.
    """

    target: float
    k: int
    queries: int
    asked_with: str
    chosen: Point
    reached: bool
    curve: tuple[Point, ...]


class SearchWith(Protocol):
    """The search of an index with another setting than its own."""

    def __call__(self, queries: np.ndarray, k: int, *, search_leaves: int, reorder: int) -> TopK:
        """As `ScannIndex.search`."""


def tune(
    search: SearchWith,
    store: VectorStore,
    *,
    leaves: int,
    target: float,
    queries: np.ndarray | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Tuned:
    """Measures recall@10 and speed over leaves and candidates, and chooses.

    For each number of leaves the fewest candidates are sought that reach the target; of what
    reaches it the fastest is chosen, and of nothing the most accurate.

    Args:
      search: of an index of `store`.
      store: searched exactly for the same queries.
      leaves: all leaves of a shard.
      target: share of the exact ten that is to be found, above 0 and below 1.
      queries: float32 [Q, D], of which 1,000 are drawn; None: `perturbed` vectors of the store.
      seed: of the draws.
      say: is told every point.

    Raises:
      MarvelError: a target outside of (0, 1).
    """
    if not 0 < target < 1:
        raise MarvelError(f"target recall {target}: give a share above 0 and below 1, as 0.99.")
    asked_with = "queries that were given"
    if queries is None:
        queries, asked_with = perturbed(store, seed=seed), "vectors of the store, perturbed"
    elif len(queries) > _QUERIES:
        rng = np.random.default_rng(seed)
        queries = queries[np.sort(rng.choice(len(queries), _QUERIES, replace=False))]
    k = min(_K, len(store))
    say(f"exact answers of {len(queries):,} queries ({asked_with})")
    exact = top_k(queries, store, k)
    curve: list[Point] = []
    best: Point | None = None
    slower = 0
    for number in _numbers(leaves):
        point, reached = _least(search, store.fit(queries), exact, number, target)
        curve.append(point)
        say(
            f"{number:>7,} leaves {point.reorder:>5,} candidates  recall@{k} {point.recall:.4f}  "
            f"{point.queries_per_second:>9,.0f} queries/s"
        )
        if reached and (best is None or point.queries_per_second > best.queries_per_second):
            best, slower = point, 0
        elif best is not None:
            slower += 1
        if slower >= _ENOUGH:
            break
    chosen = best or max(curve, key=lambda point: point.recall)
    return Tuned(target, k, len(queries), asked_with, chosen, best is not None, tuple(curve))


def perturbed(store: VectorStore, *, seed: int) -> np.ndarray:
    """float32 [Q, D]: vectors of the store, moved by differences of others to cosine 0.8.

    So they leave their rows in the directions in which the corpus itself varies.
    """
    rng = np.random.default_rng(seed)
    count = min(_QUERIES, len(store))
    rows = rng.choice(len(store), count, replace=False)
    one = rng.integers(len(store), size=count)
    other = (one + rng.integers(1, max(2, len(store)), size=count)) % len(store)  # never the same
    vectors = store.vectors(rows)
    moves = store.vectors(one) - store.vectors(other)
    moves -= (moves * vectors).sum(axis=1, keepdims=True) * vectors
    lengths = np.linalg.norm(moves, axis=1, keepdims=True)
    moved = _COSINE * vectors + (1 - _COSINE**2) ** 0.5 * moves / np.maximum(lengths, 1e-6)
    result: np.ndarray = (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)
    return result


def _numbers(leaves: int) -> Sequence[int]:
    """1, 2, 3, 4, 6, ..., all."""
    numbers, number = [], 1
    while number < leaves:
        numbers.append(number)
        number = max(number + 1, round(number * _STEP))
    return [*numbers, leaves]


def _least(
    search: SearchWith, queries: np.ndarray, exact: TopK, leaves: int, target: float
) -> tuple[Point, bool]:
    """The point of so many leaves with the fewest candidates that reach the target, and whether
    one does; with the most where none does.
    """
    low, high = 0, len(_REORDER) - 1
    found, reached = _point(search, queries, exact, leaves, _REORDER[high], target)
    if not reached:
        return found, False
    while low < high:
        middle = (low + high) // 2
        point, enough = _point(search, queries, exact, leaves, _REORDER[middle], target)
        if enough:
            found, high = point, middle
        else:
            low = middle + 1
    return found, True


def _point(
    search: SearchWith,
    queries: np.ndarray,
    exact: TopK,
    leaves: int,
    reorder: int,
    target: float,
) -> tuple[Point, bool]:
    started = perf_counter()
    got = search(queries, exact.indices.shape[1], search_leaves=leaves, reorder=reorder)
    seconds = perf_counter() - started
    recall = recall_against_exact(got, exact)
    error = recall.std() / len(recall) ** 0.5
    point = Point(leaves, reorder, round(float(recall.mean()), 5), round(len(queries) / seconds, 1))
    return point, float(recall.mean() - error) >= target
