"""Which ids occur twice, and which name what no pool and no file of queries has."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from marvel_jax.data.doctor_layout import LayoutFile
from marvel_jax.data.doctor_lines import NEGATIVE, POSITIVE, LineFacts, format_id
from marvel_jax.data.doctor_problems import Kind, Problem

_LINKS = (
    (POSITIVE, Kind.DANGLING_POSITIVE, "positive"),
    (NEGATIVE, Kind.DANGLING_NEGATIVE, "negative"),
)


@dataclass(frozen=True)
class IdTable:
    """The ids of a file [N] with their lines, and sorted for looking up. 20 bytes an id."""

    name: str
    ids: np.ndarray
    lines: np.ndarray
    ordered: np.ndarray

    @classmethod
    def of(cls, file: LayoutFile, facts: LineFacts) -> "IdTable":
        return cls(file.name, facts.ids, facts.id_lines.astype(np.int32), np.sort(facts.ids))

    def lacks(self, ids: np.ndarray) -> np.ndarray:
        """Which ids it does not have: bool, as long as `ids`."""
        return ~_within(ids, self.ordered)


def duplicates(table: IdTable) -> Iterator[Problem]:
    """Every line whose id an earlier line has."""
    order = np.argsort(table.ids, kind="stable")
    ids = table.ids[order]
    repeats = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    firsts = order[np.searchsorted(ids, ids[repeats])]
    places = order[repeats]
    for place in np.argsort(places).tolist():
        again, first = int(places[place]), int(firsts[place])
        id = format_id(table.ids[again])
        line = int(table.lines[again])
        message = f"id {id} was used before, on line {int(table.lines[first])}"
        yield Problem(Kind.DUPLICATE_ID, table.name, line, id, message)


def dangling_links(
    file: LayoutFile, facts: LineFacts, pools: Sequence[IdTable]
) -> Iterator[Problem]:
    """Every positive and negative of queries that none of the pools has."""
    lost = np.flatnonzero(_lacked(facts.links, pools))
    where = " or ".join(pool.name for pool in pools)
    for place in lost.tolist():
        owner = int(facts.link_owners[place])
        kind, word = next(
            (kind, word) for value, kind, word in _LINKS if value == facts.link_kinds[place]
        )
        query, candidate = format_id(facts.ids[owner]), format_id(facts.links[place])
        yield Problem(
            kind,
            file.name,
            int(facts.id_lines[owner]),
            query,
            f"query {query} has the {word} {candidate}, which is not in {where}",
        )


def dangling_qrels(
    file: LayoutFile, facts: LineFacts, queries: IdTable | None, pools: Sequence[IdTable]
) -> Iterator[Problem]:
    """Every line of qrels that names an unknown query, or a candidate that no pool has.

    An answer may be of another data set (OVEN and InfoSeek share many): then a global pool has it.
    """
    lines = facts.id_lines[facts.link_owners]
    lost: list[tuple[int, str, str]] = []
    named = (
        (facts.ids[facts.link_owners], [] if queries is None else [queries]),
        (facts.links, pools),
    )
    for ids, tables in named:
        if tables:
            where = " or ".join(table.name for table in tables)
            lost += (
                (int(lines[place]), format_id(ids[place]), where)
                for place in np.flatnonzero(_lacked(ids, tables)).tolist()
            )
    for line, id, name in sorted(lost, key=lambda one: one[0]):
        yield Problem(Kind.DANGLING_QRELS, file.name, line, id, f"{id} is not in {name}")


def without_relevant(file: LayoutFile, facts: LineFacts, queries: IdTable) -> Iterator[Problem]:
    """Every query to which the qrels give no candidate."""
    answered = facts.ids[facts.link_owners][facts.link_kinds == POSITIVE]
    for place in np.flatnonzero(~_within(queries.ids, np.unique(answered))).tolist():
        id = format_id(queries.ids[place])
        line = int(queries.lines[place])
        message = f"query {id} has no relevant candidate in {file.name}"
        yield Problem(Kind.NO_RELEVANT, queries.name, line, id, message)


def out_of_reach(
    file: LayoutFile,
    facts: LineFacts,
    queries: IdTable,
    local: IdTable,
    others: Sequence[IdTable],
) -> Iterator[Problem]:
    """Every query whose answers are all candidates of other sets: its own pool has none."""
    right = facts.link_kinds == POSITIVE
    elsewhere = local.lacks(facts.links) & ~_lacked(facts.links, others)
    owners = facts.ids[facts.link_owners]
    answered, reached = np.unique(owners[right]), np.unique(owners[right & ~elsewhere])
    lost = _within(queries.ids, answered) & ~_within(queries.ids, reached)
    for place in np.flatnonzero(lost).tolist():
        id = format_id(queries.ids[place])
        message = f"no relevant candidate of query {id} in {file.name} is in {local.name}"
        line = int(queries.lines[place])
        yield Problem(Kind.NO_RELEVANT, queries.name, line, id, message)


def not_in_union(local: IdTable, union: IdTable) -> Iterator[Problem]:
    """Every candidate of a local pool that the union pool lacks."""
    for place in np.flatnonzero(union.lacks(local.ids)).tolist():
        id = format_id(local.ids[place])
        message = f"candidate {id} is not in {union.name}"
        yield Problem(Kind.NOT_IN_UNION, local.name, int(local.lines[place]), id, message)


def _lacked(ids: np.ndarray, tables: Sequence[IdTable]) -> np.ndarray:
    """Bool, as long as `ids`: which ids none of the tables has."""
    lost = np.ones(len(ids), bool)
    for table in tables:
        lost &= table.lacks(ids)
    return lost


def _within(ids: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    if not len(ordered):
        return np.zeros(len(ids), bool)
    place = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
    return np.asarray(ordered[place] == ids)
