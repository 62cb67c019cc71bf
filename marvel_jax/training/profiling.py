"""A trace of a few steps, for xprof."""

import re
from pathlib import Path
from types import TracebackType
from typing import Self

import jax

from marvel_jax.errors import MarvelError


def parse_steps(text: str) -> tuple[int, int]:
    """The first and the last step to trace, counted from 0, of "10:12".

    Raises:
      MarvelError: it is not of that form.
    """
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or int(found[1]) > int(found[2]):
        raise MarvelError(f"--profile-steps {text}: expected FIRST:LAST, both traced, as in 10:12.")
    return int(found[1]), int(found[2])


class Profiler:
    """Traces the steps `first` to `last` into a folder; None traces nothing."""

    def __init__(self, steps: tuple[int, int] | None, folder: Path) -> None:
        self._steps = steps
        self._folder = folder
        self._running = False

    def out_of_reach(self, done: int, steps: int) -> str | None:
        """What to tell of a run from step `done` to `steps` that does not come to the first."""
        if self._steps is None or done <= self._steps[0] < steps:
            return None
        return (
            f"nothing is traced: --profile-steps begins at step {self._steps[0]}, and this run "
            f"takes the steps {done} to {steps - 1}"
        )

    def before(self, step: int) -> None:
        """Called before a step is handed to the devices, those before it being done."""
        if self._steps is not None and not self._running and step == self._steps[0]:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def is_edge(self, step: int) -> bool:
        """Whether the devices must be done with `step` before the next one."""
        return self._steps is not None and step in (self._steps[0] - 1, self._steps[1])

    def after(self, step: int) -> str | None:
        """Called when the devices are done with a step; returns what to tell when all is traced."""
        if self._steps is None or not self._running or step < self._steps[1]:
            return None
        self._stop()
        first, last = self._steps
        return (
            f"traced steps {first} to {last} into {self._folder}; to see it: "
            f"pip install xprof && xprof --logdir {self._folder}"
        )

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running:
            self._stop()
