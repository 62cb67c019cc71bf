"""Scores of several stages beside one another, with 95% intervals: one table for each pool."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object

POOLS = ("local", "global")

MEAN = "mean"


@dataclass(frozen=True)
class Cell:
    """A score hit@k with its interval (None where there is none).

    `queries` is how many it was judged on (0 for a mean over sets). `change` is the paired
    difference to the same queries without reranking, with its interval. `wrong_modality` is the
    share of the first k answers that are not of the modality asked for.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    queries: int = 0
    change: tuple[float, float, float] | None = None
    wrong_modality: float | None = None

    def text(self) -> str:
        """`0.485 [0.461, 0.509]`, and the change where there is one."""
        found = f"{self.mean:.3f}"
        if self.low is not None and self.high is not None:
            found += f" [{self.low:.3f}, {self.high:.3f}]"
        if self.change is not None:
            mean, low, high = self.change
            found += f" {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
        return found


@dataclass(frozen=True)
class Table:
    """By pool, by set and by column: `cells[pool][set][label]`; the set `MEAN` is over all."""

    columns: tuple[str, ...]
    tasks: Mapping[str, str]  # set -> "t->i"
    cells: Mapping[str, Mapping[str, Mapping[str, Cell]]]

    def lines(self) -> list[str]:
        """For a terminal."""
        lines = []
        for pool, sets in self.cells.items():
            rows = [[f"{pool} pool", "task", *self.columns], *self._rows(sets)]
            lines += _aligned(rows)
        return [*lines, *self._notes()]

    def averages(self) -> list[str]:
        """Means over sets, a column a line, for a terminal."""
        rows = [["", *self.cells, "of another modality"]]
        for label in self.columns:
            found = [sets[MEAN].get(label) for sets in self.cells.values()]
            wrong = _wrong(self.cells.get("global", {}), label)
            means = ["-" if cell is None else cell.text() for cell in found]
            rows.append([label, *means, "-" if wrong is None else f"{wrong:.3f}"])
        return _aligned(rows)

    def markdown(self) -> list[str]:
        """For a document."""
        lines: list[str] = []
        for pool, sets in self.cells.items():
            head = [f"{pool} pool", "task", *self.columns]
            rows = [head, ["---"] * len(head), *self._rows(sets)]
            lines += [*(f"| {' | '.join(row)} |" for row in rows), ""]
        return [*lines, *self._notes()]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "columns": list(self.columns),
            "tasks": dict(self.tasks),
            "pools": {
                pool: {
                    name: {label: vars(cell) for label, cell in row.items()}
                    for name, row in sets.items()
                }
                for pool, sets in self.cells.items()
            },
        }

    def _rows(self, sets: Mapping[str, Mapping[str, Cell]]) -> list[list[str]]:
        rows = [
            [name, self.tasks.get(name, "")]
            + [row[label].text() if label in row else "-" for label in self.columns]
            for name, row in sets.items()
        ]
        shares = [_wrong(sets, label) for label in self.columns]
        if any(share is not None for share in shares):
            told = ["-" if share is None else f"{share:.3f}" for share in shares]
            rows.append(["of another modality", "", *told])
        return rows

    def _notes(self) -> list[str]:
        asked: dict[str, list[int]] = {}
        for name in self.tasks:
            for label, cell in self.cells[POOLS[0]].get(name, {}).items():
                asked.setdefault(label, []).append(cell.queries)
        counts = {label: sum(numbers) for label, numbers in asked.items()}
        if len(set(counts.values())) < 2:
            return []
        told = ", ".join(f"{label}: {count:,}" for label, count in counts.items())
        return [f"queries judged: {told}; a change is paired, over the queries that were reranked"]


def read_columns(columns: Sequence[tuple[str, Path]]) -> Table:
    """A table of the files that `Evaluate` and `Fuse` leave.

    Raises:
      MarvelError: a label twice, or a file that is neither.
    """
    labels = tuple(label for label, _ in columns)
    if len(set(labels)) < len(labels) or not labels:
        raise MarvelError(f"A table needs columns of different names, found {list(labels)}.")
    tasks: dict[str, str] = {}
    cells: dict[str, dict[str, dict[str, Cell]]] = {pool: {} for pool in POOLS}
    for label, path in columns:
        found = read_json_object(path)
        if "mean_local" in found:
            tasks |= {one["name"]: one["task"] for one in found["sets"]}
            read = _evaluated(found)
        elif "fusion" in found:
            read = _fused(found)
        else:
            raise MarvelError(f"{path} holds no scores of an evaluation or a fusion.")
        for pool, sets in read.items():
            for name, cell in sets.items():
                cells[pool].setdefault(name, {})[label] = cell
    # The mean last, whatever was read first.
    ordered = {
        pool: {name: sets[name] for name in sorted(sets, key=lambda name: name == MEAN)}
        for pool, sets in cells.items()
    }
    return Table(labels, tasks, {pool: sets for pool, sets in ordered.items() if sets})


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _evaluated(found: Mapping[str, Any]) -> dict[str, dict[str, Cell]]:
    cells: dict[str, dict[str, Cell]] = {}
    for pool in POOLS:
        cells[pool] = {
            one["name"]: Cell(
                **one[f"{pool}_pool"]["hit"][str(one["k"])],
                queries=one["num_queries"],
                wrong_modality=one[f"{pool}_pool"]["wrong_modality"],
            )
            for one in found["sets"]
        }
        cells[pool][MEAN] = Cell(**found[f"mean_{pool}"])
    return cells


def _fused(found: Mapping[str, Any]) -> dict[str, dict[str, Cell]]:
    cells: dict[str, dict[str, Cell]] = {}
    for pool, one in found["pools"].items():
        cells[pool] = {
            judged["name"]: Cell(
                **judged["fused"],
                queries=judged["num_queries"],
                change=_three(judged["change"]),
            )
            for judged in one["sets"]
        }
        change = _three(one["mean_change"])
        cells[pool][MEAN] = Cell(one["mean_fused"], change=change)
    return cells


def _three(interval: Mapping[str, float]) -> tuple[float, float, float]:
    return interval["mean"], interval["low"], interval["high"]


def _wrong(sets: Mapping[str, Mapping[str, Cell]], label: str) -> float | None:
    shares = [row[label].wrong_modality for row in sets.values() if label in row]
    known = [share for share in shares if share is not None]
    return sum(known) / len(known) if known else None
