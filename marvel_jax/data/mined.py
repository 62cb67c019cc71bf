"""Mined negatives on disk: one line a query, and a source whose queries carry them.

A line says what was found and why each was kept or not:

    {"qid": "3:17", "task": "3:2", "negatives": ["3:8", ...], "positive_similarity": 0.71,
     "positive_rank": 4, "candidates": [...], "similarities": [...], "ranks": [...],
     "modalities": [...], "reasons": [...]}

The last five are columns of one table. Ranks count from 1 in the search result, positives counted
too; null is a candidate that the search did not return (drawn from the pool) or a positive that
is not among the results.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from marvel_jax.data.items import Candidate, Query, RetrievalSource
from marvel_jax.data.keyed_lines import Offenders, check_origin, read_manifest
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, read_jsonl

KIND, VERSION = "mined negatives", 1

_ADVICE = "Nothing is trained on it: mine again for this source."
_COLUMNS = ("candidates", "similarities", "ranks", "modalities", "reasons")


@dataclass(frozen=True)
class MinedLine:
    """What was mined for one query; the five columns are of one length."""

    qid: str
    task: str  # data set and M-BEIR task, e.g. "9:0" for MSCOCO's t->i
    negatives: tuple[str, ...]  # chosen, in the order of the choice
    positive_similarity: float  # of the best positive, wherever it ranks
    positive_rank: int | None  # of the first positive
    candidates: tuple[str, ...]
    similarities: tuple[float, ...]
    ranks: tuple[int | None, ...]
    modalities: tuple[str, ...]
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The line as JSON has it. Lists are not copied: millions of lines are written."""
        return self.__dict__

    @classmethod
    def of(cls, row: Mapping[str, Any], where: str) -> "MinedLine":
        """A line that was read.

        Raises:
          MarvelError: a field is missing or of another kind, or the columns differ in length.
        """
        try:
            line = cls(
                qid=row["qid"],
                task=row["task"],
                negatives=tuple(row["negatives"]),
                positive_similarity=row["positive_similarity"],
                positive_rank=row["positive_rank"],
                **{name: tuple(row[name]) for name in _COLUMNS},
            )
        except (KeyError, TypeError) as error:
            raise MarvelError(f"{where}: not a line of mined negatives ({error!r}).") from error
        if not isinstance(line.qid, str) or not all(isinstance(n, str) for n in line.negatives):
            raise MarvelError(f"{where}: qid and negatives must be ids, found {line.qid!r}.")
        lengths = {len(getattr(line, name)) for name in _COLUMNS}
        if len(lengths) != 1:
            raise MarvelError(
                f"{where}: query {line.qid}: {', '.join(_COLUMNS)} differ in length: "
                f"{sorted(lengths)}."
            )
        return line


def read_mined(path: Path | str) -> tuple[dict[str, Any], Iterator[MinedLine]]:
    """The manifest of a file of mined negatives, and its lines.

    Raises:
      MarvelError: the file or its manifest is missing, damaged or of another kind; later, a line
        cannot be read.
    """
    manifest = read_manifest(path, kind=KIND, version=VERSION)
    rows = read_jsonl(path)
    return manifest, (MinedLine.of(row, f"{path}, line {number}") for number, row in rows)


def with_negatives(
    source: RetrievalSource,
    path: Path | str,
    *,
    model_hash: str | None = None,
    weights_hash: str | None = None,
) -> "MinedSource":
    """The source with every query's mined negatives in the place of its own.

    Everything is read and checked here, before a step is trained: about 40 microseconds a query.
    A query that occurs several times in the source has the same negatives each time.

    Args:
      source: the queries and candidates that the negatives were mined for.
      path: the mined file, its manifest beside it.
      model_hash: what `Embedder.model_hash` of the mining model must have been; None asks nothing.
      weights_hash: what the hash of the mining model's weight files must have been.

    Raises:
      MarvelError: the file was made by another model, of another pool or query set; a query has
        no line, a line no query, or a query several; a list is empty, holds the same id twice, an
        id that is no candidate, or a known positive of its query. All offenders are counted and
        the first few named.
    """
    path = Path(path)
    manifest, lines = read_mined(path)
    expected = {"model_hash": model_hash, "weights_hash": weights_hash}
    check_origin(path, manifest, source, expected)
    offenders = Offenders()
    line_of: dict[str, int] = {}
    ids: list[bytes] = []
    counts: list[int] = []
    for line in lines:
        if line.qid in line_of:
            offenders.add("queries with several lines", line.qid)
            continue
        line_of[line.qid] = len(counts)
        counts.append(len(line.negatives))
        ids += [one.encode() for one in line.negatives]
        if not line.negatives:
            offenders.add("queries without a negative", line.qid)
        if len(set(line.negatives)) < len(line.negatives):
            offenders.add("queries with a negative twice", line.qid)
    offsets = np.cumsum([0, *counts], dtype=np.int64)
    negatives = np.array(ids, np.bytes_)
    used, lines_of_queries = _match(source, line_of, negatives, offsets, offenders)
    for qid, number in line_of.items():
        if not used[number]:
            offenders.add("lines for no query of the source", qid)
    for name in np.unique(negatives):
        if _unknown(source, name.decode()):
            offenders.add("negatives that are no candidate of the pool", name.decode())
    offenders.refuse(f"{path} does not fit the source", advice=_ADVICE)
    queries = MinedQueries(source.queries, negatives, offsets, lines_of_queries)
    return MinedSource(source, queries, manifest)


def _match(
    source: RetrievalSource,
    line_of: Mapping[str, int],
    negatives: np.ndarray,
    offsets: np.ndarray,
    offenders: Offenders,
) -> tuple[np.ndarray, np.ndarray]:
    """Which lines are used [lines], and each query's line [queries]."""
    used = np.zeros(len(line_of), bool)
    lines = np.zeros(len(source.queries), np.int32)
    missing: set[str] = set()
    for place, query in enumerate(source.queries):
        number = line_of.get(query.id)
        if number is None:
            if query.id not in missing:
                missing.add(query.id)
                offenders.add("queries without a line", query.id)
            continue
        lines[place] = number
        if used[number]:
            continue
        used[number] = True
        chosen = {name.decode() for name in negatives[offsets[number] : offsets[number + 1]]}
        for gold in sorted(chosen.intersection(query.positives)):
            offenders.add("negatives that are a positive of their query", f"{query.id} -> {gold}")
    return used, lines


def _unknown(source: RetrievalSource, name: str) -> bool:
    try:
        source.candidate_index(name)
    except MarvelError:
        return True
    return False


@dataclass(frozen=True)
class MinedQueries(Sequence[Query]):
    """A source's queries, each with its mined negatives when it is asked for."""

    queries: Sequence[Query]
    negatives: np.ndarray  # [sum] ids as UTF-8 bytes
    offsets: np.ndarray  # [lines + 1]
    lines: np.ndarray  # [queries] int32

    def __len__(self) -> int:
        return len(self.queries)

    @overload
    def __getitem__(self, index: int) -> Query: ...
    @overload
    def __getitem__(self, index: slice) -> list[Query]: ...
    def __getitem__(self, index: int | slice) -> Query | list[Query]:
        if isinstance(index, slice):
            places = range(*index.indices(len(self)))
            return [
                self._with_negatives(query, place)
                for query, place in zip(self.queries[index], places, strict=True)
            ]
        return self._with_negatives(self.queries[index], index)

    def __iter__(self) -> Iterator[Query]:
        for place, query in enumerate(self.queries):
            yield self._with_negatives(query, place)

    def _with_negatives(self, query: Query, place: int) -> Query:
        line = int(self.lines[place])
        ids = self.negatives[self.offsets[line] : self.offsets[line + 1]]
        return replace(query, negatives=tuple(name.decode() for name in ids))


@dataclass(frozen=True)
class MinedSource:
    """A `RetrievalSource` whose hard negatives are mined ones."""

    source: RetrievalSource
    queries: MinedQueries
    manifest: Mapping[str, Any]

    @property
    def candidates(self) -> Sequence[Candidate]:
        return self.source.candidates

    @property
    def instructions(self) -> Mapping[tuple[int, str, str], tuple[str, ...]]:
        return self.source.instructions

    @cached_property
    def fingerprint(self) -> str:
        """Of the source and of the mined file."""
        content = str(self.manifest["content_hash"])
        return hash_bytes(self.source.fingerprint.encode(), content.encode())

    def candidate_index(self, id: str) -> int:
        """The position of a candidate; MarvelError for an unknown one."""
        return self.source.candidate_index(id)
