"""The grain pipeline that carries out the epoch plan: (plan, step) -> Batch, nothing stateful."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

from marvel_jax.data.batch import Batch, build_rows
from marvel_jax.data.epoch_plan import StepPlan
from marvel_jax.data.items import Candidate, Item, Query, RetrievalSource, Video
from marvel_jax.data.plan_shards import ShardPlan
from marvel_jax.data.processor import Processor
from marvel_jax.data.retention import TextStream
from marvel_jax.data.taught import ListScores
from marvel_jax.errors import MarvelError

Build = Callable[[RetrievalSource, Any, Any, range], Any]
"""(source, processor, planned step, shards) -> batch of these shards."""

_Record = TypeVar("_Record", Query, Candidate)


def build_batch(
    source: RetrievalSource,
    processor: Processor,
    step: StepPlan,
    shards: range,
    *,
    texts: TextStream | None = None,
) -> Batch:
    """Reads and packs the given shards of one planned step; leading axes are shards * size."""
    parts = [_build_shard(source, processor, step, step.shards[shard]) for shard in shards]
    batch = _joined(parts)
    if texts is None:
        return batch
    return batch._replace(texts=texts.rows(step.step, shards, num_shards=len(step.shards)))


def batches(
    source: RetrievalSource,
    processor: Any,
    plan: Any,
    *,
    start_step: int,
    num_steps: int,
    shards: range | None = None,
    prefetch: int = 2,
    build: Build = build_batch,
) -> Iterator[tuple[int, Any]]:
    """Yields (step, batch) of this process's shards (None: all), read ahead by `prefetch` steps.

    There is no state but the step: to resume, start at the next one. `build` makes a batch of what
    `plan.step` returns.

    Raises:
      MarvelError: while iterating, an item that cannot be read; the message names it.
    """
    import grain  # it brings jax along, which reading a plan does not need

    mine = range(plan.num_shards) if shards is None else shards
    steps = grain.MapDataset.range(start_step, start_step + num_steps)
    ready = steps.map(
        lambda step: (int(step), build(source, processor, plan.step(int(step)), mine))
    )
    options = grain.ReadOptions(num_threads=prefetch, prefetch_buffer_size=prefetch)
    return iter(ready.to_iter_dataset(options))


def _joined(parts: Sequence[Any]) -> Any:
    """Named tuples of arrays, one behind the other; what is None stays so."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, tuple):
        return type(first)(*(_joined(leaves) for leaves in zip(*parts, strict=True)))
    return np.concatenate(parts)


def _build_shard(
    source: RetrievalSource, processor: Processor, step: StepPlan, shard: ShardPlan
) -> Batch:
    members, placement = shard
    brought = step.candidates[members]
    present = (brought >= 0).ravel()
    items = _query_items(source, step, members) + _candidate_items(source, brought)
    _refuse_video(items)
    encoded = [processor(item) for item in items]
    rows, slots = build_rows(encoded, placement, step.row, num_rows=step.num_rows)
    candidate_id = step.candidate_keys[members].reshape(-1, 2)
    item_key = np.zeros((step.num_rows * step.row.items, 2), np.uint32)
    item_key[slots] = np.concatenate([step.query_keys[members], candidate_id[present]])
    candidate_slot = np.zeros(len(present), np.int32)
    candidate_slot[present] = slots[len(members) :]
    lists = step.lists
    place = np.arange(len(present), dtype=np.int32).reshape(brought.shape)[:, : step.labels]
    return Batch(
        rows=rows,
        item_key=item_key.reshape(step.num_rows, step.row.items, 2),
        query_slot=slots[: len(members)],
        candidate_slot=candidate_slot,
        candidate_id=candidate_id,
        candidate_query=np.repeat(np.arange(len(members), dtype=np.int32), brought.shape[1]),
        positive_ids=step.positive_keys[members],
        positive_valid=step.positives[members] >= 0,
        own_positive=np.where(brought[:, : step.labels] >= 0, place, -1).astype(np.int32),
        query_valid=np.ones(len(members), bool),
        candidate_valid=present,
        lists=None if lists is None else ListScores(*(values[members] for values in lists)),
    )


def _query_items(source: RetrievalSource, step: StepPlan, members: np.ndarray) -> list[Item]:
    items = []
    queries = _read(source.queries, step.queries[members])
    for query, prompt in zip(queries, step.prompts[members].tolist(), strict=True):
        instruction = source.instructions[query.instruction_key][prompt] if prompt >= 0 else None
        items.append(dataclasses.replace(query.item, instruction=instruction, id=query.id))
    return items


def _candidate_items(source: RetrievalSource, brought: np.ndarray) -> list[Item]:
    return [
        dataclasses.replace(candidate.item, instruction=None, id=candidate.id)
        for candidate in _read(source.candidates, brought[brought >= 0])
    ]


def _refuse_video(items: Sequence[Item]) -> None:
    """Every batch of a run has one shape, and patches of video are twice as long as an image's."""
    for item in items:
        if any(isinstance(part, Video) for part in item.parts):
            raise MarvelError(
                f"Item {item.id} holds a video: video is encoded and evaluated, not trained on. "
                "Give its frames as images."
            )


def _read(records: Sequence[_Record], indices: np.ndarray) -> Sequence[_Record]:
    """Records at any places; all at once where the sequence can (grain's `__getitems__`)."""
    wanted = indices.tolist()
    together = getattr(records, "__getitems__", None)
    return together(wanted) if together else [records[index] for index in wanted]
