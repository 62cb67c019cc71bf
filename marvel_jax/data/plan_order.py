"""Which queries each step has: groups, each walked in seeded epochs, in their shares."""

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from marvel_jax.data.plan_distinct import Copies, spread
from marvel_jax.data.plan_groups import Group
from marvel_jax.errors import MarvelError

_ORDER = 0  # what a random stream is for: part of its seed
_LEAST_PERIOD = 256  # steps over which task shares are met, where an epoch is shorter


class QueryOrder:
    """The queries of every step, as a pure function of (seed, step).

    A batch is made of runs of `run` queries of one group (1 mixes all groups in every batch, the
    whole batch makes each of one group), by the groups' shares. Each group walks through its own
    seeded permutations, so a query comes once in an epoch of its group and never twice in a batch.
    With `copies`, queries are moved within an epoch so that no batch holds a copy of a query or of
    its only positive within one group, where that can be avoided.

    Raises:
      MarvelError: runs do not fill the batch, or a group has fewer queries than its share of one
        batch.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        batch: int,
        seed: int,
        run: int = 1,
        copies: Copies | None = None,
    ) -> None:
        if run < 1 or batch % run:
            raise MarvelError(
                f"sub_batch is {run}, which does not divide the batch of {batch}: use a divisor."
            )
        self.batch, self._seed, self._run = batch, seed, run
        self._groups = tuple(groups)
        total = sum(len(group.members) for group in groups)
        self.steps_per_epoch = max(1, total // batch)
        period = self.steps_per_epoch * -(-_LEAST_PERIOD // self.steps_per_epoch)
        shares = np.array([group.share for group in groups])
        self._counts = run * _group_counts(shares, batch // run, period)
        self._before = np.concatenate(
            [np.zeros((1, len(groups)), np.int64), np.cumsum(self._counts, axis=0)]
        )
        self._check_counts()
        self._copies = [
            copies if copies is not None and copies.any(group.members) else None for group in groups
        ]
        self._order = functools.lru_cache(maxsize=4 * len(groups))(self._make_order)

    @property
    def used(self) -> np.ndarray:
        """The queries [N] that some step has."""
        return np.sort(np.concatenate([group.members for group in self._groups]))

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
        """`count` queries of a group from place `start` of its endless sequence of epochs."""
        members = self._groups[column].members
        epoch, place = divmod(start, len(members))
        order = self._order(column, epoch)[place : place + count]
        if len(order) < count:
            order = np.concatenate([order, self._order(column, epoch + 1)[: count - len(order)]])
        return members[order]

    def _make_order(self, column: int, epoch: int) -> np.ndarray:
        """The permutation of a group's epoch, with no query twice in the batch that begins it."""
        size = len(self._groups[column].members)
        if size < 2 * int(self._counts[:, column].max()):
            # So few that a batch holds most of them: going round one order never repeats one.
            return self._shuffle(column, 0)
        order = self._shuffle(column, epoch)
        row, old = self._batch_at(column, epoch * size)  # that many still from the epoch before
        if self._copies[column] is not None:
            return self._without_copies(column, epoch, old)
        if old == 0:
            return order
        new = int(self._counts[row, column]) - old
        # Only the first `count` places move, and the tail that we look at lies behind those.
        repeated = np.isin(order, self._shuffle(column, epoch - 1)[size - old :])
        leading = np.flatnonzero(~repeated)[:new]
        return np.concatenate([order[leading], np.delete(order, leading)])

    def _without_copies(self, column: int, epoch: int, old: int) -> np.ndarray:
        """The epoch's permutation with copies in different batches; `old` as in `_make_order`.

        The end, which shares a batch with the next epoch, is chosen first and by this epoch's
        shuffle alone: the next epoch can then ask for it without the epochs before.
        """
        group, copies = self._groups[column], self._copies[column]
        assert copies is not None
        size = len(group.members)
        begun = self._end(column, epoch - 1, old) if old else []
        end = self._end(column, epoch, self._batch_at(column, (epoch + 1) * size)[1])
        order = group.members[self._shuffle(column, epoch)]
        starts = self._batch_starts(column, epoch * size, (epoch + 1) * size)
        bounds = [epoch * size, *starts, (epoch + 1) * size]
        sizes = [stop - start for start, stop in itertools.pairwise(bounds) if stop > start]
        if end:
            sizes = sizes[:-1]
            order = order[~np.isin(order, end)]
        moved = spread(order, sizes, copies, begun=begun)
        return np.searchsorted(group.members, np.concatenate([moved, end]).astype(np.int64))

    def _end(self, column: int, epoch: int, count: int) -> list[int]:
        """The last `count` queries of an epoch without copies, from its shuffle alone."""
        copies, members = self._copies[column], self._groups[column].members
        assert copies is not None
        backwards = members[self._shuffle(column, epoch)[::-1]]
        return copies.without_copies(backwards.tolist(), count)[::-1]

    def _batch_at(self, column: int, place: int) -> tuple[int, int]:
        """(row of the period, places since its start) of the batch that holds a group's place."""
        rest = place % int(self._before[-1, column])
        row = int(np.searchsorted(self._before[:, column], rest, side="right")) - 1
        return row, rest - int(self._before[row, column])

    def _batch_starts(self, column: int, start: int, stop: int) -> list[int]:
        """The places from `start` to before `stop` at which a batch's part of the group begins."""
        period = int(self._before[-1, column])
        within = self._before[:-1, column][self._counts[:, column] > 0]
        rounds = np.arange(start // period, -(-stop // period)) * period
        places = (rounds[:, None] + within).ravel()
        found: list[int] = places[(places >= start) & (places < stop)].tolist()
        return found

    def _shuffle(self, column: int, epoch: int) -> np.ndarray:
        group = self._groups[column]
        task, *rest = group.seed
        return random_stream(self._seed, _ORDER, task, epoch, *rest).permutation(len(group.members))

    def _check_counts(self) -> None:
        for column, group in enumerate(self._groups):
            most, size = int(self._counts[:, column].max()), len(group.members)
            if most > size:
                raise MarvelError(
                    f"{group.name} has {size} queries, but "
                    + (
                        f"its weight asks for {most} of them in one batch of {self.batch}: lower "
                        "its weight or the batch."
                        if self._run == 1
                        else f"a batch of {self.batch} takes {most} of them, in runs of "
                        f"{self._run}: lower the batch or sub_batch, or leave them out."
                    )
                )
            if most == 0:
                raise MarvelError(
                    f"{group.name}'s weight is too small to bring one query into "
                    f"{len(self._counts)} batches: raise it, or leave it out."
                )


def random_stream(*seed: int) -> np.random.Generator:
    """A random stream of its own for each tuple of numbers, the same on every machine."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def _group_counts(shares: np.ndarray, batch: int, period: int) -> np.ndarray:
    """How many places of each batch [period, groups] a group has; every row adds up to `batch`.

    A group gets the whole part of its share in every batch. What is left goes round by smooth
    weighted round-robin: each place to the group that is furthest behind.
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
