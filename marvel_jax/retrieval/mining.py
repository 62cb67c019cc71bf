"""Hard negatives for the queries of a training source: search, choose, and write down why.

The stores of queries and pool are encoded before (`retrieval.encode`); this searches them block by
block and writes each block's lines before the next, so that a killed run loses one block.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np

from marvel_jax.data.items import Query, RetrievalSource
from marvel_jax.data.keyed_lines import KeyedWriter, pool_hash, queries_hash
from marvel_jax.data.mined import KIND, VERSION
from marvel_jax.data.teacher import TeacherLists
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import top_k
from marvel_jax.retrieval.mining_lines import LineMaker
from marvel_jax.retrieval.mining_pools import CandidateTable, ContentKeys, datasets_of
from marvel_jax.retrieval.mining_rules import Strategies
from marvel_jax.retrieval.scann_index import ScannIndex
from marvel_jax.retrieval.store import VectorStore

_THIS_DATA = ("count", "source_hash")  # fields of a store's manifest that are not the model's


@dataclasses.dataclass(frozen=True)
class MiningConfig:
    """What decides a file of mined negatives besides the model and the data.

    Attributes:
      strategies: how negatives are chosen, by task.
      pool: `global`, all candidates of the source; `local`, those of the query's data set and of
        the modality that it asks for.
      copies: `content` also leaves out candidates whose content is that of a known positive or of
        one that ranks before; their pictures' files are read. `ids` goes by ids alone.
      record: `all` results with the reason of each, or only those that were `chosen` (a twentieth
        of the bytes).
      seed: of all draws.
    """

    strategies: Strategies = dataclasses.field(default_factory=Strategies)
    pool: Literal["global", "local"] = "global"
    copies: Literal["content", "ids"] = "content"
    record: Literal["all", "chosen"] = "all"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As the manifest has it."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"strategies": self.strategies.to_dict()}


class DistinctQueries(Sequence[Query]):
    """A source's queries, each id once, where it occurs first: training sets repeat queries.

    `places` are theirs among all queries of the source.

    Raises:
      MarvelError: an id occurs again with another task, text or answer.
    """

    def __init__(self, source: RetrievalSource) -> None:
        first: dict[str, tuple[int, int]] = {}
        for place, query in enumerate(source.queries):
            texts = tuple(part for part in query.item.parts if isinstance(part, str))
            asked = hash((query.task.id, texts, query.positives))
            if first.setdefault(query.id, (place, asked))[1] != asked:
                raise MarvelError(
                    f"query {query.id} occurs twice with another task, text or answer: negatives "
                    "are kept by the query's id, so rename one."
                )
        self._queries = source.queries
        self.places = np.array([place for place, _ in first.values()], np.int64)

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> Query: ...
    @overload
    def __getitem__(self, index: slice) -> list[Query]: ...
    def __getitem__(self, index: int | slice) -> Query | list[Query]:
        if isinstance(index, slice):
            return [self._queries[int(place)] for place in self.places[index]]
        return self._queries[int(self.places[index])]


def mine(
    source: RetrievalSource,
    out: Path | str,
    *,
    queries: VectorStore,
    pool: VectorStore,
    config: MiningConfig,
    made_by: Mapping[str, Any],
    index: ScannIndex | None = None,
    teacher: TeacherLists | None = None,
    block: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Writes the mined negatives of every query of a source; returns the file's manifest.

    Args:
      source: queries and candidates.
      out: the file; `data.mined.with_negatives` reads it. A killed run goes on behind its lines.
      queries: vectors of the distinct queries, with their instructions.
      pool: vectors of all candidates.
      config: how.
      made_by: fields for the manifest that say which model made the vectors; `model_hash` must be
        among them for a training stage to check it.
      index: a ScaNN index of `pool`, searched instead of the exact way; for the global pool.
      teacher: a reranker's scores of the source, for strategies with `teacher_above`.
      block: queries that are searched together.
      progress: told (queries done, queries in all).

    Raises:
      MarvelError: the stores are of other ids, or of two models; an option that needs what is not
        given; a query without a local pool.
    """
    distinct = DistinctQueries(source)
    _check(source, distinct, queries, pool, config, index, teacher)
    manifest = {
        "kind": KIND,
        "version": VERSION,
        **made_by,
        "source_fingerprint": source.fingerprint,
        "queries_hash": queries_hash(source),
        "pool_hash": pool_hash(source),
        "search": "exact" if index is None else "scann",
        "teacher": None if teacher is None else teacher.manifest.get("content_hash"),
        "settings": config.to_dict(),
    }
    writer = KeyedWriter(out, manifest)
    tally = Tally()
    done = set()
    for row in writer.done():
        tally.add(row)
        done.add(row["qid"])
    table = CandidateTable.of(source.candidates)
    maker = LineMaker(
        source,
        pool,
        table,
        strategies=config.strategies,
        seed=config.seed,
        keys=ContentKeys(source.candidates) if config.copies == "content" else None,
        teacher=teacher,
        record=config.record,
    )
    for rows, subset in _pools(distinct, table, config):
        left = [row for row in rows if queries.ids[row] not in done]
        for start in range(0, len(left), block):
            part = left[start : start + block]
            depth = min(config.strategies.depth, len(pool) if subset is None else len(subset))
            vectors = queries.vectors(np.array(part))
            if index is not None:
                found = index.search(vectors, depth)
            else:
                found = top_k(vectors, pool, depth, subset=subset)
            asked = distinct.places[part].tolist()
            lines = [line.to_dict() for line in maker.lines(asked, vectors, found, subset)]
            writer.append(lines)
            for line in lines:
                tally.add(line)
            if progress is not None:
                progress(tally.queries, len(distinct))
    return writer.finish({"counts": tally.to_dict(config.strategies)})


class Tally:
    """How many of each: kept and dropped, in all and by task."""

    def __init__(self) -> None:
        self.queries = 0
        self._negatives: Counter[str] = Counter()
        self._queries: Counter[str] = Counter()
        self._short: Counter[str] = Counter()
        self._reasons: dict[str, Counter[str]] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        """Counts one line."""
        task = row["task"]
        self.queries += 1
        self._queries[task] += 1
        self._negatives[task] += len(row["negatives"])
        self._short[f"{task} {len(row['negatives'])}"] += 1
        self._reasons.setdefault(task, Counter()).update(row["reasons"])

    def to_dict(self, strategies: Strategies) -> dict[str, Any]:
        """Queries, negatives, queries with too few or none, and candidates by reason."""
        by_task: dict[str, Any] = {}
        for task in sorted(self._queries):
            dataset, _, number = task.partition(":")
            wanted = strategies.of(int(dataset), int(number)).k
            by_task[task] = {
                "queries": self._queries[task],
                "negatives": self._negatives[task],
                "queries_with_fewer": sum(self._short[f"{task} {n}"] for n in range(wanted)),
                "queries_with_none": self._short[f"{task} 0"],
                "reasons": dict(self._reasons[task].most_common()),
            }
        totals = {
            name: sum(one[name] for one in by_task.values())
            for name in ("queries", "negatives", "queries_with_fewer", "queries_with_none")
        }
        reasons = sum(self._reasons.values(), Counter())
        return totals | {"reasons": dict(reasons.most_common()), "by_task": by_task}


def _pools(
    distinct: DistinctQueries, table: CandidateTable, config: MiningConfig
) -> Iterator[tuple[list[int], np.ndarray | None]]:
    """Yields (rows of the query store, rows of the pool to seek them in; None is all)."""
    if config.pool == "global":
        yield list(range(len(distinct))), None
        return
    groups: dict[tuple[frozenset[int], str], list[int]] = {}
    for row, query in enumerate(distinct):
        key = (datasets_of(query.dataset), query.task.candidate_modality)
        groups.setdefault(key, []).append(row)
    # All of them before the first is searched: a pool that is missing is told at once.
    pools = [table.local_pool(distinct[rows[0]]) for rows in groups.values()]
    yield from zip(groups.values(), pools, strict=True)


def _check(
    source: RetrievalSource,
    distinct: DistinctQueries,
    queries: VectorStore,
    pool: VectorStore,
    config: MiningConfig,
    index: ScannIndex | None,
    teacher: TeacherLists | None,
) -> None:
    if index is not None and config.pool == "local":
        raise MarvelError(
            "pool='local' cannot be searched with ScaNN, whose index is of the whole store: local "
            "pools are small, search them exactly, or mine in pool='global'."
        )
    if index is not None and index.store.content_hash != pool.content_hash:
        raise MarvelError(f"The ScaNN index is of {index.store.path}, not of {pool.path}.")
    if config.strategies.asks_teacher and teacher is None:
        raise MarvelError("teacher_above needs a reranker's scores: give a teacher file.")
    fields = dataclasses.asdict(queries.manifest)
    pool.require(**{name: fields[name] for name in fields if name not in _THIS_DATA})
    for store, names, what in (
        (queries, (query.id for query in distinct), "queries"),
        (pool, (candidate.id for candidate in source.candidates), "candidates"),
    ):
        expected = list(names)
        if list(store.ids) != expected:
            raise MarvelError(
                f"{store.path} does not hold the {len(expected):,} distinct {what} of the source "
                f"in their order (it has {len(store):,} vectors): encode the source again."
            )
