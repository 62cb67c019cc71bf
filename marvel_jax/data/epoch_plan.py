"""The epoch plan: which pairs, instructions and rows each step has, from (seed, step) alone."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marvel_jax.data.batch import RowShape, id_hash, pack
from marvel_jax.data.lengths import LengthsIndex
from marvel_jax.errors import MarvelError

_ORDER, _DRAWS = 0, 1  # what a random stream is for: part of its seed
_LEAST_PERIOD = 256  # steps over which task shares are met, where an epoch is shorter
_PROBES = 16  # steps that are packed to choose the row counts


@dataclass(frozen=True)
class PlanConfig:
    """What a training batch is made of.

    `task_weights` maps a task's id to its share of every batch (None: by size; a task that is
    not named is left out). `row_sizes` is how many row counts, and so compilations, to plan for:
    more of them pad less. `max_positives` is the width of the batch's list of known positives,
    widened where a batch needs more.
    """

    global_batch: int
    seed: int
    row: RowShape
    task_weights: Mapping[int, float] | None = None
    row_sizes: int = 2
    max_positives: int = 8

    def __post_init__(self) -> None:
        for field in ("global_batch", "row_sizes", "max_positives"):
            if getattr(self, field) < 1:
                raise MarvelError(f"{field} is {getattr(self, field)}: give at least 1.")
        if self.seed < 0:
            raise MarvelError(f"seed is {self.seed}: give 0 or more.")


class PackingStats(NamedTuple):
    """Shares of the step's rows that are padding, over all shards."""

    padded_tokens: float
    padded_patches: float
    padded_rows: float


class ShardPlan(NamedTuple):
    """One data shard's part: which of the batch's pairs, and where their items go.

    Placement counts the shard's queries first (0..b-1), then its candidates (b..2b-1).
    """

    members: np.ndarray  # [b] int32
    placement: list[list[int]]


class StepPlan(NamedTuple):
    """One global batch. Queries, candidates and prompts do not depend on the number of shards."""

    step: int
    queries: np.ndarray  # [B] int32
    candidates: np.ndarray  # [B] int32: the positive drawn for each query
    prompts: np.ndarray  # [B] int32: which instruction, -1 = the source has none
    positives: np.ndarray  # [B, M] int32: known positives within this batch, -1 = none
    candidate_hash: np.ndarray  # [B, M + 1, 2] uint32: of the candidate, then of the positives
    shards: tuple[ShardPlan, ...]
    row: RowShape
    num_rows: int  # of each shard
    stats: PackingStats


class Plan:
    """What every step reads. Nothing is stored between steps, so any step can be the first.

    Tasks are mixed within each batch in fixed proportion; each walks through its own seeded
    permutations, so a query comes once in an epoch of its task and never twice in a batch.

    Raises:
      MarvelError: an item does not fit a row, a weight names a task without queries, a task has
        fewer queries than its share of one batch, or the batch does not divide among the shards.
    """

    def __init__(self, index: LengthsIndex, config: PlanConfig, *, num_shards: int) -> None:
        if num_shards < 1 or config.global_batch % num_shards:
            raise MarvelError(
                f"global_batch {config.global_batch} does not divide among {num_shards} data "
                f"shards: make it a multiple of {max(num_shards, 1)}."
            )
        self.index, self.config, self.num_shards = index, config, num_shards
        for kind, lengths, ids in (
            ("query", index.queries, index.query_ids),
            ("candidate", index.candidates, index.candidate_ids),
        ):
            _check_fit(kind, lengths, ids, config.row)
        shares = _shares(index.tasks, config.task_weights)
        self._tasks = tuple(shares)
        self._members = {task: np.flatnonzero(index.tasks == task) for task in shares}
        total = sum(map(len, self._members.values()))
        self.steps_per_epoch = max(1, total // config.global_batch)
        period = self.steps_per_epoch * -(-_LEAST_PERIOD // self.steps_per_epoch)
        self._counts = _task_counts(np.array(list(shares.values())), config.global_batch, period)
        self._before = np.concatenate(
            [np.zeros((1, len(shares)), np.int64), np.cumsum(self._counts, axis=0)]
        )
        self._check_counts()
        self._order = functools.lru_cache(maxsize=4 * len(shares))(self._make_order)

    def step(self, step: int) -> StepPlan:
        """The plan of one step, counted from 0."""
        queries, candidates, prompts = self._draw(step)
        positives, hashes = self._known_positives(queries, candidates)
        shards = self._place(queries, candidates)
        longest = max(len(shard.placement) for shard in shards)
        num_rows = next((size for size in self.row_counts if size >= longest), 0)
        if num_rows == 0:  # rarer than the probes saw: a coarse grid above them
            top = self.row_counts[-1]
            grid = -(-top // 16)
            num_rows = top + -(-(longest - top) // grid) * grid
        return StepPlan(
            step=step,
            queries=queries.astype(np.int32),
            candidates=candidates.astype(np.int32),
            prompts=prompts.astype(np.int32),
            positives=positives,
            candidate_hash=hashes,
            shards=shards,
            row=self.config.row,
            num_rows=num_rows,
            stats=self._stats(queries, candidates, shards, num_rows),
        )

    @functools.cached_property
    def row_counts(self) -> tuple[int, ...]:
        """The row counts of a shard that steps are rounded up to, found by packing a few steps."""
        spread = np.linspace(0, max(self.steps_per_epoch, _PROBES) - 1, _PROBES).astype(int)
        packed = []
        for step in spread:
            queries, candidates, _ = self._draw(int(step))
            packed.append(max(len(one.placement) for one in self._place(queries, candidates)))
        wanted = np.arange(1, self.config.row_sizes + 1) / self.config.row_sizes
        return tuple(sorted({int(np.ceil(size)) for size in np.quantile(packed, wanted)}))

    def _draw(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Queries, a positive of each and an instruction of each: by (seed, step) alone."""
        if step < 0:
            raise MarvelError(f"step is {step}: steps count from 0.")
        rounds, row = divmod(step, len(self._counts))
        starts = rounds * self._before[-1] + self._before[row]
        queries = np.concatenate(
            [
                self._walk(column, int(start), int(self._counts[row, column]))
                for column, start in enumerate(starts)
            ]
        )
        draws = _random(self.config.seed, _DRAWS, step).random((len(queries), 2))
        first, count = self.index.offsets[queries], np.diff(self.index.offsets)[queries]
        candidates = self.index.positives[first + (draws[:, 0] * count).astype(np.int64)]
        prompts = self.index.prompts[queries]
        chosen = np.where(prompts > 0, (draws[:, 1] * prompts).astype(np.int64), -1)
        return queries, candidates, chosen

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
        return _random(self.config.seed, _ORDER, task, epoch).permutation(size)

    def _known_positives(
        self, queries: np.ndarray, candidates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        present = np.unique(candidates)
        lists = [
            self.index.positives[self.index.offsets[query] : self.index.offsets[query + 1]]
            for query in queries
        ]
        owner = np.repeat(np.arange(len(lists)), [len(one) for one in lists])
        flat = np.concatenate(lists)
        keep = np.isin(flat, present)
        owner, flat = owner[keep], flat[keep]
        counts = np.bincount(owner, minlength=len(lists))
        width = self.config.max_positives
        while width < counts.max():
            width *= 2
        positives = np.full((len(lists), width), -1, np.int32)
        positives[owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)] = (
            flat
        )
        names = np.char.decode(self.index.candidate_ids[present], "utf-8")
        hashes = np.stack([id_hash(str(name)) for name in names])
        wanted = np.concatenate([candidates[:, None], positives], axis=1)
        place = np.searchsorted(present, np.maximum(wanted, present[0]))
        return positives, np.where(wanted[..., None] >= 0, hashes[place], np.uint32(0))

    def _place(self, queries: np.ndarray, candidates: np.ndarray) -> tuple[ShardPlan, ...]:
        """Deals the pairs to the shards so that all carry about the same, and packs each."""
        ours, theirs = self.index.queries[queries], self.index.candidates[candidates]
        order = np.argsort(-(ours + theirs).sum(axis=1), kind="stable")
        dealt = order.reshape(-1, self.num_shards).copy()
        dealt[1::2] = dealt[1::2, ::-1]
        return tuple(
            ShardPlan(
                members=members.astype(np.int32),
                placement=pack(np.concatenate([ours[members], theirs[members]]), self.config.row),
            )
            for members in dealt.T
        )

    def _stats(
        self,
        queries: np.ndarray,
        candidates: np.ndarray,
        shards: tuple[ShardPlan, ...],
        num_rows: int,
    ) -> PackingStats:
        used = self.index.queries[queries].sum(0) + self.index.candidates[candidates].sum(0)
        rows = num_rows * self.num_shards
        row = self.config.row
        return PackingStats(
            padded_tokens=1 - float(used[0]) / (rows * row.tokens),
            padded_patches=1 - float(used[1]) / (rows * row.patches) if row.patches else 0.0,
            padded_rows=1 - sum(len(shard.placement) for shard in shards) / rows,
        )

    def _check_counts(self) -> None:
        for column, task in enumerate(self._tasks):
            most, size = int(self._counts[:, column].max()), len(self._members[task])
            if most > size:
                raise MarvelError(
                    f"Task {task} has {size} queries, but its weight asks for {most} of them in "
                    f"one batch of {self.config.global_batch}: lower its weight or the batch."
                )
            if most == 0:
                raise MarvelError(
                    f"Task {task}'s weight is too small to bring one query into "
                    f"{len(self._counts)} batches: raise it, or leave the task out."
                )


def _random(*seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed)))


def _check_fit(kind: str, lengths: np.ndarray, ids: np.ndarray, row: RowShape) -> None:
    large = np.flatnonzero((lengths[:, 0] > row.tokens) | (lengths[:, 1] > row.patches))
    if len(large):
        tokens, patches = lengths[large[0]].tolist()
        raise MarvelError(
            f"{kind.capitalize()} {ids[large[0]].decode()} has {tokens} tokens and {patches} "
            f"patches, but a row holds {row.tokens} and {row.patches} ({len(large)} such of "
            f"{len(lengths)}; the largest has {lengths[:, 0].max()} tokens, another "
            f"{lengths[:, 1].max()} patches): enlarge the rows, or lower max_pixels or "
            "max_text_tokens."
        )


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
