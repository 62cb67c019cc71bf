"""How well a collection answers labelled queries: hit@k, by what asks for what.

A line of the file is a query: its `text`, `image` or `parts` as `data.item_json` reads them (paths
count from the file's folder); `relevant`, the ids of its right answers; and if it likes, `kind`,
what is looked for, and `instruction`, else the first preset of the kinds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.collection.collection import Collection
from marvel_jax.collection.entry import Kind, check_kind
from marvel_jax.data.item_json import item_from_json
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_jsonl
from marvel_jax.retrieval import metrics
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.metrics import Interval

KS = (1, 5, 10)


class Labelled(NamedTuple):
    """A query, under its instruction, with what answers it."""

    item: Item
    kind: Kind | None
    relevant: tuple[str, ...]


class GroupScores(NamedTuple):
    """Queries of one kind that ask for one kind: "text -> image"; or all of them.

    hits: for each k the share of queries with a right answer among the first k, with its 95%
    bootstrap interval.
    """

    name: str
    queries: int
    hits: dict[int, Interval]


class Judgement(NamedTuple):
    """Scores, all queries first; unknown: right answers that the collection does not have, which
    count as never found.
    """

    groups: tuple[GroupScores, ...]
    unknown: int


def read_labelled(path: Path, collection: Collection) -> list[Labelled]:
    """Reads the queries of a file.

    Raises:
      MarvelError: there is none, or a line is broken; it is named.
    """
    found = []
    for number, row in read_jsonl(path):
        where = f"{path}, line {number}"
        relevant = row.get("relevant")
        if not isinstance(relevant, list) or not relevant or not _are_ids(relevant):
            raise MarvelError(f"{where}: expected relevant as a list of ids, found {relevant!r}.")
        kind = None if row.get("kind") is None else check_kind(row["kind"])
        item = item_from_json(row, root=path.parent, where=where, id=f"query {number}")
        instruction = row.get("instruction")
        if not (instruction is None or isinstance(instruction, str)):
            raise MarvelError(f"{where}: expected instruction as a text, found {instruction!r}.")
        if instruction is None:
            instruction = next(iter(collection.presets(check_kind(item.modality), kind)), None)
        found.append(Labelled(item.with_instruction(instruction), kind, tuple(relevant)))
    if not found:
        raise MarvelError(f"{path} holds no query.")
    return found


def judge(
    collection: Collection,
    embedder: Embedder,
    queries: Sequence[Labelled],
    *,
    ks: Sequence[int] = KS,
    method: str = "exact",
    dimension: int | None = None,
    seed: int = 0,
) -> Judgement:
    """Searches every query among what it asks for, copies not folded, and scores the answers."""
    vectors = embedder.encode([query.item for query in queries])
    ranked = np.full((len(queries), max(ks)), -1, np.int64)
    for kind in dict.fromkeys(query.kind for query in queries):
        own = [place for place, query in enumerate(queries) if query.kind == kind]
        found = collection.search(
            vectors[own],
            k=max(ks),
            kind=kind,
            method=method,
            dimension=dimension,
            collapse=False,
            compare=False,
        )
        for place, one in zip(own, found, strict=True):
            ranked[place, : len(one.hits)] = [hit.row for hit in one.hits]
    rows, unknown = _rows(collection, queries)
    judged = metrics.judge(ranked, rows)
    hits = {k: judged.hit(k) for k in ks}
    names = [f"{query.item.modality} -> {query.kind or 'any'}" for query in queries]
    groups = []
    for name in ("all", *sorted(set(names))):
        own = [place for place, one in enumerate(names) if name in ("all", one)]
        intervals = {k: metrics.bootstrap_interval(hits[k][own], seed=seed) for k in ks}
        groups.append(GroupScores(name, len(own), intervals))
    return Judgement(tuple(groups), unknown)


def _rows(collection: Collection, queries: Sequence[Labelled]) -> tuple[list[np.ndarray], int]:
    """The rows of the right answers; one that is not there has a row beyond the last."""
    found, unknown = [], 0
    for query in queries:
        rows = collection.rows_of(query.relevant)
        lacking = np.flatnonzero(rows < 0)
        rows[lacking] = len(collection) + np.arange(len(lacking))
        unknown += len(lacking)
        found.append(rows)
    return found, unknown


def _are_ids(values: list[Any]) -> bool:
    return all(isinstance(value, str) for value in values)
