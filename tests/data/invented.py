"""Lengths indexes made up for tests of the plan."""

from collections.abc import Sequence

import numpy as np

from marvel_jax.data.batch import item_key
from marvel_jax.data.lengths import LengthsIndex


def index(sizes: dict[int, int], *, positives: int = 1) -> LengthsIndex:
    """So many queries of each task; query q is answered by candidates q, q + 1..."""
    count = sum(sizes.values())
    answers = [[(query + i) % count for i in range(positives)] for query in range(count)]
    return of_lists(answers, candidates=count)._replace(
        tasks=np.repeat(list(sizes), list(sizes.values())).astype(np.int32)
    )


def of_lists(
    positives: Sequence[Sequence[int]],
    *,
    candidates: int,
    negatives: Sequence[Sequence[int]] | None = None,
) -> LengthsIndex:
    """Queries of task 0 with these positives and hard negatives among so many candidates."""
    count, rng = len(positives), np.random.default_rng(0)
    return LengthsIndex(
        queries=rng.integers(4, 60, (count, 2)).astype(np.int32),
        candidates=rng.integers(4, 60, (candidates, 2)).astype(np.int32),
        tasks=np.zeros(count, np.int32),
        datasets=np.zeros(count, np.int32),
        prompts=np.full(count, 3, np.int32),
        offsets=_offsets(positives),
        positives=_joined(positives),
        negative_offsets=np.zeros(0, np.int64) if negatives is None else _offsets(negatives),
        negatives=_joined(negatives or []),
        refused_negatives=np.array(0),
        query_ids=np.array([f"q{i}".encode() for i in range(count)]),
        candidate_ids=np.array([f"c{i}".encode() for i in range(candidates)]),
        query_keys=np.array([item_key("query", f"q{i}") for i in range(count)]),
        candidate_keys=np.array([item_key("candidate", f"c{i}") for i in range(candidates)]),
        fingerprint=np.array("x"),
    )


def _offsets(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.cumsum([0, *map(len, lists)])


def _joined(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.array([one for members in lists for one in members], np.int32)
