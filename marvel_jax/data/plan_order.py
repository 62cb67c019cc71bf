"""Which queries each step has: tasks mixed within every batch, each walked in seeded epochs."""

import functools
from collections.abc import Mapping

import numpy as np

from marvel_jax.errors import MarvelError

_ORDER = 0  # what a random stream is for: part of its seed
_LEAST_PERIOD = 256  # steps over which task shares are met, where an epoch is shorter


class TaskOrder:
    """The queries of every step, as a pure function of (seed, step).

    Tasks are mixed within each batch in fixed proportion; each walks through its own seeded
    permutations, so a query comes once in an epoch of its task and never twice in a batch.

    Raises:
      MarvelError: a weight names a task without queries, or a task has fewer queries than its
        share of one batch.
    """

    def __init__(
        self, tasks: np.ndarray, *, batch: int, seed: int, weights: Mapping[int, float] | None
    ) -> None:
        """Takes the task of every query [Nq]; `weights` is as in `PlanConfig.task_weights`."""
        shares = _shares(tasks, weights)
        self.batch, self._seed = batch, seed
        self._tasks = tuple(shares)
        self._members = {task: np.flatnonzero(tasks == task) for task in shares}
        total = sum(map(len, self._members.values()))
        self.steps_per_epoch = max(1, total // batch)
        period = self.steps_per_epoch * -(-_LEAST_PERIOD // self.steps_per_epoch)
        self._counts = _task_counts(np.array(list(shares.values())), batch, period)
        self._before = np.concatenate(
            [np.zeros((1, len(shares)), np.int64), np.cumsum(self._counts, axis=0)]
        )
        self._check_counts()
        self._order = functools.lru_cache(maxsize=4 * len(shares))(self._make_order)

    @property
    def used(self) -> np.ndarray:
        """The queries [N] that some step has."""
        return np.sort(np.concatenate(list(self._members.values())))

    def queries(self, step: int) -> np.ndarray:
        """The queries [B] of one step, counted from 0."""
        if step < 0:
            raise MarvelError(f"step is {step}: steps count from 0.")
        rounds, row = divmod(step, len(self._counts))
        starts = rounds * self._before[-1] + self._before[row]
        return np.concatenate(
            [
                self._walk(column, int(start), int(self._counts[row, column]))
                for column, start in enumerate(starts)
            ]
        )

    def _walk(self, column: int, start: int, count: int) -> np.ndarray:
        """`count` queries of a task from place `start` of its endless sequence of epochs."""
        members = self._members[self._tasks[column]]
        epoch, place = divmod(start, len(members))
        order = self._order(column, epoch)[place : place + count]
        if len(order) < count:
            order = np.concatenate([order, self._order(column, epoch + 1)[: count - len(order)]])
        return members[order]

    def _make_order(self, column: int, epoch: int) -> np.ndarray:
        """The permutation of a task's epoch, with no query twice in the batch that begins it."""
        size = len(self._members[self._tasks[column]])
        if size < 2 * int(self._counts[:, column].max()):
            # So few that a batch holds most of them: going round one order never repeats one.
            return self._shuffle(column, 0)
        order = self._shuffle(column, epoch)
        rest = epoch * size % int(self._before[-1, column])
        row = int(np.searchsorted(self._before[:, column], rest, side="right")) - 1
        old = rest - int(self._before[row, column])  # of that batch, still from the epoch before
        if old == 0:
            return order
        new = int(self._counts[row, column]) - old
        # Only the first `count` places move, and the tail that we look at lies behind those.
        repeated = np.isin(order, self._shuffle(column, epoch - 1)[size - old :])
        leading = np.flatnonzero(~repeated)[:new]
        return np.concatenate([order[leading], np.delete(order, leading)])

    def _shuffle(self, column: int, epoch: int) -> np.ndarray:
        task = self._tasks[column]
        size = len(self._members[task])
        return random_stream(self._seed, _ORDER, task, epoch).permutation(size)

    def _check_counts(self) -> None:
        for column, task in enumerate(self._tasks):
            most, size = int(self._counts[:, column].max()), len(self._members[task])
            if most > size:
                raise MarvelError(
                    f"Task {task} has {size} queries, but its weight asks for {most} of them in "
                    f"one batch of {self.batch}: lower its weight or the batch."
                )
            if most == 0:
                raise MarvelError(
                    f"Task {task}'s weight is too small to bring one query into "
                    f"{len(self._counts)} batches: raise it, or leave the task out."
                )


def random_stream(*seed: int) -> np.random.Generator:
    """A random stream of its own for each tuple of numbers, the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def _shares(tasks: np.ndarray, weights: Mapping[int, float] | None) -> dict[int, float]:
    """Task id -> share of a batch, in the order of ids, adding up to 1."""
    present, sizes = np.unique(tasks, return_counts=True)
    found = dict(zip(present.tolist(), sizes.tolist(), strict=True))
    wanted = dict(found) if weights is None else dict(weights)
    for task, weight in wanted.items():
        if not weight >= 0:
            raise MarvelError(f"task_weights gives task {task} {weight}: give 0 or more.")
        if weight > 0 and task not in found:
            raise MarvelError(
                f"task_weights names task {task}, but the source has no query of it: it has tasks "
                f"{', '.join(map(str, found)) or 'none'}."
            )
    total = sum(wanted.values())
    if not total > 0:
        raise MarvelError("There is nothing to train on: no query, or no task with a weight.")
    return {task: weight / total for task, weight in sorted(wanted.items()) if weight > 0}


def _task_counts(shares: np.ndarray, batch: int, period: int) -> np.ndarray:
    """How many queries of each task [period, tasks] each batch takes; every row adds up to it.

    A task gets the whole part of its share in every batch. What is left goes round by smooth
    weighted round-robin: each place to the task that is furthest behind.
    """
    exact = shares * batch
    whole = np.floor(exact).astype(np.int64)
    rest = exact - whole
    counts = np.tile(whole, (period, 1))
    credit = np.zeros(len(shares))
    for row in counts:
        credit += rest
        for _ in range(batch - int(whole.sum())):
            behind = int(np.argmax(credit))
            credit[behind] -= 1
            row[behind] += 1
    return counts
