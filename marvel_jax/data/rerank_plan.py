"""The plan of a reranker's training: which pairs each step has, from (seed, step) alone."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from marvel_jax.data.batch import RowShape
from marvel_jax.data.epoch_plan import PackingStats, PlanConfig
from marvel_jax.data.plan_groups import PartShare, make_groups
from marvel_jax.data.plan_order import QueryOrder, random_stream
from marvel_jax.data.plan_shards import BatchShape, ShardPlan, batch_shapes, place_shards
from marvel_jax.data.rerank import PairProcessor
from marvel_jax.data.rerank_lengths import PairLengths
from marvel_jax.errors import MarvelError

# What a random stream is for: part of its seed (the order of the queries has 0).
_DRAWS, _NEGATIVES, _LISTS = 11, 12, 13
_LEAST_PROBES, _MOST_PROBES, _PROBED_ITEMS = 8, 64, 1 << 16


@dataclass(frozen=True)
class Draws:
    """What a query brings: one "Yes" pair, `negatives` "No" pairs, and perhaps a list.

    A list has 2 to `listed` candidates; 0 for none.
    """

    negatives: int = 1
    listed: int = 0


class Frames(NamedTuple):
    """Tokens of a sequence that are neither query nor candidate."""

    yes: int
    no: int
    listed: tuple[int, ...]  # of lists of 0, 1, 2, ... candidates

    @classmethod
    def of(cls, processor: PairProcessor, listed: int) -> "Frames":
        """Those of a processor's prompt, with the replies."""
        return cls(
            processor.frame_tokens(answer=True),
            processor.frame_tokens(answer=False),
            tuple(processor.list_frame_tokens(count, reply=True) for count in range(listed + 1)),
        )


class RerankStep(NamedTuple):
    """One global batch. Only `shards` and what follows it depend on the number of shards.

    A query's sequences are its "Yes" pair, its "No" pairs, and its list; a shard's placement counts
    the "Yes" pairs of its queries first and then the others that are there, query by query.
    """

    step: int
    queries: np.ndarray  # [B] int32
    candidates: np.ndarray  # [B, 1 + N] int32: the positive, then negatives; -1 = none
    lists: (
        np.ndarray
    )  # [B, L] int32: candidates in the order they stand, -1 behind them; L = 0 none
    numbers: np.ndarray  # [B] int32: which of the list is the positive, from 1; 0 = no list
    prompts: np.ndarray  # [B] int32: which instruction, -1 = the source has none
    shards: tuple[ShardPlan, ...]
    row: RowShape
    num_rows: int  # of each shard
    stats: PackingStats

    @property
    def present(self) -> np.ndarray:
        """[B, N (+ 1)] bool: which sequences besides the "Yes" pair are there."""
        there = self.candidates[:, 1:] >= 0
        return np.concatenate([there, self.numbers[:, None] > 0], 1) if self.lists.size else there


class RerankPlan:
    """What every step reads. Nothing is stored between steps, so any step can be the first.

    The queries come as in `data.epoch_plan.Plan`, and no query twice in a batch.

    Raises:
      MarvelError: a pair does not fit a row, or what `QueryOrder` and `make_groups` refuse.
    """

    def __init__(
        self,
        index: PairLengths,
        config: PlanConfig,
        *,
        draws: Draws,
        frames: Frames,
        num_shards: int,
    ) -> None:
        if num_shards < 1 or config.global_batch % num_shards:
            raise MarvelError(
                f"global_batch {config.global_batch} does not divide among {num_shards} data "
                f"shards: make it a multiple of {max(num_shards, 1)}."
            )
        self.index, self.config, self.num_shards = index, config, num_shards
        self._draws, self._frames = draws, frames
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
        )
        self.steps_per_epoch = self._order.steps_per_epoch
        self._check_fit()

    @property
    def refused_negatives(self) -> int:
        """How many negatives of the source are left out: known positives of their query."""
        return int(self.index.refused_negatives)

    def step(self, step: int) -> RerankStep:
        """The plan of one step, counted from 0."""
        drawn = self._draw(step)
        lengths, present = self._lengths(drawn)
        shards = self._place(lengths, present)
        rows = max(len(shard.placement) for shard in shards)
        num_rows = next(count for count in self.row_counts if count >= rows)
        return drawn._replace(
            shards=shards,
            num_rows=num_rows,
            stats=self._stats(lengths, present, shards, num_rows),
        )

    def describe(self, step: int) -> dict[str, object]:
        """The ids in a step's batch, for a report: each query with its candidates."""
        drawn = self._draw(step)

        def ids(places: np.ndarray) -> list[str]:
            return [name.decode() for name in self.index.candidate_ids[places[places >= 0]]]

        return {
            "step": step,
            "pairs": [
                {
                    "query": self.index.query_ids[query].decode(),
                    "positives": ids(brought[:1]),
                    "negatives": ids(brought[1:]),
                    "listed": ids(listed),
                }
                for query, brought, listed in zip(
                    drawn.queries, drawn.candidates, drawn.lists, strict=True
                )
            ],
        }

    @property
    def row_counts(self) -> tuple[int, ...]:
        """All row counts of a shard that can occur, at most six; found by packing a few steps."""
        return tuple(dict.fromkeys(shape.num_rows for shape in self.shapes))

    @functools.cached_property
    def shapes(self) -> tuple[BatchShape, ...]:
        """All sizes of a batch that can occur, from the smallest to one that holds any batch."""
        items = self.config.global_batch * (1 + self._draws.negatives + (self._draws.listed > 0))
        probes = int(np.clip(_PROBED_ITEMS // items, _LEAST_PROBES, _MOST_PROBES))
        spread = np.linspace(0, max(self.steps_per_epoch, probes) - 1, probes).astype(int)
        packed = []
        for step in spread.tolist():
            shards = self._place(*self._lengths(self._draw(step)))
            packed.append(max(len(shard.placement) for shard in shards))
        return batch_shapes(
            packed,
            sizes=self.config.row_sizes,
            chunk=self.config.chunk_rows,
            most_rows=items // self.num_shards,
            known_positives=1,
            most_known=1,
        )

    def _draw(self, step: int) -> RerankStep:
        index, seed, draws = self.index, self.config.seed, self._draws
        queries = self._order.queries(step)
        uniform = random_stream(seed, _DRAWS, step).random((len(queries), 2))
        counts = np.diff(index.offsets)[queries]
        chosen = index.offsets[queries] + (uniform[:, 0] * counts).astype(np.int64)
        positives = index.positives[chosen]
        prompts = index.prompts[queries]
        negatives = _draw_distinct(
            index.negatives,
            index.negative_offsets,
            queries,
            draws.negatives,
            random_stream(seed, _NEGATIVES, step),
        )
        lists, numbers = self._draw_lists(step, queries, positives)
        return RerankStep(
            step=step,
            queries=queries.astype(np.int32),
            candidates=np.concatenate([positives[:, None], negatives], axis=1).astype(np.int32),
            lists=lists,
            numbers=numbers,
            prompts=np.where(prompts > 0, (uniform[:, 1] * prompts).astype(np.int64), -1).astype(
                np.int32
            ),
            shards=(),
            row=self.config.row,
            num_rows=0,
            stats=PackingStats(0.0, 0.0, 0.0),
        )

    def _draw_lists(
        self, step: int, queries: np.ndarray, positives: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Lists of 2 to `listed` candidates, the positive at a random place of each."""
        index, most = self.index, self._draws.listed
        lists = np.full((len(queries), most), -1, np.int32)
        numbers = np.zeros(len(queries), np.int32)
        if not most:
            return lists, numbers
        stream = random_stream(self.config.seed, _LISTS, step)
        sizes, places = stream.integers(1, most, len(queries)), stream.random(len(queries))
        others = _draw_distinct(index.negatives, index.negative_offsets, queries, most - 1, stream)
        others[np.arange(most - 1)[None] >= sizes[:, None]] = -1
        for row, (positive, place) in enumerate(zip(positives, places, strict=True)):
            members = others[row][others[row] >= 0].tolist()
            number = int(place * (len(members) + 1))
            members.insert(number, int(positive))
            lists[row, : len(members)] = members
            numbers[row] = number + 1
        return lists, numbers

    def _lengths(self, drawn: RerankStep) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, patches) of every sequence [B, 1 + N (+ 1), 2], and which are there."""
        index, frames = self.index, self._frames
        pairs = index.queries[drawn.queries][:, None] + index.candidates[drawn.candidates]
        pairs[:, 0, 0] += frames.yes
        pairs[:, 1:, 0] += frames.no
        present = np.concatenate([np.ones((len(pairs), 1), bool), drawn.present], axis=1)
        if not drawn.lists.size:
            return pairs, present
        there = drawn.lists >= 0
        tokens = np.array(frames.listed)[there.sum(1)] + index.listed_queries[drawn.queries]
        tokens += np.where(there, index.listed_candidates[drawn.lists], 0).sum(1)
        patches = index.queries[drawn.queries, 1]
        patches = patches + np.where(there, index.candidates[drawn.lists, 1], 0).sum(1)
        lists = np.stack([tokens, patches], axis=-1).astype(pairs.dtype)
        return np.concatenate([pairs, lists[:, None]], axis=1), present

    def _place(self, lengths: np.ndarray, present: np.ndarray) -> tuple[ShardPlan, ...]:
        return place_shards(
            lengths[:, 0],
            lengths[:, 1:],
            present[:, 1:],
            row=self.config.row,
            num_shards=self.num_shards,
        )

    def _stats(
        self,
        lengths: np.ndarray,
        present: np.ndarray,
        shards: tuple[ShardPlan, ...],
        num_rows: int,
    ) -> PackingStats:
        used = lengths[present].sum(axis=0)
        rows, row = num_rows * self.num_shards, self.config.row
        return PackingStats(
            padded_tokens=1 - float(used[0]) / (rows * row.tokens),
            padded_patches=1 - float(used[1]) / (rows * row.patches) if row.patches else 0.0,
            padded_rows=1 - sum(len(shard.placement) for shard in shards) / rows,
        )

    def _check_fit(self) -> None:
        """Every query with the largest of its candidates, so that no step can overflow a row."""
        index, row, most = self.index, self.config.row, self._draws.listed
        owners = np.concatenate(
            [
                np.repeat(np.arange(len(index.queries)), np.diff(offsets))
                for offsets in (index.offsets, index.negative_offsets)
            ]
        )
        places = np.concatenate([index.positives, index.negatives])

        def largest(lengths: np.ndarray, count: int) -> np.ndarray:
            return _sum_of_largest(lengths[places], owners, count, len(index.queries))

        tokens = index.queries[:, 0] + largest(index.candidates[:, 0], 1)
        tokens += max(self._frames.yes, self._frames.no)
        if most:
            listed = index.listed_queries + largest(index.listed_candidates, most)
            tokens = np.maximum(tokens, listed + self._frames.listed[most])
        patches = index.queries[:, 1] + largest(index.candidates[:, 1], max(most, 1))
        pairs = np.stack([tokens, patches], axis=-1)
        what = f"{most} candidates of its own" if most else "a candidate of its own"
        used = np.zeros(len(pairs), bool)
        used[self._order.used] = True
        large = np.flatnonzero(((pairs[:, 0] > row.tokens) | (pairs[:, 1] > row.patches)) & used)
        if len(large):
            tokens, patches = pairs[large[0]].tolist()
            raise MarvelError(
                f"Query {index.query_ids[large[0]].decode()} and {what} have up to {tokens} tokens "
                f"and {patches} patches, but a row holds {row.tokens} and {row.patches} "
                f"({len(large)} such of {len(pairs)}; the largest have {pairs[:, 0].max()} tokens "
                f"and {pairs[:, 1].max()} patches): enlarge the rows, or lower max_pixels or "
                "max_text_tokens."
            )


def _sum_of_largest(values: np.ndarray, owners: np.ndarray, count: int, size: int) -> np.ndarray:
    """Each owner's `count` largest values added up: [size] int64."""
    order = np.lexsort((-values, owners))
    sorted_owners = owners[order]
    place = np.arange(len(order)) - np.searchsorted(sorted_owners, sorted_owners)
    top = order[place < count]
    total = np.zeros(size, np.int64)
    np.add.at(total, owners[top], values[top])
    return total


def _draw_distinct(
    values: np.ndarray,
    offsets: np.ndarray,
    queries: np.ndarray,
    count: int,
    stream: np.random.Generator,
) -> np.ndarray:
    """Draws from each query's list without replacement: [B, count], -1 where the list ends."""
    sizes = np.diff(offsets)[queries]
    width = max(int(sizes.max(initial=0)), count)
    # Each place gets a random number, places behind a list's end the largest.
    ranks = stream.random((len(queries), width))
    ranks[np.arange(width)[None] >= sizes[:, None]] = 2.0
    first = np.argsort(ranks, axis=1, kind="stable")[:, :count]
    drawn = np.full((len(queries), count), -1, np.int64)
    there = first < sizes[:, None]
    drawn[there] = values[(offsets[queries][:, None] + first)[there]]
    return drawn
