"""The epoch plan: which pairs, instructions and rows each step has, from (seed, step) alone."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from marvel_jax.data.batch import RowShape
from marvel_jax.data.lengths import LengthsIndex
from marvel_jax.data.plan_distinct import Copies, choose_distinct
from marvel_jax.data.plan_groups import Batches, PartShare, make_groups
from marvel_jax.data.plan_order import QueryOrder, random_stream
from marvel_jax.data.plan_shards import BatchShape, ShardPlan, batch_shapes, place_shards
from marvel_jax.data.taught import ListScores, QueryLists
from marvel_jax.errors import MarvelError

# What a random stream is for: part of its seed (the order of the queries has 0).
_DRAWS, _MORE_POSITIVES, _NEGATIVES, _LISTS = 1, 2, 3, 4
# Steps that are packed to choose the row counts: few of a large batch, which differ less.
_LEAST_PROBES, _MOST_PROBES, _PROBED_ITEMS = 8, 64, 1 << 17


@dataclass(frozen=True)
class PlanConfig:
    """What a training batch is made of.

    `task_weights` maps a task's id to its share of every batch (None: by size; a task that is
    not named is left out). `row_sizes` is how many row counts to plan for at most: each is a
    compilation, and more of them pad less; rare batches are rounded up to one of a few larger
    counts. `max_positives` is the width of the batch's list of known positives, where no batch
    needs more. A query brings up to `positives_per_query` of its positives and `hard_negatives`
    of its hard negatives; with lists it may bring none of its positives. Row counts are multiples
    of `chunk_rows`.

    `parts` are the shares of a mixture's parts, with task weights of their own; () for a source
    that is none. `batches` says how tasks meet: "mixed" has all in every batch, "homogeneous" one
    task of one data set, "interleaved" runs of `sub_batch` queries of one such task each.
    `duplicates` "avoid" keeps copies of a query, or of the answer that two queries have in common,
    out of one batch where it can: within a task (or set) by the order, between tasks where a query
    has a choice of answers. What remains, and all with "mask", is known to the loss by its id.
    """

    global_batch: int
    seed: int
    row: RowShape
    task_weights: Mapping[int, float] | None = None
    row_sizes: int = 3
    max_positives: int = 8
    positives_per_query: int = 1
    hard_negatives: int = 0
    chunk_rows: int = 1
    parts: tuple[PartShare, ...] = ()
    batches: Batches = "mixed"
    sub_batch: int | None = None
    duplicates: Literal["mask", "avoid"] = "mask"

    def __post_init__(self) -> None:
        for field in ("global_batch", "row_sizes", "max_positives", "chunk_rows"):
            if getattr(self, field) < 1:
                raise MarvelError(f"{field} is {getattr(self, field)}: give at least 1.")
        for field in ("seed", "hard_negatives", "positives_per_query"):
            if getattr(self, field) < 0:
                raise MarvelError(f"{field} is {getattr(self, field)}: give 0 or more.")
        if self.row_sizes > 4:
            raise MarvelError(f"row_sizes is {self.row_sizes}: give at most 4.")
        if (self.batches == "interleaved") != (self.sub_batch is not None):
            raise MarvelError(
                f"batches is {self.batches!r} and sub_batch {self.sub_batch}: give sub_batch with "
                '"interleaved", and with it alone.'
            )
        if self.parts and self.task_weights is not None:
            raise MarvelError("Beside parts, give task_weights to the parts that need some.")


class PackingStats(NamedTuple):
    """Shares of the step's rows that are padding, over all shards."""

    padded_tokens: float
    padded_patches: float
    padded_rows: float


class StepPlan(NamedTuple):
    """One global batch. Only `shards` and what follows it depend on the number of shards."""

    step: int
    queries: np.ndarray  # [B] int32
    candidates: np.ndarray  # [B, P + H + K] int32: labels, hard negatives, the list; -1 = none
    prompts: np.ndarray  # [B] int32: which instruction, -1 = the source has none
    positives: np.ndarray  # [B, M] int32: known positives within this batch, -1 = none
    query_keys: np.ndarray  # [B, 2] uint32
    candidate_keys: np.ndarray  # [B, P + H + K, 2] uint32, 0 where there is none
    positive_keys: np.ndarray  # [B, M, 2] uint32, 0 where there is none
    labels: int  # P
    shards: tuple[ShardPlan, ...]
    row: RowShape
    num_rows: int  # of each shard
    stats: PackingStats
    lists: ListScores | None = None  # of the teacher, where there is one


class _Drawn(NamedTuple):
    queries: np.ndarray  # [B]
    candidates: np.ndarray  # [B, P + H + K]
    prompts: np.ndarray  # [B]
    lists: ListScores | None


class Plan:
    """What every step reads. Nothing is stored between steps, so any step can be the first.

    Tasks come in fixed proportion; each walks through its own seeded permutations, so a query comes
    once in an epoch of its task and never twice in a batch. With `lists` each brings the candidates
    of one of its lists too, drawn anew each time; a hard negative in the list does not come twice.

    Raises:
      MarvelError: an item does not fit a row, a weight names a task without queries, a task has
        fewer queries than its share of one batch, hard negatives are asked for but there are
        none, or the batch does not divide among the shards.
    """

    def __init__(
        self,
        index: LengthsIndex,
        config: PlanConfig,
        *,
        num_shards: int,
        lists: QueryLists | None = None,
    ) -> None:
        if num_shards < 1 or config.global_batch % num_shards:
            raise MarvelError(
                f"global_batch {config.global_batch} does not divide among {num_shards} data "
                f"shards: make it a multiple of {max(num_shards, 1)}."
            )
        self.index, self.config, self.num_shards, self.lists = index, config, num_shards, lists
        if config.positives_per_query == 0 and lists is None:
            raise MarvelError(
                "positives_per_query is 0: give at least 1 where queries have no lists."
            )
        for kind, lengths, ids in (
            ("query", index.queries, index.query_ids),
            ("candidate", index.candidates, index.candidate_ids),
        ):
            _check_fit(kind, lengths, ids, config.row)
        if config.hard_negatives:
            _check_negatives(index, config.hard_negatives)
        run = {"mixed": 1, "homogeneous": config.global_batch}.get(config.batches)
        self._order = QueryOrder(
            make_groups(
                index.tasks,
                index.datasets,
                parts=config.parts or (PartShare(task_weights=config.task_weights),),
                per_set=config.batches != "mixed",
            ),
            batch=config.global_batch,
            seed=config.seed,
            run=run or config.sub_batch or 1,
            copies=(
                Copies(index, labels=config.positives_per_query)
                if config.duplicates == "avoid"
                else None
            ),
        )
        self.steps_per_epoch = self._order.steps_per_epoch

    def step(self, step: int) -> StepPlan:
        """The plan of one step, counted from 0."""
        queries, candidates, prompts, lists = self._draw(step)
        shards = self._place(queries, candidates)
        owner, known = self._known_positives(queries, candidates)
        shape = self._shape(shards, owner)
        positives = _rectangle(owner, known, len(queries), shape.known_positives)
        return StepPlan(
            step=step,
            queries=queries.astype(np.int32),
            candidates=candidates.astype(np.int32),
            prompts=prompts.astype(np.int32),
            positives=positives,
            query_keys=self.index.query_keys[queries],
            candidate_keys=_keys(self.index.candidate_keys, candidates),
            positive_keys=_keys(self.index.candidate_keys, positives),
            labels=self.config.positives_per_query,
            shards=shards,
            row=self.config.row,
            num_rows=shape.num_rows,
            stats=self._stats(queries, candidates, shards, shape.num_rows),
            lists=lists,
        )

    def describe(self, step: int) -> dict[str, object]:
        """The ids in a step's batch, for a report: each query with its candidates."""
        queries, candidates, _, _ = self._draw(step)
        labels = self.config.positives_per_query
        listed = labels + self.config.hard_negatives

        def ids(places: np.ndarray) -> list[str]:
            return [name.decode() for name in self.index.candidate_ids[places[places >= 0]]]

        return {
            "step": step,
            "pairs": [
                {
                    "query": self.index.query_ids[query].decode(),
                    "positives": ids(brought[:labels]),
                    "hard_negatives": ids(brought[labels:listed]),
                    **({} if self.lists is None else {"listed": ids(brought[listed:])}),
                }
                for query, brought in zip(queries, candidates, strict=True)
            ],
        }

    @property
    def refused_negatives(self) -> int:
        """How many hard negatives of the source are left out: known positives of their query."""
        return int(self.index.refused_negatives)

    @property
    def row_counts(self) -> tuple[int, ...]:
        """All row counts of a shard that can occur, at most six; found by packing a few steps."""
        return tuple(dict.fromkeys(shape.num_rows for shape in self.shapes))

    @functools.cached_property
    def shapes(self) -> tuple[BatchShape, ...]:
        """All sizes of a batch that can occur, from the smallest to one that holds any batch."""
        brought = self.config.positives_per_query + self.config.hard_negatives
        brought += 0 if self.lists is None else self.lists.width
        items = self.config.global_batch * (1 + brought)
        probes = int(np.clip(_PROBED_ITEMS // items, _LEAST_PROBES, _MOST_PROBES))
        spread = np.linspace(0, max(self.steps_per_epoch, probes) - 1, probes).astype(int)
        packed = []
        for step in spread.tolist():
            queries, candidates, _, _ = self._draw(step)
            shards = self._place(queries, candidates)
            packed.append(max(len(shard.placement) for shard in shards))
        most = int(np.diff(self.index.offsets)[self._order.used].max())
        return batch_shapes(
            packed,
            sizes=self.config.row_sizes,
            chunk=self.config.chunk_rows,
            most_rows=items // self.num_shards,
            known_positives=self.config.max_positives,
            most_known=min(most, self.config.global_batch * brought),
        )

    def _draw(self, step: int) -> _Drawn:
        index, config = self.index, self.config
        queries = self._order.queries(step)
        draws = random_stream(config.seed, _DRAWS, step).random((len(queries), 2))
        places = []
        if config.positives_per_query:
            places.append(self._draw_positives(step, queries, draws[:, :1]))
        if config.hard_negatives:
            uniform = random_stream(config.seed, _NEGATIVES, step).random(
                (len(queries), config.hard_negatives)
            )
            places.append(_draw_distinct(index.negatives, index.negative_offsets, queries, uniform))
        lists = None
        if self.lists is not None:
            uniform = random_stream(config.seed, _LISTS, step).random(len(queries))
            listed, lists = self.lists.draw(queries, uniform)
            if config.hard_negatives:
                again = (places[-1][:, :, None] == listed[:, None, :]).any(axis=2)
                places[-1] = np.where(again, -1, places[-1])
            places.append(listed)
        prompts = index.prompts[queries]
        chosen = np.where(prompts > 0, (draws[:, 1] * prompts).astype(np.int64), -1)
        return _Drawn(queries, np.concatenate(places, axis=1), chosen, lists)

    def _draw_positives(self, step: int, queries: np.ndarray, first: np.ndarray) -> np.ndarray:
        """Positives [B, P]; `first` [B, 1] are the random numbers of the first."""
        index, config = self.index, self.config
        more = random_stream(config.seed, _MORE_POSITIVES, step).random(
            (len(queries), config.positives_per_query - 1)
        )
        positives = _draw_distinct(
            index.positives, index.offsets, queries, np.concatenate([first, more], 1)
        )
        if config.duplicates == "avoid":
            return choose_distinct(
                positives, queries, positives=index.positives, offsets=index.offsets
            )
        return positives

    def _place(self, queries: np.ndarray, candidates: np.ndarray) -> tuple[ShardPlan, ...]:
        return place_shards(
            self.index.queries[queries],
            self.index.candidates[candidates],
            candidates >= 0,
            row=self.config.row,
            num_shards=self.num_shards,
        )

    def _shape(self, shards: tuple[ShardPlan, ...], owner: np.ndarray) -> BatchShape:
        rows = max(len(shard.placement) for shard in shards)
        known = int(np.bincount(owner, minlength=1).max())
        return next(
            shape
            for shape in self.shapes
            if shape.num_rows >= rows and shape.known_positives >= known
        )

    def _known_positives(
        self, queries: np.ndarray, candidates: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every (place of a query in the batch, candidate of the batch that answers it)."""
        first, count = self.index.offsets[queries], np.diff(self.index.offsets)[queries]
        owner = np.repeat(np.arange(len(queries)), count)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
        known = self.index.positives[np.repeat(first, count) + within]
        present = np.isin(known, candidates)
        return owner[present], known[present]

    def _stats(
        self,
        queries: np.ndarray,
        candidates: np.ndarray,
        shards: tuple[ShardPlan, ...],
        num_rows: int,
    ) -> PackingStats:
        brought = self.index.candidates[candidates[candidates >= 0]]
        used = self.index.queries[queries].sum(0) + brought.sum(0)
        rows = num_rows * self.num_shards
        row = self.config.row
        return PackingStats(
            padded_tokens=1 - float(used[0]) / (rows * row.tokens),
            padded_patches=1 - float(used[1]) / (rows * row.patches) if row.patches else 0.0,
            padded_rows=1 - sum(len(shard.placement) for shard in shards) / rows,
        )


def _draw_distinct(
    values: np.ndarray, offsets: np.ndarray, queries: np.ndarray, uniform: np.ndarray
) -> np.ndarray:
    """Draws from each query's list without replacement: [B, k], -1 where the list ends.

    `uniform` [B, k] are random numbers in [0, 1).
    """
    first, count = offsets[queries], np.diff(offsets)[queries]
    drawn = np.full(uniform.shape, -1, np.int64)
    taken = np.zeros((len(queries), 0), np.int64)  # places within the list, ascending
    for column in range(uniform.shape[1]):
        # The n-th of the places that are left lies behind as many taken ones as are not above it.
        place = (uniform[:, column] * (count - column)).astype(np.int64)
        for earlier in range(column):
            place += place >= taken[:, earlier]
        left = count > column
        drawn[left, column] = values[(first + place)[left]]
        taken = np.sort(np.concatenate([taken, place[:, None]], axis=1), axis=1)
    return drawn


def _rectangle(owner: np.ndarray, values: np.ndarray, rows: int, width: int) -> np.ndarray:
    """Each owner's values in a row [rows, width] int32, -1 behind them."""
    counts = np.bincount(owner, minlength=rows)
    places = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    rectangle = np.full((rows, width), -1, np.int32)
    rectangle[owner, places] = values
    return rectangle


def _keys(keys: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.where(places[..., None] >= 0, keys[places], np.uint32(0))


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


def _check_negatives(index: LengthsIndex, hard_negatives: int) -> None:
    if len(index.negatives) == 0:
        refused = int(index.refused_negatives)
        raise MarvelError(
            f"hard_negatives is {hard_negatives}, but no query of the source names a hard negative"
            + (f" that is not its positive ({refused} are left out)" if refused else "")
            + ": mine some first, or set it to 0."
        )
