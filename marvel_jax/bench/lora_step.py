"""The real train step with adapters at the shape of a published model: pairs/s and MFU."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from marvel_jax.bench.machine import failure
from marvel_jax.bench.stopwatch import Lap, lap, median
from marvel_jax.errors import MarvelError

if TYPE_CHECKING:
    from marvel_jax.data.batch import Batch
    from marvel_jax.models.config import Qwen2VLConfig
    from marvel_jax.training.config import TrainConfig

_MIB = 2**20
_ROOM = 0.85  # of the device's memory that a step may plan to use: allocators waste some


@dataclass(frozen=True, kw_only=True)
class LoraStepOptions:
    """What to measure: a step of `pairs` pairs of M-BEIR's mix, in GradCache chunks that fit.

    `shrink` divides the lengths of the items, for tiny models.

    The first try is `chunk_rows` and `remat`. Rows have `row_tokens` tokens and `row_patches`
    patches, adapters `rank`. A mini-batch of torch's cached loss is of `mini_batch` items, and
    `torch_batch_tokens` tokens at most.
    """

    architecture: str = "tiny"
    pairs: int = 512
    shrink: int = 1
    dtype: str = "bfloat16"
    kernel: str = "auto"
    row_tokens: int = 1536
    row_patches: int = 3712
    chunk_rows: int = 4
    remat: str = "attention"
    rank: int = 128
    temperature: float = 0.05
    mini_batch: int = 64
    torch_batch_tokens: int = 16_384
    repeats: int = 3
    seed: int = 0


def cases(
    options: LoraStepOptions, *, seconds_left: Callable[[], float] = lambda: float("inf")
) -> Iterator[dict[str, Any]]:
    """A row for the step in small chunks, then one for the largest chunks that fit.

    Memory is planned by the compiler; how it grows from one chunk size to the next says what fits.
    """
    import jax

    from marvel_jax.bench import shapes
    from marvel_jax.parallel.mesh import MeshConfig, make_mesh
    from marvel_jax.parallel.sharding import replicated

    architecture = shapes.architecture(options.architecture)
    mesh = make_mesh(MeshConfig())
    weights = shapes.random_weights(
        architecture, dtype=options.dtype, sharding=replicated(mesh), seed=options.seed
    )
    jax.block_until_ready(weights)
    began = time.perf_counter()
    for chunk_rows, remat in ((options.chunk_rows, options.remat), (1, options.remat), (1, "full")):
        tried = dataclasses.replace(options, chunk_rows=chunk_rows, remat=remat)
        row = _measure(tried, architecture, weights, mesh)
        yield row
        if "failed" not in row:
            break
    else:
        return
    took = time.perf_counter() - began
    larger = dataclasses.replace(tried, chunk_rows=_largest(row, tried.chunk_rows, _memory()))
    if larger != tried and seconds_left() > took:
        yield _measure(larger, architecture, weights, mesh)


def make_batch(
    options: LoraStepOptions, architecture: "Qwen2VLConfig", *, shards: int
) -> tuple["TrainConfig", "Batch"]:
    """The run that the step is of, and its first batch. No device is touched."""
    from marvel_jax.bench import invented
    from marvel_jax.bench.encode_items import shrunk
    from marvel_jax.data import lengths
    from marvel_jax.data.batch import RowShape
    from marvel_jax.data.epoch_plan import Plan, PlanConfig
    from marvel_jax.data.pipeline import build_batch
    from marvel_jax.models.lora import LoraConfig
    from marvel_jax.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig

    row = RowShape(tokens=options.row_tokens, patches=options.row_patches, items=64)
    config = TrainConfig(
        data=DataConfig(path="invented", global_batch=options.pairs, row=row),
        model=ModelConfig(
            scratch=architecture,
            dtype=options.dtype,  # type: ignore[arg-type]  # checked when it is made
            kernel=options.kernel,  # type: ignore[arg-type]  # likewise
            remat=options.remat,  # type: ignore[arg-type]  # likewise
            adapters=LoraConfig(rank=options.rank, alpha=2.0 * options.rank),
        ),
        optimizer=OptimizerConfig(temperature=options.temperature, warmup_fraction=0.0),
        chunk_rows=options.chunk_rows,
        seed=options.seed,
    )
    source = invented.source("mbeir", queries=options.pairs, brought=1, seed=options.seed)
    merge = architecture.vision.spatial_merge_size
    stands_in: Any = invented.InventedProcessor(
        shrunk(source.lengths, shrink=options.shrink, merge_area=merge**2),
        patch_values=architecture.vision.still_values,
        image_token_id=architecture.image_token_id,
        merge=merge,
        seed=options.seed,
    )
    index = lengths.index(source, stands_in, cache=None, hard_negatives=False)
    plan_config = PlanConfig(
        global_batch=options.pairs, seed=options.seed, row=row, chunk_rows=options.chunk_rows
    )
    plan = Plan(index, plan_config, num_shards=shards)
    return config, build_batch(source, stands_in, plan.step(0), range(shards))


def speed(
    options: LoraStepOptions,
    architecture: "Qwen2VLConfig",
    config: "TrainConfig",
    batch: "Batch",
    one: Lap,
    *,
    device_kind: str,
    devices: int,
) -> dict[str, Any]:
    """Pairs, tokens and useful TFLOP/s of a step, and MFU where the peak is known."""
    from marvel_jax.training.flops import count_work, peak_tflops, step_flops
    from marvel_jax.training.telemetry import adapter_ranks

    work = count_work(np.asarray(batch.rows.segments), np.asarray(batch.rows.patch_segments))
    flops = step_flops(
        architecture,
        work,
        queries=options.pairs,
        candidates=options.pairs,
        trained=lambda path: False,
        ranks=adapter_ranks(config, architecture),
    )
    tflops = flops / one.seconds / 1e12
    peak = peak_tflops(device_kind)
    return {
        "model": options.architecture,
        "devices": devices,
        "pairs": options.pairs,
        "pairs/s": round(options.pairs / one.seconds, 2),
        "tokens/s": round(work.tokens / one.seconds, 1),
        "seconds": round(one.seconds, 4),
        "tflops/s": round(tflops, 4),
        "mfu": None if peak is None else round(tflops / (peak * devices), 4),
        "dtype": options.dtype,
    }


def _measure(
    options: LoraStepOptions,
    architecture: "Qwen2VLConfig",
    weights: dict[str, Any],
    mesh: Any,
) -> dict[str, Any]:
    """The row of a step, or of one that does not fit and is not taken."""
    import jax

    from marvel_jax.bench.kernels import kernels_for
    from marvel_jax.parallel.mesh import data_shards
    from marvel_jax.parallel.sharding import put_batch, replicated
    from marvel_jax.training.optimizer import make_optimizer
    from marvel_jax.training.state import create_state, initial_values
    from marvel_jax.training.step import make_train_step

    shards = data_shards(mesh)
    config, batch = make_batch(options, architecture, shards=shards)
    _, told = kernels_for(options.kernel, architecture=architecture, dtype=options.dtype, mesh=mesh)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    # A copy of the tree: the frozen leaves are passed on as they are, and never donated.
    params, frozen = initial_values(config, architecture, weights=weights, temperature=None)
    placed = create_state(params, frozen, optimizer, config, architecture, mesh)
    step: Any = make_train_step(
        config,
        architecture,
        optimizer,
        mesh,
        shardings=placed.shardings,
        frozen_shardings=placed.frozen_shardings,
    )
    there = put_batch(batch, mesh)
    finite = jax.device_put(np.bool_(True), replicated(mesh))
    started = time.perf_counter()
    rows = len(batch.rows.tokens) // shards
    row: dict[str, Any] = {
        "step": f"GradCache, chunks of {options.chunk_rows} of {rows} rows",
        "rows": rows,
        "remat": options.remat,
    }
    try:
        compiled = step.lower(placed.state, placed.frozen, there, finite).compile()
    except jax.errors.JaxRuntimeError as error:  # a TPU's compiler refuses what does not fit
        found = failure(error)
        if "ok" in found:
            raise
        return row | found
    compile_seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    planned = {
        "argument_mib": round(memory.argument_size_in_bytes / _MIB, 1),
        "temporary_mib": round(memory.temp_size_in_bytes / _MIB, 1),
    }
    limit = _memory()
    if limit is not None and sum(planned.values()) * _MIB > limit:
        return row | planned | {"failed": f"does not fit into {limit / _MIB:,.0f} MiB"}
    state, metrics = placed.state, {}

    def take() -> None:
        nonlocal state, metrics
        state, metrics = compiled(state, placed.frozen, there, finite)
        jax.block_until_ready((state, metrics))

    take()
    first = float(metrics["loss"])
    if not np.isfinite(first):
        raise MarvelError(f"the first loss of {options.architecture} is {first}.")
    laps = [lap(take) for _ in range(options.repeats)]
    return {
        **row,
        **speed(
            options,
            architecture,
            config,
            batch,
            median(laps),
            device_kind=mesh.devices.flat[0].device_kind,
            devices=mesh.devices.size,
        ),
        "token_fill": round(float((batch.rows.segments > 0).mean()), 4),
        "kernel": told.name,
        "compile_seconds": round(compile_seconds, 1),
        **planned,
        "first_loss": first,
        "why": told.line,
    }


def _largest(row: dict[str, Any], chunk_rows: int, limit: int | None) -> int:
    """The largest chunk that fits, if all that is temporary grows with it; the same if unknown."""
    if limit is None:
        return chunk_rows
    free = _ROOM * limit / _MIB - row["argument_mib"]
    most = min(int(chunk_rows * free / row["temporary_mib"]), row["rows"])
    if most < 2 * chunk_rows:
        return chunk_rows
    # At least half of that: the plan rounds the rows up to whole chunks.
    return min(range(-(-most // 2), most + 1), key=lambda each: (-row["rows"] % each, -each))


def _memory() -> int | None:
    """Bytes of a device, where it tells."""
    import jax

    return (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
