"""The table over dimension, type and search: stores converted, searched and scored again."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.files import hash_json, read_json_object, write_json
from marvel_jax.retrieval.analysis import JudgedSet
from marvel_jax.retrieval.analysis_tradeoff import (
    Sample,
    Tradeoff,
    TradeoffPoint,
    draw_sample,
    measure_point,
)
from marvel_jax.retrieval.evaluation_folder import EvaluationFolder
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.scann_config import describe
from marvel_jax.retrieval.scann_index import ScannIndex
from marvel_jax.retrieval.scann_ops import ScannUnavailableError
from marvel_jax.retrieval.searcher import ExactSearcher
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_convert import convert
from marvel_jax.retrieval.store_types import STORE_TYPES, StoreType

Say = Callable[[str], None]

_HALVINGS = 3  # dimensions D, D/2, D/4, D/8
_SHORTEST = 16  # numbers a vector
_FEWER, _MORE = 4, 4  # leaves searched: a quarter of the rule's, and four times as many
_WITHOUT_CODES = ("binary",)  # a vector of signs is its own code


def measure_tradeoff(
    folder: EvaluationFolder,
    store: VectorStore,
    sets: Sequence[JudgedSet],
    *,
    queries: int,
    seed: int,
    say: Say = lambda line: None,
) -> Tradeoff:
    """Scores the same queries over smaller stores, by exact search and by ScaNN.

    Every type that is no finer than the store's, each at D, D/2, D/4 and D/8 numbers; and over the
    store itself ScaNN with fewer and with more leaves. A converted store lies in the evaluation's
    folder while it is measured and is then removed. What was measured before a kill is kept there
    until all is.

    Args:
      folder: the evaluation, for its queries' vectors.
      store: its candidates.
      sets: with their exact rankings, which recall is held against.
      queries: how many of each set at most, drawn by seed.
      seed: of the draw and of the bootstrap.
      say: told what is measured.
    """
    samples = {
        one.name: draw_sample(
            one,
            VectorStore.open(folder.queries_path(one.name), check="layout"),
            count=queries,
            rng=np.random.default_rng([seed, number]),
        )
        for number, one in enumerate(sets)
    }
    points: list[TradeoffPoint] = []
    scratch = folder.path / "tradeoff"
    dimensions = [
        store.dimension >> halvings
        for halvings in range(_HALVINGS + 1)
        if not halvings or store.dimension >> halvings >= _SHORTEST
    ]
    asked = sum(len(sample.places) for sample in samples.values())
    kept = _Kept(scratch, [folder.about, [one.name for one in sets], queries, seed])
    for dtype in STORE_TYPES[STORE_TYPES.index(store.dtype) :]:
        for dimension in dimensions:
            name = f"{dtype}, {dimension} numbers"
            measured = kept.points(name)
            if measured:
                say(f"trade-off: {name}: measured before")
                points += measured
                continue
            say(f"trade-off: {name}")
            with _converted(store, scratch, dtype=dtype, dimension=dimension) as small:
                measured = [measure_point(ExactSearcher(small), sets, samples, seed=seed)]
                if dtype not in _WITHOUT_CODES:
                    measured += _approximate(
                        small,
                        sets,
                        samples,
                        path=scratch / "index",
                        several=small is store,
                        seed=seed,
                    )
            kept.keep(name, measured)
            points += measured
    shutil.rmtree(scratch, ignore_errors=True)
    return Tradeoff(tuple(points), queries=asked, candidates=len(store))


class _Kept:
    """Points by what they are of, in a file; of another store or other queries none is taken."""

    def __init__(self, scratch: Path, described: Any) -> None:
        self._file = scratch / "points.json"
        self._of = hash_json(described)
        found = read_json_object(self._file) if self._file.is_file() else {}
        self._points: dict[str, Any] = found["points"] if found.get("of") == self._of else {}
        if not self._points:
            shutil.rmtree(scratch, ignore_errors=True)

    def points(self, name: str) -> list[TradeoffPoint]:
        """Those of this name; none where it was not measured."""
        return [TradeoffPoint.of(one) for one in self._points.get(name, [])]

    def keep(self, name: str, points: Sequence[TradeoffPoint]) -> None:
        """Adds them to the file."""
        self._points[name] = [one.to_dict() for one in points]
        write_json(self._file, {"of": self._of, "points": self._points})


@contextmanager
def _converted(
    store: VectorStore, scratch: Path, *, dtype: StoreType, dimension: int
) -> Iterator[VectorStore]:
    if (dtype, dimension) == (store.dtype, store.dimension):
        yield store
        return
    path = scratch / "store"
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield convert(store, path, dtype=dtype, dimension=dimension)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _approximate(
    store: VectorStore,
    sets: Sequence[JudgedSet],
    samples: Mapping[str, Sample],
    *,
    path: Path,
    several: bool,
    seed: int,
) -> list[TradeoffPoint]:
    """ScaNN as the rule sets it; with `several`, also with fewer and with more leaves searched."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        index = ScannIndex.build(store, path=path)
    except ScannUnavailableError:
        return []
    try:
        searched = index.config.search_leaves
        leaves: Sequence[int | None] = [searched]
        if several and searched is not None:
            most = index.config.leaves or searched
            leaves = sorted({max(1, searched // _FEWER), searched, min(most, searched * _MORE)})
        return [measure_point(_Setting(index, one), sets, samples, seed=seed) for one in leaves]
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Setting:
    """An index searched with another number of leaves than it was built for."""

    def __init__(self, index: ScannIndex, leaves: int | None) -> None:
        self.store = index.store
        config = dataclasses.replace(index.config, search_leaves=leaves)
        self.description = f"ScaNN, {describe(config, count=len(index.store))}"
        self._index = index
        self._leaves = leaves

    def search(self, queries: np.ndarray, k: int) -> TopK:
        return self._index.search(queries, k, search_leaves=self._leaves)
