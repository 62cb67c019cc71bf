"""The row of metrics of each step: the device's own, and where the time went."""

import resource
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from marvel_jax.models import lora
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.parallel.mesh import data_shards
from marvel_jax.parallel.sharding import batch_sharding, local_data_shards, replicated
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.flops import Work, count_batch, peak_tflops, step_flops
from marvel_jax.training.objective_config import brought, contrasts, listed
from marvel_jax.training.state import is_frozen

_Batch = TypeVar("_Batch")


class Dispatched(NamedTuple):
    """A step that the devices have been given; its values may not be there yet."""

    step: int
    metrics: dict[str, jax.Array]
    work: jax.Array  # [7] float32, the fields of `Work` over the global batch
    rows: int  # of the global batch


class Meter:
    """Times the run's parts and turns each step's values into a row of metrics.

    Seconds are the host's: `seconds` from the end of the step before to the end of this one, of it
    `wait_seconds` for data and `checkpoint_seconds` in saving, and `step_seconds` the rest.
    """

    def __init__(
        self,
        config: TrainConfig,
        architecture: Qwen2VLConfig,
        mesh: Mesh,
        *,
        peak: float | None = None,
    ) -> None:
        """`peak` is a device's TFLOP/s where the table of `flops` does not know it."""
        self._config = config
        self._architecture = architecture
        self._shards = data_shards(mesh)
        self._local_shards = len(local_data_shards(mesh))
        self._sharding = batch_sharding(mesh)
        self._sum = jax.jit(lambda counts: counts.sum(axis=0), out_shardings=replicated(mesh))
        device = mesh.devices.flat[0]
        known = peak_tflops(device.device_kind) if peak is None else peak
        self.peak = None if known is None else known * mesh.devices.size
        self._ranks = adapter_ranks(config, architecture)
        self._seen: set[Any] = set()
        self._spent = {"wait": 0.0, "checkpoint": 0.0}
        self._ended = time.perf_counter()

    def timed(self, batches: Iterable[_Batch]) -> Iterator[_Batch]:
        """The batches; the time that each takes to come counts as waiting for data."""
        iterator = iter(batches)
        while True:
            with self._spending("wait"):
                batch = next(iterator, None)
            if batch is None:
                return
            yield batch

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Counts the body as saving a checkpoint."""
        with self._spending("checkpoint"):
            yield

    @contextmanager
    def _spending(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent[name] += time.perf_counter() - started

    def is_new(self, batch: Any) -> bool:
        """Whether no batch of these shapes was seen before, so that the step will be compiled."""
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes in self._seen:
            return False
        self._seen.add(shapes)
        return True

    def global_rows(self, batch: Any) -> int:
        """How many rows the global batch has, of which this process has a part."""
        return len(batch.rows.tokens) // self._local_shards * self._shards

    def count(self, batch: Any) -> tuple[jax.Array, int]:
        """The work in a batch of which this process has a part, summed on the devices; its rows."""
        parts = [batch.rows.segments, batch.rows.patch_segments, *_predicting(batch)]
        counts = [
            count_batch(*shard)
            for shard in zip(*(_split(part, self._local_shards) for part in parts), strict=True)
        ]
        # Not on the host: with several processes that would be a round of messages a step.
        ours = jax.make_array_from_process_local_data(self._sharding, np.array(counts, np.float32))
        return self._sum(ours), self.global_rows(batch)

    def finish(self, dispatched: Dispatched) -> dict[str, Any]:
        """Waits for a step and returns its row; what is not known on this device is None."""
        values, counted = jax.device_get((dispatched.metrics, dispatched.work))
        now = time.perf_counter()
        seconds, self._ended = now - self._ended, now
        wait, saving = self._spent["wait"], self._spent["checkpoint"]
        self._spent = dict.fromkeys(self._spent, 0.0)
        work = Work(*(int(value) for value in counted))
        row = {name: float(value) for name, value in values.items() if name != "finite"}
        row |= {"step": dispatched.step, "rows": dispatched.rows}
        row |= self._fill(work, dispatched.rows)
        row |= {
            "seconds": round(seconds, 4),
            "step_seconds": round(max(0.0, seconds - wait - saving), 4),
            "wait_seconds": round(wait, 4),
            "checkpoint_seconds": round(saving, 4),
            "pairs_per_second": round(self._config.data.global_batch / seconds, 2),
            "tokens": work.tokens,
            "tokens_per_second": round(work.tokens / seconds, 1),
            "compilations": len(self._seen),
            "memory_bytes": memory_bytes(),
        }
        return row | self._speed(work, seconds)

    def _fill(self, work: Work, rows: int) -> dict[str, float]:
        row = self._config.data.row
        patches = rows * row.patches
        return {
            "token_fill": round(work.tokens / (rows * row.tokens), 4),
            "patch_fill": round(work.patches / patches, 4) if patches else 1.0,
        }

    def _speed(self, work: Work, seconds: float) -> dict[str, float | None]:
        data, objective = self._config.data, self._config.objective
        flops = step_flops(
            self._architecture,
            work,
            queries=data.global_batch,
            candidates=compared(self._config),
            trained=lambda path: not is_frozen(path, self._config),
            ranks=self._ranks,
            causal=objective == "rerank" or self._config.embedding.attention == "causal",
        )
        tflops = flops / seconds / 1e12
        return {
            "flops": flops,
            "tflops_per_second": round(tflops, 6),
            "mfu": None if self.peak is None else round(tflops / self.peak, 4),
        }


def adapter_ranks(config: TrainConfig, architecture: Qwen2VLConfig) -> dict[str, int]:
    """The rank of each adapted linear: {"language/blocks/query": 128}."""
    if config.model.adapters is None:
        return {}
    shapes = lora.adapter_shapes(architecture, config.model.adapters)
    return {
        path.removesuffix("/a"): shape[-1] for path, shape in shapes.items() if path[-2:] == "/a"
    }


def compared(config: TrainConfig) -> int:
    """How many candidates the loss compares a query with: the batch's, its own list's, or both."""
    if config.objective == "rerank":
        return 0
    return config.data.global_batch * brought(config) * contrasts(config) + listed(config)


def _predicting(batch: Any) -> tuple[Any, Any]:
    """Segments of rows that are read for the next token alone, and what is to be predicted."""
    texts = getattr(batch, "texts", None)
    if texts is not None:
        return texts.rows.segments, texts.rows.pooled
    return None, getattr(batch, "supervised", None)


def _split(array: Any, shards: int) -> list[Any]:
    return [None] * shards if array is None else np.split(array, shards)


def memory_bytes() -> int:
    """The peak so far: of a device's memory where it tells, else of this process (see above)."""
    stats = jax.local_devices()[0].memory_stats() or {}
    peak = stats.get("peak_bytes_in_use")
    if peak is not None:
        return int(peak)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024  # kilobytes elsewhere


def memory_kind() -> str:
    """What `memory_bytes` tells of: "device" or "process"."""
    return (
        "device"
        if "peak_bytes_in_use" in (jax.local_devices()[0].memory_stats() or {})
        else "process"
    )
