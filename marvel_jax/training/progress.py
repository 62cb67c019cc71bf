"""What a run shows while it goes: what it is doing before the first step, then a live line."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# Without a terminal (a log file, CI) a line now and then replaces the live display.
_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BEFORE_A_PHASE_IS_TOLD = 2.0


class Teller:
    """Tells on standard error what is being done; a quiet one (other processes) tells nothing."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)

    def say(self, line: str) -> None:
        """One line that stays."""
        self._console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Shows `name` while the body runs; yields `(done, total)` for a body that counts.

        In a terminal it vanishes again; in a log a phase leaves one line if it took its time.
        """
        started = time.perf_counter()
        if self._console.is_terminal and not self._console.quiet:
            with self._console.status(name) as status:
                yield lambda done, total: status.update(f"{name} {done:,}/{total:,}")
            return
        yield lambda done, total: None
        seconds = time.perf_counter() - started
        if seconds > _SECONDS_BEFORE_A_PHASE_IS_TOLD:
            self.say(f"{name}: {seconds:.0f} s")


class TrainProgress:
    """A live line: step, loss, temperature, pairs/s, share of waiting for data, time left."""

    def __init__(self, *, total: int, done: int, label: str = "train", quiet: bool = False) -> None:
        self._console = Console(stderr=True, quiet=quiet)
        self._live = self._console.is_terminal and not quiet
        self._total = total
        self._label = label
        self._last_line = 0.0
        self._started = time.perf_counter()
        self._first = done
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            # In a narrow window the figures count, not the bar.
            *([BarColumn(bar_width=24)] if self._console.width >= 110 else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        """One line that stays, above the live one."""
        self._progress.console.print(line, highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Shows what the run does besides stepping, until the next update."""
        self._progress.update(self._task, note=text)
        if not self._live:
            self._console.print(f"{self._label}: {text}", highlight=False, soft_wrap=True)

    def update(self, done: int, row: dict[str, Any]) -> None:
        """Shows the row of metrics after `done` steps."""
        waiting = row["wait_seconds"] / max(row["seconds"], 1e-9)
        note = (
            f"loss {row['loss']:.3f}  {_told(row)}"
            f"{row['pairs_per_second']:.0f} pairs/s  wait {waiting:.0%}"
        )
        self._progress.update(self._task, completed=done, note=note)
        now = time.perf_counter()
        if not self._live and (
            now - self._last_line > _SECONDS_BETWEEN_LINES or done == self._total
        ):
            self._last_line = now
            pace = (now - self._started) / max(1, done - self._first)
            left = pace * (self._total - done)
            line = f"{self._label} {done}/{self._total}  {note}  {left:.0f} s left"
            self._console.print(line, highlight=False, soft_wrap=True)


def _told(row: dict[str, Any]) -> str:
    """What the objective has to tell besides its loss."""
    if "temperature" in row:
        return f"temperature {row['temperature']:.4f}  "
    return f"accuracy {row['accuracy']:.3f}  "
