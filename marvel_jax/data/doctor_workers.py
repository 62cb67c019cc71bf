"""Work spread over processes, its results in the order of the tasks whatever finishes first."""

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from marvel_jax.errors import MarvelError

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_AHEAD = 4  # tasks handed out per process: bounds the results that wait for their turn


def available_cores() -> int:
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Workers:
    """So many processes, started when there is enough to do for them. A context manager.

    Ctrl-C reaches this process alone; the others finish the tasks at hand and end.

    Raises:
      MarvelError: `jobs` is below 1.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise MarvelError(f"jobs is {jobs}: give at least 1.")
        self._jobs = jobs
        self._executor: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)

    def map(
        self, function: Callable[[_Task], _Result], tasks: Sequence[_Task], *, worthwhile: bool
    ) -> Iterator[_Result]:
        """`function` of each task, in the tasks' order; in this process where others do not pay.

        Raises:
          MarvelError: a process died, as one does that the system ends for its memory.
        """
        if self._jobs == 1 or not worthwhile:
            yield from map(function, tasks)
            return
        executor = self._start()
        waiting: deque[Future[_Result]] = deque()
        try:
            for task in tasks:
                waiting.append(executor.submit(function, task))
                if len(waiting) >= _AHEAD * self._jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise MarvelError(
                "A process of the check died, perhaps for want of memory: run it with fewer "
                "--jobs, and --jobs 1 tells which file it is at."
            ) from error

    def _start(self) -> ProcessPoolExecutor:
        if self._executor is None:
            # Not forked: the thread that draws the progress bar may hold a lock at that moment.
            self._executor = ProcessPoolExecutor(
                self._jobs,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=signal.signal,
                initargs=(signal.SIGINT, signal.SIG_IGN),
            )
        return self._executor
