"""Milliseconds, useful TFLOP/s and bytes of attention in packed rows, by kernel and tower."""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.bench.machine import cpu_seconds, failure, result
from marvel_jax.errors import MarvelError

_MIB = 2**20
# Calls under way at once in a timed lap: what a launch costs on the host is then no part of it.
_SECONDS_A_LAP = 0.05
_MOST_CALLS = 20


class Tower(NamedTuple):
    """Query heads, key heads and their size."""

    heads: int
    groups: int
    size: int


TOWERS = {
    "language 2B": Tower(12, 2, 128),
    "language 7B": Tower(28, 4, 128),
    "vision": Tower(16, 16, 80),
    "tiny": Tower(4, 2, 32),
}
KERNELS = ("xla", "xla, inputs kept", "pallas", "cudnn")


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """What to measure: every kernel that there is, on rows of items of about `item` tokens.

    "xla" keeps the attention weights for the backward pass, "xla, inputs kept" computes them again.
    cuDNN, which knows no segments, gets rows of one item; its useful work is counted for those.
    """

    tower: tuple[str, ...] = ("language 7B", "vision")
    kernel: tuple[str, ...] = KERNELS
    rows: int = 4
    length: int = 4096
    item: int = 200
    dtype: str = "bfloat16"
    repeats: int = 5

    def __post_init__(self) -> None:
        for name, known in (("tower", tuple(TOWERS)), ("kernel", KERNELS)):
            strange = sorted(set(getattr(self, name)) - set(known))
            if strange or not getattr(self, name):
                raise MarvelError(f"{name} {strange}: choose of {'; '.join(known)}.")
        for name in ("rows", "length", "item", "repeats"):
            if getattr(self, name) < 1:
                raise MarvelError(f"{name}={getattr(self, name)}: give at least 1.")
        if self.dtype not in ("float32", "bfloat16"):
            raise MarvelError(f"dtype={self.dtype!r}: choose float32 or bfloat16.")


def defaults(platform: str) -> AttentionOptions:
    """What a platform does in a minute: the published heads, or on a CPU fewer rows in float32."""
    if platform == "cpu":
        return AttentionOptions(tower=("vision",), rows=1, length=1024, dtype="float32", repeats=3)
    return AttentionOptions()


def run(options: AttentionOptions) -> dict[str, Any]:
    """A row for each tower, kernel and direction; `mib` is planned by XLA beside the inputs."""
    notes = []
    rows = []
    for row in cases(options):
        if "left_out" in row:
            notes.append(f"{row['kernel']} left out: {row['left_out']}")
        else:
            rows.append(row)
    return result(
        "attention", rows, length=options.length, item=options.item, dtype=options.dtype,
        repeats=options.repeats, notes=list(dict.fromkeys(notes)),
    )  # fmt: skip


def cases(
    options: AttentionOptions,
    *,
    seconds_left: Callable[[], float] = lambda: float("inf"),
    catch: bool = False,
) -> Iterator[dict[str, Any]]:
    """The rows of `run`, one by one; "left_out" says why a kernel has none.

    With `catch`, a kernel that fails has a row that says why, and the others go on.
    """
    from marvel_jax.bench.attention_cases import make_case
    from marvel_jax.bench.kernels import needs_one_item

    for name in options.tower:
        tower = TOWERS[name]
        for asked in options.kernel:
            if seconds_left() <= 0:
                return
            kernel, keep = _kernel(asked)
            if kernel is None:
                yield {"tower": name, "kernel": asked, "left_out": "it is not for this platform"}
                continue
            case = make_case(
                rows=options.rows,
                length=options.length,
                heads=tower.heads,
                groups=tower.groups,
                size=tower.size,
                one_item=needs_one_item(kernel),
                item=options.item,
            )
            try:
                yield from _both(options, name, asked, case, kernel, keep)
            except Exception as error:
                if not catch:
                    raise
                yield {"tower": name, "kernel": asked} | failure(error)


def _kernel(asked: str) -> tuple[Any, str]:
    """The kernel and what its backward pass finds; None where the platform has no such kernel."""
    import jax

    from marvel_jax.bench.kernels import available
    from marvel_jax.models.kernels import XLA

    if asked.startswith("xla"):
        return XLA, "inputs" if "inputs" in asked else "weights"
    pallas = {"tpu": "splash"}.get(jax.devices()[0].platform, "pallas_gpu")
    name = pallas if asked == "pallas" else asked
    return next((kernel for kernel in available() if kernel.name == name), None), "inputs"


def _both(
    options: AttentionOptions, tower: str, asked: str, case: Any, kernel: Any, keep: str
) -> Iterator[dict[str, Any]]:
    import jax
    import jax.numpy as jnp

    from marvel_jax.bench.attention_cases import pairs
    from marvel_jax.bench.kernels import run_with

    *inputs, cotangent = (
        jnp.asarray(x, options.dtype) for x in (case.query, case.key, case.value, case.cotangent)
    )
    segments = case.segments

    def forward(*inputs: Any) -> Any:
        return run_with(kernel, *inputs, segments=segments, keep=keep)

    def both(cotangent: Any, *inputs: Any) -> Any:
        output, pull = jax.vjp(forward, *inputs)
        return output, pull(cotangent)

    size = TOWERS[tower]
    # Two products forward, four backward; what is computed again is no work.
    once = 4.0 * size.heads * size.size * pairs(segments)
    for direction, call, given, flops in (
        ("forward", forward, inputs, once),
        ("forward and backward", both, [cotangent, *inputs], 3 * once),
    ):
        compiled = jax.jit(call).lower(*given).compile()
        memory = compiled.memory_analysis()
        seconds, processor = _time(compiled, given, options.repeats)
        yield {
            "tower": tower,
            "kernel": asked,
            "direction": direction,
            "rows": options.rows,
            "items": "one a row" if asked == "cudnn" else "several",
            "ms": round(seconds * 1e3, 4),
            "cpu_ms": round(processor * 1e3, 3),
            "tflops/s": round(flops / seconds / 1e12, 4),
            "mib": None if memory is None else round(memory.temp_size_in_bytes / _MIB, 1),
        }


def _time(call: Any, given: list[Any], repeats: int) -> tuple[float, float]:
    """Medians of seconds and processor seconds a call, several calls in flight."""
    import jax

    jax.block_until_ready(call(*given))
    started = time.perf_counter()
    jax.block_until_ready(call(*given))
    one = time.perf_counter() - started
    calls = int(np.clip(_SECONDS_A_LAP / max(one, 1e-6), 1, _MOST_CALLS))
    seconds, processor = [], []
    for _ in range(repeats):
        started, used = time.perf_counter(), cpu_seconds()
        for _ in range(calls):
            found = call(*given)
        jax.block_until_ready(found)
        seconds.append((time.perf_counter() - started) / calls)
        processor.append((cpu_seconds() - used) / calls)
    return statistics.median(seconds), statistics.median(processor)
