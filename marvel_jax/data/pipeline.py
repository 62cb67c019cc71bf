"""The grain pipeline that carries out the epoch plan: (plan, step) -> Batch, nothing stateful."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np

from marvel_jax.data.batch import Batch, Rows, build_rows
from marvel_jax.data.epoch_plan import Plan, StepPlan
from marvel_jax.data.items import Candidate, Item, Query, RetrievalSource
from marvel_jax.data.processor import Processor

_Record = TypeVar("_Record", Query, Candidate)


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
        items = _query_items(source, step, members) + _candidate_items(source, step, members)
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


def _query_items(source: RetrievalSource, step: StepPlan, members: np.ndarray) -> list[Item]:
    items = []
    queries = _read(source.queries, step.queries[members])
    for query, prompt in zip(queries, step.prompts[members].tolist(), strict=True):
        instruction = source.instructions[query.instruction_key][prompt] if prompt >= 0 else None
        items.append(dataclasses.replace(query.item, instruction=instruction, id=query.id))
    return items


def _candidate_items(source: RetrievalSource, step: StepPlan, members: np.ndarray) -> list[Item]:
    return [
        dataclasses.replace(candidate.item, instruction=None, id=candidate.id)
        for candidate in _read(source.candidates, step.candidates[members])
    ]


def _read(records: Sequence[_Record], indices: np.ndarray) -> Sequence[_Record]:
    """Records at any places; all at once where the sequence can (grain's `__getitems__`)."""
    wanted = indices.tolist()
    together = getattr(records, "__getitems__", None)
    return together(wanted) if together else [records[index] for index in wanted]
