"""Where the row of each step goes: files, trackers, the terminal; and what stands beside them."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from marvel_jax.training import failures
from marvel_jax.training.progress import TrainProgress
from marvel_jax.training.telemetry import Dispatched, Meter
from marvel_jax.training.trackers import EventsFile, Tracker


class Reporter:
    """Writes down one step after the other, and stops the run at one that is not finite."""

    def __init__(
        self,
        meter: Meter,
        *,
        trackers: Sequence[Tracker],
        events: EventsFile,
        progress: TrainProgress,
    ) -> None:
        self._meter = meter
        self._trackers = trackers
        self._events = events
        self._progress = progress
        self._since_checkpoint: list[dict[str, Any]] = []

    @contextmanager
    def dispatching(self, step: int, batch: Any) -> Iterator[None]:
        """Tells if handing over a batch of these shapes means compiling the step for them."""
        if not self._meter.is_new(batch):
            yield
            return
        rows = self._meter.global_rows(batch)
        known = getattr(batch, "positive_ids", None)
        positives = 0 if known is None else known.shape[1]
        self._progress.note(f"compiling the step for {rows} rows")
        started = time.perf_counter()
        yield
        seconds = round(time.perf_counter() - started, 2)
        self._events.write("compile", step=step, rows=rows, positives=positives, seconds=seconds)

    def report(self, dispatched: Dispatched) -> None:
        """Waits for a step and writes down its row.

        Raises:
          NotFiniteError: its loss or gradient is not a number; nothing is written down.
        """
        row = self._meter.finish(dispatched)
        if not failures.is_finite(row):
            raise failures.NotFiniteError(row)
        for tracker in self._trackers:
            tracker.write(row)
        self._progress.update(row["step"] + 1, row)
        self._since_checkpoint.append(row)

    def since_checkpoint(self) -> dict[str, float]:
        """The mean of each metric over the steps since this was last asked: one batch is noise."""
        rows, self._since_checkpoint = self._since_checkpoint, []
        names = [name for name in ("loss", "accuracy", "positive_similarity") if name in rows[0]]
        return {name: sum(row[name] for row in rows) / len(rows) for name in names}
