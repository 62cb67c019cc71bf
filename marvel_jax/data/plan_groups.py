"""Which queries are drawn together: the groups of a plan and their shares of the batches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from marvel_jax.data.mixture import PART_RANGE
from marvel_jax.errors import MarvelError

Batches = Literal["mixed", "homogeneous", "interleaved"]


@dataclass(frozen=True)
class PartShare:
    """One part of a mixture: its share of all batches (None: by size), and its tasks' within it.

    `task_weights` maps a task's id to its share of the part (None: by size; a task that is not
    named is left out).
    """

    weight: float | None = None
    task_weights: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        if self.weight is not None and not self.weight > 0:
            raise MarvelError(f"weight is {self.weight}: a part of a mixture needs more than 0.")


class Group(NamedTuple):
    """Queries that walk through one seeded order of their own."""

    name: str  # "Task 3"; begins a sentence
    members: np.ndarray  # [n] int64: queries
    share: float  # of all queries drawn
    seed: tuple[int, ...]  # part of the seed of its order


def make_groups(
    tasks: np.ndarray,
    datasets: np.ndarray,
    *,
    parts: Sequence[PartShare],
    per_set: bool,
) -> list[Group]:
    """The groups of a source's queries, with shares that add up to 1.

    Takes each query's task and data set [Nq]; data sets say the part too, as `data.mixture` numbers
    them. A group is a task of a part or, with `per_set`, of one data set.

    Raises:
      MarvelError: a weight names a task without queries, there is nothing to train on, or weights
        are given for some parts only or for another number of parts.
    """
    part_of = datasets // PART_RANGE
    found = int(part_of.max(initial=0)) + 1
    if found > len(parts):
        raise MarvelError(f"The source has {found} parts, but shares are given for {len(parts)}.")
    sizes = [
        int(np.isin(tasks[part_of == number], _drawn_tasks(part, tasks)).sum())
        for number, part in enumerate(parts)
    ]
    groups = []
    for number, (part, share) in enumerate(zip(parts, _part_shares(parts, sizes), strict=True)):
        where = f" of part {number}" if len(parts) > 1 else ""
        own = np.flatnonzero(part_of == number)
        for task, task_share in _task_shares(tasks[own], part.task_weights, where).items():
            members = own[tasks[own] == task]
            if not per_set:
                seed: tuple[int, ...] = (task,) if number == 0 else (task, number)
                groups.append(Group(f"Task {task}{where}", members, share * task_share, seed))
                continue
            for dataset in np.unique(datasets[members]).tolist():
                chosen = members[datasets[members] == dataset]
                of_task = len(chosen) / len(members)
                name = f"Task {task} of data set {dataset % PART_RANGE}{where}"
                # Counted from 1: zeros at the end of a seed do not count.
                seed = (task, dataset + 1, 1)
                groups.append(Group(name, chosen, share * task_share * of_task, seed))
    return groups


def _drawn_tasks(part: PartShare, tasks: np.ndarray) -> list[int]:
    if part.task_weights is None:
        return list(np.unique(tasks))
    return [task for task, weight in part.task_weights.items() if weight > 0]


def _part_shares(parts: Sequence[PartShare], sizes: Sequence[int]) -> list[float]:
    weights = [part.weight for part in parts]
    given = [weight for weight in weights if weight is not None]
    if len(given) not in (0, len(parts)):
        raise MarvelError(
            f"Of the mixture's {len(parts)} parts {len(given)} have a weight: give each one, or "
            "none, and the parts come by their size."
        )
    chosen = given or [float(size) for size in sizes]
    return [weight / (sum(chosen) or 1) for weight in chosen]


def _task_shares(
    tasks: np.ndarray, weights: Mapping[int, float] | None, where: str
) -> dict[int, float]:
    """Task id -> share of a part, in the order of ids, adding up to 1."""
    present, sizes = np.unique(tasks, return_counts=True)
    found = dict(zip(present.tolist(), sizes.tolist(), strict=True))
    wanted = dict(found) if weights is None else dict(weights)
    for task, weight in wanted.items():
        if not weight >= 0:
            raise MarvelError(f"task_weights{where} gives task {task} {weight}: give 0 or more.")
        if weight > 0 and task not in found:
            raise MarvelError(
                f"task_weights{where} names task {task}, but the source has no query of it: it has "
                f"tasks {', '.join(map(str, found)) or 'none'}."
            )
    total = sum(wanted.values())
    if not total > 0:
        raise MarvelError(
            f"There is nothing to train on{where}: no query, or no task with a weight."
        )
    return {task: weight / total for task, weight in sorted(wanted.items()) if weight > 0}
