"""Seconds, processor time and peak memory of contenders that take turns in one run."""

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from marvel_jax.bench.machine import cpu_seconds

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
# A runtime frees the memory of a step shortly after it has told that the step is done.
_SECONDS_TO_SETTLE = 0.2


class Lap(NamedTuple):
    """One call; `cpu_seconds` counts all threads."""

    seconds: float
    cpu_seconds: float


def lap(call: Callable[[], object]) -> Lap:
    """Times one call, which must not return before its work is done."""
    started, cpu = time.perf_counter(), cpu_seconds()
    call()
    return Lap(time.perf_counter() - started, cpu_seconds() - cpu)


def take_turns(
    contenders: Mapping[str, Callable[[], Lap]], *, repeats: int
) -> dict[str, list[Lap]]:
    """`repeats` laps of each in the order A B C A B C ..., so that a slow minute hits them all."""
    laps: dict[str, list[Lap]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            laps[name].append(run())
    return laps


def median(laps: Sequence[Lap]) -> Lap:
    """The medians of some laps."""
    return Lap(*(statistics.median(values) for values in zip(*laps, strict=True)))


def ratio(laps: Sequence[Lap], others: Sequence[Lap]) -> Lap:
    """Both times relative to another contender's: medians over the turns.

    Each turn is compared with itself, so that a change of the machine's pace cancels out.
    """
    pairs = zip(laps, others, strict=True)
    return median([Lap(*(a / max(b, 1e-9) for a, b in zip(*pair, strict=True))) for pair in pairs])


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes of host memory that a call takes at its worst, beside what stands before it.

    None where the system (other than Linux) does not tell. What earlier calls left with the
    allocator is given back first: it would hide what this call takes.
    """
    try:
        time.sleep(_SECONDS_TO_SETTLE)
        ctypes.CDLL(None).malloc_trim(0)
        _CLEAR.write_text("5", encoding="ascii")  # the high-water mark starts anew
        before = _status("VmRSS")
        call()
        return _status("VmHWM") - before
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{_STATUS} has no {name}")
