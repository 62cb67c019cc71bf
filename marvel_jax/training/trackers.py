"""What a run writes down: JSON lines always, TensorBoard and Weights & Biases where asked."""

import contextlib
import datetime
import importlib
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_jsonl, write_jsonl, write_text
from marvel_jax.training.config import TrackingConfig

# What depends on the clock, the machine or a restart: two runs of one recipe differ in nothing
# else.
CLOCK_FIELDS = frozenset(
    {
        "seconds",
        "step_seconds",
        "wait_seconds",
        "checkpoint_seconds",
        "pairs_per_second",
        "tokens_per_second",
        "tflops_per_second",
        "mfu",
        "memory_bytes",
        "compilations",
    }
)


def reproducible(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of metrics without `CLOCK_FIELDS`: equal in every run of the same recipe."""
    return {name: value for name, value in row.items() if name not in CLOCK_FIELDS}


class Tracker(Protocol):
    """Takes the row of each step, `row["step"]` counted from 0; None marks what is unknown."""

    def write(self, row: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class MetricsFile:
    """`metrics.jsonl`: one object a step, on disk as soon as it is written."""

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
        # Unbuffered: after a failed write nothing is left to fail again.
        self._stream = self._path.open("ab", buffering=0)

    def write(self, row: Mapping[str, Any]) -> None:
        """Appends one step.

        Raises:
          MarvelError: the disk is full, or broken.
        """
        line = (json.dumps(dict(row)) + "\n").encode()
        try:
            written = self._stream.write(line)
        except OSError as error:
            raise self._failed(os.strerror(error.errno or 0)) from error
        if written != len(line):
            raise self._failed("only a part was written")

    def close(self) -> None:
        """Closes the file."""
        self._stream.close()

    def _failed(self, cause: str) -> MarvelError:
        return MarvelError(
            f"{self._path} cannot be written to: {cause}. The checkpoints are whole: free some "
            "space, and run the same command again to go on from the last one."
        )


class EventsFile:
    """`events.jsonl`: what happened besides the steps (start, compile, checkpoint, stop), and when.

    It is never cut back: it tells of every process that worked on the run.
    """

    def __init__(self, path: Path, *, quiet: bool = False) -> None:
        """A quiet one, of another process than the first, writes nothing."""
        self._stream = None if quiet else path.open("ab", buffering=0)

    def write(self, event: str, **facts: Any) -> None:
        """Appends one event; on a full disk it is left out, for the metrics will tell."""
        if self._stream is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):
            self._stream.write((json.dumps({"event": event, "time": now, **facts}) + "\n").encode())

    def close(self) -> None:
        """Closes the file."""
        if self._stream is not None:
            self._stream.close()


class TensorBoard:
    """Event files that `tensorboard --logdir` shows, written without TensorFlow."""

    def __init__(self, folder: Path, *, resume_at: int) -> None:
        module = _extra("tensorboardX", extra="tensorboard", field="tracking.tensorboard=True")
        # TensorBoard then hides what a killed run wrote after its last checkpoint.
        self._writer = module.SummaryWriter(logdir=str(folder), purge_step=resume_at)

    def write(self, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, global_step=row["step"])

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of a Weights & Biases project; its variables (WANDB_MODE, ...) are respected."""

    def __init__(self, workdir: Path, *, project: str, recipe: Mapping[str, Any]) -> None:
        field = f"tracking.wandb_project={project}"
        module = _extra("wandb", extra="wandb", field=field)
        # One name on both sides, so that a resumed run goes on where it was.
        name_file = workdir / "wandb_id"
        if not name_file.is_file():
            write_text(name_file, uuid.uuid4().hex[:8])
        self._run = module.init(
            project=project,
            id=name_file.read_text(encoding="utf-8"),
            name=workdir.resolve().name,
            dir=str(workdir),
            config=dict(recipe),
            resume="allow",
        )
        # Its own step only grows; a resumed run goes over some steps again.
        self._run.define_metric("*", step_metric="step")

    def write(self, row: Mapping[str, Any]) -> None:
        self._run.log({"step": row["step"], **_numbers(row)})

    def close(self) -> None:
        self._run.finish()


def open_trackers(
    config: TrackingConfig, workdir: Path, *, recipe: Mapping[str, Any], resume_at: int
) -> list[Tracker]:
    """The trackers that the config asks for besides `metrics.jsonl`.

    Raises:
      MarvelError: the library of one is not installed; the message names the extra.
    """
    trackers: list[Tracker] = []
    if config.tensorboard:
        trackers.append(TensorBoard(workdir / "tensorboard", resume_at=resume_at))
    if config.wandb_project is not None:
        trackers.append(WeightsAndBiases(workdir, project=config.wandb_project, recipe=recipe))
    return trackers


def _extra(module: str, *, extra: str, field: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MarvelError(
            f"{field} needs {module}, which is not installed: pip install 'marvel-jax[{extra}]', "
            "or leave it out; metrics.jsonl has the same figures."
        ) from error


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in row.items()
        if name != "step" and isinstance(value, int | float)
    }
