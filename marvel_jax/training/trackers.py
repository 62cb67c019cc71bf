"""What a run writes down (JSON lines) and shows (a progress line)."""

import json
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from marvel_jax.files import read_jsonl, write_jsonl, write_text

# Without a terminal (a log file, CI) a line now and then replaces the live display.
_SECONDS_BETWEEN_LINES = 15.0


class MetricsFile:
    """`metrics.jsonl`: one object a step, appended and flushed."""

    def __init__(self, path: Path | str, *, resume_at: int) -> None:
        """Opens the file, cutting it back to the steps before `resume_at`."""
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            text = self._path.read_text(encoding="utf-8")
            # A killed process may leave half a last line.
            write_text(self._path, text[: text.rfind("\n") + 1])
            kept = [row for _, row in read_jsonl(self._path) if row["step"] < resume_at]
            write_jsonl(self._path, kept)
        self._stream = self._path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Appends one step; `row["step"]` counts from 0."""
        self._stream.write(json.dumps(row) + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()


class TrainProgress:
    """A live line: step, loss, temperature, pairs/s, time left."""

    def __init__(self, *, total: int, done: int, label: str = "train") -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._total = total
        self._label = label
        self._last_line = 0.0
        self._started = time.perf_counter()
        self._first = done
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._progress.add_task(label, total=total, completed=done, note="compiling")

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

    def update(
        self, done: int, *, loss: float, temperature: float, pairs_per_second: float
    ) -> None:
        """Shows the state after `done` steps."""
        note = f"loss {loss:.3f}  temperature {temperature:.4f}  {pairs_per_second:.0f} pairs/s"
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
