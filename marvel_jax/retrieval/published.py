"""Scores that others published, for columns beside ours: `published.json`, read and matched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from marvel_jax.data.mbeir_counts import UNION_TEST_POOL
from marvel_jax.data.mbeir_sets import SETS
from marvel_jax.files import read_json

Pool = Literal["local", "global"]

_POOL_SLACK = 1e-3  # a few pictures that cannot be read do not make another benchmark


@dataclass(frozen=True)
class PublishedSystem:
    """One row of a table: set name -> percent. `average` as printed, `note` where it needs one."""

    name: str
    scores: Mapping[str, float]
    average: float | None
    note: str


@dataclass(frozen=True)
class PublishedTable:
    """One published table; `pool` is None where the benchmark has no such pools."""

    name: str
    pool: Pool | None
    metric: str
    source: str
    sets: tuple[str, ...]
    systems: tuple[PublishedSystem, ...]


class SetSize(NamedTuple):
    """What tells a published test set from another of its name."""

    name: str
    queries: int
    pool: int


@dataclass(frozen=True)
class Beside:
    """A published table cut to the sets that were evaluated.

    `means` are over those sets alone; the printed averages are over all sixteen.
    """

    table: PublishedTable
    sets: tuple[str, ...]
    means: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "name": self.table.name,
            "pool": self.table.pool,
            "metric": self.table.metric,
            "source": self.table.source,
            "systems": [
                {
                    "name": system.name,
                    "scores": {name: system.scores[name] for name in self.sets},
                    "mean": round(self.means[system.name], 2),
                    "note": system.note,
                }
                for system in self.table.systems
            ],
        }


@cache
def published_tables() -> tuple[PublishedTable, ...]:
    """The tables of `published.json`."""
    found = read_json(Path(__file__).with_name("published.json"))
    return tuple(
        PublishedTable(
            name=table["name"],
            pool=table["pool"],
            metric=table["metric"],
            source=table["source"],
            sets=tuple(table["sets"]),
            systems=tuple(
                PublishedSystem(
                    name=system["name"],
                    scores={
                        name: score
                        for name, score in zip(table["sets"], system["scores"], strict=True)
                        if score is not None
                    },
                    average=system.get("average"),
                    note=system.get("note", ""),
                )
                for system in table["systems"]
            ),
        )
        for table in found["tables"]
    )


def published_names(sizes: Sequence[SetSize]) -> tuple[str, ...]:
    """Those of the sets that are M-BEIR's own, in M-BEIR's order.

    A name is not enough: a synthetic or a cut folder has the same names. The number of queries
    must be the published one, and the local pool's size within a thousandth of it.
    """
    found = {one.name: one for one in sizes}
    return tuple(
        known.full_name
        for known in SETS
        if (one := found.get(known.full_name)) is not None
        and one.queries == known.test_queries
        and abs(one.pool - known.pool) <= _POOL_SLACK * known.pool
    )


def beside(sizes: Sequence[SetSize], *, global_size: int) -> tuple[Beside, ...]:
    """The published tables that may stand beside an evaluation of these sets; often none.

    Those of the global pool need it whole: `global_size` within a thousandth of the published one.
    """
    names = published_names(sizes)
    if not names:
        return ()
    cut = []
    for table in published_tables():
        if table.pool is None or not set(names) <= set(table.sets):
            continue
        if table.pool == "global" and abs(global_size - UNION_TEST_POOL) > (
            _POOL_SLACK * UNION_TEST_POOL
        ):
            continue
        means = {
            system.name: sum(system.scores[name] for name in names) / len(names)
            for system in table.systems
        }
        cut.append(Beside(table, names, means))
    return tuple(cut)
