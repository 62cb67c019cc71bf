"""The batch of a reranker's training: pairs packed into rows, and the answers they are to give."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from marvel_jax.data.batch import Rows, build_rows, item_key
from marvel_jax.data.items import Candidate, Item, Query, RetrievalSource
from marvel_jax.data.plan_shards import ShardPlan
from marvel_jax.data.rerank import PairProcessor
from marvel_jax.data.rerank_plan import RerankStep
from marvel_jax.data.rerank_sequence import Part, Prompted

Array = Any  # numpy on the host, jax on the device

_Record = TypeVar("_Record", Query, Candidate)


class RerankBatch(NamedTuple):
    """Rows of sequences, and what the loss reads. R rows of up to G sequences, T covered tokens.

    The first of a sequence's covered tokens is the first of its answer. What stands where
    `supervised` is False does not matter.
    """

    rows: Rows  # `rows.pooled` marks the covered tokens
    item_key: Array  # [R, G, 2] uint32: the name of each segment's sequence, 0 = none
    places: Array  # [R, G, T] int32: the place in the row whose next token is covered
    targets: Array  # [R, G, T] int32: that token
    supervised: Array  # [R, G, T] bool
    other: Array  # [R, G] int32: the first token of the answer that would be wrong
    judged: Array  # [R, G] bool: whether it is a pair, with two answers to choose from


class _Sequence(NamedTuple):
    prompted: Prompted
    key: np.ndarray
    other: int
    judged: bool


def build_rerank_batch(
    source: RetrievalSource, processor: PairProcessor, step: RerankStep, shards: range
) -> RerankBatch:
    """Reads and packs the given shards of one planned step; leading axes are shards * size."""
    reader = _Reader(source, processor)
    parts = [_build_shard(reader, step, step.shards[shard]) for shard in shards]
    rows = Rows(*map(np.concatenate, zip(*(part.rows for part in parts), strict=True)))
    rest = zip(*(part[1:] for part in parts), strict=True)
    return RerankBatch(rows, *map(np.concatenate, rest))


def _build_shard(reader: "_Reader", step: RerankStep, shard: ShardPlan) -> RerankBatch:
    sequences = reader.sequences(step, shard.members)
    items = [one.prompted.item for one in sequences]
    rows, slots = build_rows(items, shard.placement, step.row, num_rows=step.num_rows)
    size, width = (step.num_rows, step.row.items), reader.processor.most_covered
    found = RerankBatch(
        rows=rows,
        item_key=np.zeros((*size, 2), np.uint32),
        places=np.zeros((*size, width), np.int32),
        targets=np.zeros((*size, width), np.int32),
        supervised=np.zeros((*size, width), bool),
        other=np.zeros(size, np.int32),
        judged=np.zeros(size, bool),
    )
    for slot, one in zip(slots.tolist(), sequences, strict=True):
        at = divmod(slot, step.row.items)
        row, segment = at
        start = int(np.argmax(rows.segments[row] == segment + 1))
        answer = one.prompted.answer
        before = np.flatnonzero(one.prompted.item.pooled) - 1
        # The answer first, wherever it stands in the reply.
        before = np.concatenate([[answer], before[before != answer]])
        found.item_key[at] = one.key
        found.places[at][: len(before)] = start + before
        found.targets[at][: len(before)] = one.prompted.item.tokens[before + 1]
        found.supervised[at][: len(before)] = True
        found.other[at], found.judged[at] = one.other, one.judged
    return found


class _Reader:
    """Reads what a step asks for; a candidate that several queries bring is encoded once."""

    def __init__(self, source: RetrievalSource, processor: PairProcessor) -> None:
        self._source, self.processor = source, processor
        self._parts: dict[tuple[int, str], Part] = {}

    def sequences(self, step: RerankStep, members: np.ndarray) -> list[_Sequence]:
        """Those of a shard's queries, in the order that a placement counts them."""
        queries = self._query_items(step, members)
        brought = step.candidates[members]
        self._read(np.concatenate([brought.ravel(), step.lists[members].ravel()]))
        parts = [self.processor.query(item) for item in queries]
        first = [
            self._pair(item, part, int(row[0]), answer=True)
            for item, part, row in zip(queries, parts, brought, strict=True)
        ]
        rest: list[_Sequence] = []
        for member, item, part, row in zip(members.tolist(), queries, parts, brought, strict=True):
            rest += [
                self._pair(item, part, int(place), answer=False) for place in row[1:] if place >= 0
            ]
            if step.numbers[member]:
                rest.append(self._list(item, step.lists[member], int(step.numbers[member])))
        return first + rest

    def _pair(self, item: Item, query: Part, place: int, *, answer: bool) -> _Sequence:
        prompted = self.processor.pair(query, self._part(place, "alone"), answer=answer)
        return _Sequence(
            prompted,
            item_key("pair", f"{item.id} {self._ids[place]}"),
            other=self.processor.answer_ids[1 if answer else 0],
            judged=True,
        )

    def _list(self, item: Item, places: np.ndarray, number: int) -> _Sequence:
        members = places[places >= 0].tolist()
        parts = [self._part(place, "inner") for place in members[:-1]]
        prompted = self.processor.listed(
            self.processor.query(item, listed=True),
            [*parts, self._part(members[-1], "last")],
            answer=number,
        )
        key = item_key("list", " ".join([str(item.id), *(self._ids[one] for one in members)]))
        return _Sequence(prompted, key, other=0, judged=False)

    def _read(self, places: np.ndarray) -> None:
        wanted = np.unique(places[places >= 0])
        found = _records(self._source.candidates, wanted)
        self._items = {
            place: dataclasses.replace(one.item, instruction=None, id=one.id)
            for place, one in zip(wanted.tolist(), found, strict=True)
        }
        self._ids = {place: str(item.id) for place, item in self._items.items()}

    def _part(self, place: int, where: Any) -> Part:
        if (place, where) not in self._parts:
            item = self._items[place]
            self._parts[place, where] = self.processor.candidate(item, place=where)
        return self._parts[place, where]

    def _query_items(self, step: RerankStep, members: np.ndarray) -> list[Item]:
        items = []
        queries = _records(self._source.queries, step.queries[members])
        instructions = self._source.instructions
        for query, prompt in zip(queries, step.prompts[members].tolist(), strict=True):
            instruction = instructions[query.instruction_key][prompt] if prompt >= 0 else None
            items.append(dataclasses.replace(query.item, instruction=instruction, id=query.id))
        return items


def _records(records: Sequence[_Record], places: np.ndarray) -> Sequence[_Record]:
    """Records at any places; all at once where the sequence can (grain's `__getitems__`)."""
    wanted = places.tolist()
    together = getattr(records, "__getitems__", None)
    return together(wanted) if together else [records[place] for place in wanted]
