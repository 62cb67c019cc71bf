"""Pairs to be scored become rows: a query's candidates together, packed, and where answers are."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from marvel_jax.data.batch import Rows, RowShape, build_rows, row_batches
from marvel_jax.data.rerank_sequence import Branched
from marvel_jax.models.kernels.xla import BRANCH
from marvel_jax.retrieval.encode_rows import coarse, steady_rows

_LONGEST_SHARED = 1024  # tokens: attention to all of a longer row costs more than sharing saves
_SHARED = 8  # candidates that a row should have room for behind their query
_SHORTEST_ROW = 64


class Unit(NamedTuple):
    """One query and some of its candidates, scored together: places among all pairs."""

    query: int
    pairs: tuple[int, ...]


class Plan(NamedTuple):
    """Units and the rows that they go in."""

    units: list[Unit]
    lengths: np.ndarray  # [units, 2] int64: (tokens, patches)
    shape: RowShape
    num_rows: int
    answers: int  # that a row has room for


class PackedPairs(NamedTuple):
    """Some rows, and where the answers of which pairs are."""

    rows: Rows
    places: np.ndarray  # [R, A] int32: the tokens before the answers, 0 where there is none
    row: np.ndarray  # [n] int32: of each pair in `pairs`
    column: np.ndarray  # [n] int32
    pairs: np.ndarray  # [n] int64


def plan_units(
    prefixes: np.ndarray,
    branches: np.ndarray,
    owners: np.ndarray,
    pairs: np.ndarray,
    *,
    share: bool,
    batch_tokens: int,
    merge_area: int,
    steady: int | None = None,
) -> Plan:
    """Which pairs share a row's prefix, and the size of the rows.

    Args:
      prefixes: [Q, 2] (tokens, patches) of what a query's pairs have in common.
      branches: [N, 2] of what each pair has besides.
      owners: [N] each pair's query.
      pairs: which of the N pairs; those of a query stand together.
      share: whether pairs of one query share its prefix; else each stands alone.
      batch_tokens: of all rows, about.
      merge_area: patches of one visual token.
      steady: for a server: a pair a row, so many rows a call, in few shapes.
    """
    own, prefix = branches[pairs].astype(np.int64), prefixes[owners[pairs]].astype(np.int64)
    single = own + prefix
    if steady is not None:
        units = [Unit(int(owners[pair]), (int(pair),)) for pair in pairs]
        shape, num_rows = steady_rows(single, most_rows=steady, merge_area=merge_area)
        return Plan(units, single, shape, num_rows, answers=1)
    tokens, patches = single.max(axis=0).tolist()
    row_tokens = max(_SHORTEST_ROW, coarse(tokens))
    mean_own, mean_prefix = own.mean(axis=0), prefix.mean(axis=0)
    if share:
        wanted = round(float(mean_prefix[0] + _SHARED * mean_own[0]))
        row_tokens = max(row_tokens, min(_LONGEST_SHARED, coarse(wanted)))
    row_patches = 0
    if patches:
        together = max(1.0, (row_tokens - mean_prefix[0]) / mean_own[0]) if share else 1.0
        mean = mean_prefix + together * mean_own
        wanted = max(patches, round(float(row_tokens * mean[1] / mean[0])))
        row_patches = merge_area * coarse(-(-wanted // merge_area))
    units = []
    lengths: list[np.ndarray] = []
    room = np.array([row_tokens, row_patches])
    for owner, group in itertools.groupby(
        range(len(pairs)), lambda place: int(owners[pairs[place]])
    ):
        members: list[int] = []
        size = prefix[0]
        for place in group:
            if members and (not share or (size + own[place] > room).any()):
                units.append(Unit(owner, tuple(members)))
                lengths.append(size)
                members = []
            size = own[place] + (size if members else prefix[place])
            members.append(int(pairs[place]))
        units.append(Unit(owner, tuple(members)))
        lengths.append(size)
    whole = np.array(lengths, np.int64).reshape(-1, 2)
    shape = RowShape(
        tokens=row_tokens,
        patches=row_patches,
        items=max(1, row_tokens // int(whole[:, 0].min())),
    )
    needed = -(-int(whole[:, 0].sum()) // row_tokens)
    return Plan(
        units=units,
        lengths=whole,
        shape=shape,
        num_rows=max(1, min(batch_tokens // row_tokens, coarse(needed))),
        answers=coarse(max(1, row_tokens // int(own[:, 0].min()))) if share else shape.items,
    )


def packed(plan: Plan, make: Callable[[Unit], Branched]) -> Iterator[Callable[[], PackedPairs]]:
    """The rows of a plan in groups; each is built when it is called, so threads may do it."""
    groups = row_batches(plan.lengths, plan.shape, num_rows=plan.num_rows)
    for placement in groups:
        yield functools.partial(_build, plan, make, placement)


def _build(
    plan: Plan, make: Callable[[Unit], Branched], placement: Sequence[Sequence[int]]
) -> PackedPairs:
    members = list(itertools.chain.from_iterable(placement))
    place = iter(range(len(members)))
    local = [list(itertools.islice(place, len(row))) for row in placement]
    made = [make(plan.units[member]) for member in members]
    rows, slots = build_rows([one.item for one in made], local, plan.shape, num_rows=plan.num_rows)
    places = np.zeros((plan.num_rows, plan.answers), np.int32)
    filled = [0] * plan.num_rows
    row_of: list[int] = []
    column_of: list[int] = []
    pairs: list[int] = []
    for slot, member, one in zip(slots.tolist(), members, made, strict=True):
        row, segment = divmod(slot, plan.shape.items)
        start = int(np.argmax(rows.segments[row] == segment + 1))
        rows.segments[row, start : start + len(one.branches)] += BRANCH * one.branches
        for pair, answer in zip(plan.units[member].pairs, one.answers.tolist(), strict=True):
            places[row, filled[row]] = start + answer
            row_of.append(row)
            column_of.append(filled[row])
            pairs.append(pair)
            filled[row] += 1
    return PackedPairs(
        rows, places, np.array(row_of), np.array(column_of), np.array(pairs, np.int64)
    )
