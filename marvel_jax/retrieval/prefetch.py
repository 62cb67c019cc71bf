"""Work that threads do ahead of the caller: Pillow and the tokenizer let go of Python's lock."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

_MOST_WORKERS = 8
_DEPTH = 4

Value = TypeVar("Value")
Made = TypeVar("Made")


def workers() -> ThreadPoolExecutor:
    """A pool of threads for decoding: half of the cores, at least two and at most eight."""
    return ThreadPoolExecutor(max_workers=min(_MOST_WORKERS, max(2, cores() // 2)))


def cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[Value], Made],
    values: Iterable[Value],
    *,
    depth: int = _DEPTH,
) -> Iterator[Made]:
    """Maps in order, with `depth` calls under way while the caller works.

    What is under way is given up when the caller stops early.
    """
    waiting: deque[Any] = deque()
    try:
        for value in values:
            waiting.append(pool.submit(function, value))
            if len(waiting) > depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for left in waiting:
            left.cancel()
