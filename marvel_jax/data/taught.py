"""A source with its teachers' lists, and what a plan draws from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data.items import Candidate, Query, RetrievalSource
from marvel_jax.data.mixture import PART_RANGE, Mixture
from marvel_jax.data.teacher import TeacherLists, read_teacher
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes


@dataclass(frozen=True)
class TaughtSource:
    """A `RetrievalSource` whose queries have lists; `ends` are the cumulative shares of `lists`."""

    source: RetrievalSource
    lists: tuple[TeacherLists, ...]
    ends: tuple[float, ...]

    @property
    def queries(self) -> Sequence[Query]:
        return self.source.queries

    @property
    def candidates(self) -> Sequence[Candidate]:
        return self.source.candidates

    @property
    def instructions(self) -> Mapping[tuple[int, str, str], tuple[str, ...]]:
        return self.source.instructions

    @property
    def fingerprint(self) -> str:
        """Of the source and of the teachers' files."""
        told = [str(one.manifest["content_hash"]).encode() for one in self.lists]
        return hash_bytes(self.source.fingerprint.encode(), b"taught", *told)

    def candidate_index(self, id: str) -> int:
        """The position of a candidate; MarvelError for an unknown one."""
        return self.source.candidate_index(id)


def with_teachers(
    source: RetrievalSource,
    paths: Sequence[Path | str],
    *,
    shares: Sequence[float] = (),
    retrieved_by: str | None = None,
    taught_by: str | None = None,
) -> TaughtSource:
    """The source with a list of every file for each of its queries.

    Args:
      source: the queries and candidates that the lists were made for. Mined negatives may have
        been joined to it: what counts is what it asks and finds.
      paths: the files of teacher scores, their manifests beside them.
      shares: how often a list of each is drawn; () = alike.
      retrieved_by: `model_hash` of the model that must have retrieved the lists.
      taught_by: `teacher_hash` of the reranker that must have scored them.

    Raises:
      MarvelError: files that do not fit the source, as `read_teacher` refuses them, all of them in
        one message; or files of several teachers, whose logits do not compare.
    """
    lists, faults = [], []
    for path in paths:
        try:
            lists.append(
                read_teacher(path, source, teacher_hash=taught_by, model_hash=retrieved_by)
            )
        except MarvelError as error:
            faults.append(str(error))
    if faults:
        raise MarvelError(" ".join(faults))
    teachers = [one.manifest.get("teacher_hash") for one in lists]
    if len(set(teachers)) > 1:
        told = ", ".join(f"{path} ({by})" for path, by in zip(paths, teachers, strict=True))
        raise MarvelError(
            f"The lists were scored by different teachers: {told}. Use one teacher's."
        )
    given = np.array(shares or [1.0] * len(lists), np.float64)
    ends = given.cumsum() / given.sum()
    ends[-1] = 1.0  # rounded below 1, a draw between the two would ask for one list more
    return TaughtSource(source, tuple(lists), tuple(ends.tolist()))


class ListScores(NamedTuple):
    """A teacher's judgement of lists of K candidates; numbers are 0 where there is none."""

    yes: Any  # [B, K] float32
    no: Any  # [B, K] float32
    recall: Any  # [B, K] float32
    valid: Any  # [B, K] bool
    weight: Any  # [B] float32: of P(Yes) in a fused teacher


class QueryLists(NamedTuple):
    """The lists of all queries of a source: n of them, up to F of which belong to a query."""

    rows: np.ndarray  # [Nq, F] int32, -1 = none
    ends: np.ndarray  # [Nq, F] float64: cumulative shares
    candidates: np.ndarray  # [n, K] int32, -1 = none
    scores: np.ndarray  # [3, n, K] float32: yes, no, recall
    weight: np.ndarray  # [Nq] float32

    @property
    def width(self) -> int:
        """K."""
        return int(self.candidates.shape[1])

    def draw(self, queries: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, ListScores]:
        """One list of each query [B]: candidates [B, K], -1 = none, and the teacher's scores.

        `uniform` [B] are random numbers in [0, 1).
        """
        choice = (uniform[:, None] >= self.ends[queries]).sum(axis=1)
        rows = self.rows[queries, choice]
        there = (rows >= 0)[:, None]
        candidates = np.where(there, self.candidates[rows], -1)
        valid = candidates >= 0
        yes, no, recall = np.where(valid, self.scores[:, rows], np.float32(0))
        return candidates, ListScores(yes, no, recall, valid, self.weight[queries])


def lists_of(
    source: RetrievalSource,
    *,
    depth: int,
    weight: float = 1.0,
    task_weights: Mapping[str, float] | None = None,
) -> QueryLists:
    """All lists of a source or a mixture, the `depth` best of each by the recall's cosine.

    Queries of parts without a teacher have none. `task_weights` are the weights of P(Yes) of some
    tasks ("9:0": data set 9, task 0), `weight` that of the others.

    Raises:
      MarvelError: no part has a teacher, or a weight is for a task that no query has.
    """
    parts = source.parts if isinstance(source, Mixture) else [("", source)]
    most = max((len(one.lists) for _, one in parts if isinstance(one, TaughtSource)), default=0)
    if most == 0:
        raise MarvelError("No source has a teacher: name a file of teacher scores (data.teacher).")
    rows, ends, candidates, scores = [], [], [], []
    lists = first = 0
    for _, one in parts:
        shape = (len(one.queries), most)
        own_rows, own_ends = np.full(shape, -1, np.int32), np.ones(shape)
        taught = zip(one.lists, one.ends, strict=True) if isinstance(one, TaughtSource) else ()
        for column, (lines, end) in enumerate(taught):
            places, values = _best(lines, depth)
            own_rows[:, column] = lines.lines + lists
            own_ends[:, column] = end
            candidates.append(np.where(places >= 0, places + first, -1).astype(np.int32))
            scores.append(values)
            lists += len(places)
        rows.append(own_rows)
        ends.append(own_ends)
        first += len(one.candidates)
    return QueryLists(
        np.concatenate(rows),
        np.concatenate(ends),
        np.concatenate(candidates),
        np.concatenate(scores, axis=1),
        _weights(source, weight, task_weights or {}),
    )


def _best(lists: TeacherLists, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Candidates [n, depth] and scores [3, n, depth]; ties keep the file's order."""
    order = np.argsort(np.where(lists.valid, -lists.recall, np.inf), axis=1, kind="stable")
    order = order[:, :depth]
    short = [(0, 0), (0, depth - order.shape[1])]

    def take(values: np.ndarray, padding: float) -> np.ndarray:
        return np.pad(np.take_along_axis(values, order, axis=1), short, constant_values=padding)

    scores = [take(values, 0.0) for values in (lists.yes, lists.no, lists.recall)]
    return take(lists.candidates, -1), np.stack(scores)


def _weights(
    source: RetrievalSource, weight: float, task_weights: Mapping[str, float]
) -> np.ndarray:
    """The weight of P(Yes) of every query [Nq] float32."""
    found = np.full(len(source.queries), weight, np.float32)
    if not task_weights:
        return found
    used = set()
    for place, query in enumerate(source.queries):
        task = f"{query.dataset % PART_RANGE}:{query.task.id}"
        if task in task_weights:
            found[place] = task_weights[task]
            used.add(task)
    unused = sorted(task_weights.keys() - used)
    if unused:
        raise MarvelError(
            f"distillation.fused_task_weights: no query is of {', '.join(unused)}, which are data "
            "set and task as in '9:0': leave them out."
        )
    return found
