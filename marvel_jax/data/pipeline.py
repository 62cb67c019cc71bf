"""The grain pipeline that carries out the epoch plan: (plan, step) -> Batch, nothing stateful."""

import dataclasses
from collections.abc import Iterator

import numpy as np

from marvel_jax.data.batch import Batch, Rows, build_rows
from marvel_jax.data.epoch_plan import PackingStats, Plan, PlanConfig, StepPlan
from marvel_jax.data.items import Item, RetrievalSource
from marvel_jax.data.processor import Processor

__all__ = ["PackingStats", "Plan", "PlanConfig", "StepPlan", "batches", "build_batch"]


def batches(
    source: RetrievalSource,
    processor: Processor,
    plan: Plan,
    *,
    start_step: int,
    num_steps: int,
    shards: range | None = None,
    prefetch: int = 2,
) -> Iterator[tuple[int, Batch]]:
    """Yields (step, batch) of this process's shards (None: all), read ahead by `prefetch` steps.

    There is no state but the step: to resume, start at the next one.

    Raises:
      MarvelError: while iterating, an item that cannot be read; the message names it.
    """
    import grain  # it brings jax along, which reading a plan does not need

    mine = range(plan.num_shards) if shards is None else shards
    steps = grain.MapDataset.range(start_step, start_step + num_steps)
    ready = steps.map(
        lambda step: (int(step), build_batch(source, processor, plan.step(int(step)), mine))
    )
    options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    return iter(ready.to_iter_dataset(options))


def build_batch(
    source: RetrievalSource, processor: Processor, step: StepPlan, shards: range
) -> Batch:
    """Reads and packs the given shards of one planned step; leading axes are shards * size."""
    rows: list[Rows] = []
    slots: list[np.ndarray] = []
    for shard in shards:
        members, placement = step.shards[shard]
        items = [_query_item(source, step, pair) for pair in members]
        items += [_candidate_item(source, step, pair) for pair in members]
        encoded = [processor(item) for item in items]
        written, slot = build_rows(encoded, placement, step.row, num_rows=step.num_rows)
        rows.append(written)
        slots.append(slot.reshape(2, len(members)))
    members = np.concatenate([step.shards[shard].members for shard in shards])
    each = len(members) // len(shards)
    hashes = step.candidate_hash[members]
    return Batch(
        rows=Rows(*(np.concatenate(field) for field in zip(*rows, strict=True))),
        query_slot=np.concatenate([slot[0] for slot in slots]),
        candidate_slot=np.concatenate([slot[1] for slot in slots]),
        candidate_id=hashes[:, 0],
        positive_ids=hashes[:, 1:],
        positive_valid=step.positives[members] >= 0,
        own_positive=np.tile(np.arange(each, dtype=np.int32), len(shards)),
        query_valid=np.ones(len(members), bool),
        candidate_valid=np.ones(len(members), bool),
    )


def _query_item(source: RetrievalSource, step: StepPlan, pair: int) -> Item:
    query = source.queries[int(step.queries[pair])]
    prompt = int(step.prompts[pair])
    instruction = source.instructions[query.instruction_key][prompt] if prompt >= 0 else None
    return dataclasses.replace(query.item, instruction=instruction, id=query.id)


def _candidate_item(source: RetrievalSource, step: StepPlan, pair: int) -> Item:
    candidate = source.candidates[int(step.candidates[pair])]
    return dataclasses.replace(candidate.item, instruction=None, id=candidate.id)
