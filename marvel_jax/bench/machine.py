"""What a figure was taken on, and how a benchmark shows its figures."""

import datetime
import os
import platform
import resource
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

# They change what a step costs.
_VARIABLES = ("XLA_FLAGS", "GLIBC_TUNABLES", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "numpy",
    "torch",
    "transformers",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
    "libtpu",
)

# What runtimes say when memory does not suffice.
_TOO_LARGE = ("RESOURCE_EXHAUSTED", "ut of memory", "OutOfMemory")
_LONGEST_REASON = 300

Row = Mapping[str, Any]


def machine() -> dict[str, Any]:
    """Devices, processor, memory, versions, flags and the date: what decides a figure."""
    import jax

    devices = jax.devices()
    return {
        "device": devices[0].device_kind,
        "platform": devices[0].platform,
        "devices": len(devices),
        "processes": jax.process_count(),
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores": _cores(),
        "memory_gib": round(_memory() / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: version for name in _PACKAGES if (version := package_version(name))},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def result(name: str, rows: Sequence[Row], **facts: Any) -> dict[str, Any]:
    """The JSON object of a benchmark: its name, the machine, its rows and what else there is."""
    return {"bench": name, "machine": machine(), **facts, "rows": [dict(row) for row in rows]}


def lines(found: Mapping[str, Any]) -> list[str]:
    """A `result` for a person: the machine, a table of the rows, then its "notes".

    "compiled_for" names devices that figures were compiled for where they are not the machine's.
    """
    place = found["machine"]
    device = f"{place['devices']} x {place['device']} ({place['processor']}"
    versions = ", ".join(f"{name} {version}" for name, version in place["versions"].items())
    flags = "".join(f", {name}={value}" for name, value in place["environment"].items())
    head = f"{found['bench']} on {device}, {place['cores']} cores, {place['memory_gib']} GiB)"
    target = f", compiled for {found['compiled_for']}" if "compiled_for" in found else ""
    return [
        f"{head}, {place['date']}{target}",
        f"Python {place['python']}, {versions}{flags}",
        *table(found["rows"]),
        *found.get("notes", ()),
    ]


def cpu_seconds() -> float:
    """User and system time of this process, all threads together."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def failure(error: Exception) -> dict[str, Any]:
    """What a row says of a case that failed; to be too large for a device is no fault."""
    told = f"{type(error).__name__}: {error}".strip()
    if any(words in told for words in _TOO_LARGE):
        return {"failed": "does not fit into memory"}
    return {"failed": " ".join(told.split())[:_LONGEST_REASON], "ok": False}


def table(rows: Sequence[Row]) -> list[str]:
    """The rows under the names of all their fields, in order of first appearance."""
    fields = list(dict.fromkeys(field for row in rows for field in row))
    columns = []
    for field in fields:
        cells = [field, *(spell(row.get(field)) for row in rows)]
        width = max(map(len, cells))
        left = any(isinstance(row.get(field), str) for row in rows)
        columns.append([cell.ljust(width) if left else cell.rjust(width) for cell in cells])
    return ["  ".join(cells).rstrip() for cells in zip(*columns, strict=True)]


def spell(value: Any) -> str:
    """A figure as a person reads it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    if isinstance(value, int):
        return f"{value:,}"
    return str(value)


def package_version(name: str) -> str | None:
    """The version of an installed package, None where it is missing."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> int:
    """Physical memory in bytes."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _processor() -> str:
    """The processor's name, where the system tells it."""
    described = Path("/proc/cpuinfo")
    if described.is_file():
        for line in described.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
