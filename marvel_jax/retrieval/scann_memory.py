"""How much memory a process may take, and how many vectors of an index that is."""

import os
from collections.abc import Iterator
from pathlib import Path

from marvel_jax.errors import MarvelError

_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/sys/fs/cgroup")
_SHARE = 0.7
_GIB = 2**30


def budget(memory_gb: float | None) -> int:
    """Bytes that building may take: `memory_gb` (GiB), or 0.7 of what is free now.

    Free is what the system says is available, or what the container's limit leaves if that is
    less; pages of files that the system can drop count as free in both. The rest is for the model
    and the page cache beside it.

    Raises:
      MarvelError: `memory_gb` is not positive.
    """
    if memory_gb is not None:
        if memory_gb <= 0:
            raise MarvelError(f"memory={memory_gb}: give GiB above 0, or leave it out.")
        return int(memory_gb * _GIB)
    return int(_SHARE * min(_free()))


def _free() -> Iterator[int]:
    if _MEMINFO.is_file():
        for line in _MEMINFO.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024
    else:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit, used, parts in (
        ("memory.max", "memory.current", "memory.stat"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
        ),
    ):
        files = (_GROUPS / limit, _GROUPS / used)
        if all(file.is_file() for file in files):
            most, now = (file.read_text(encoding="ascii").strip() for file in files)
            if most.isdigit():
                held = max(0, int(now) - _droppable(_GROUPS / parts))
                yield max(0, int(most) - held)


def _droppable(stat: Path) -> int:
    """Bytes of a container's memory that are pages of files; 0 where it does not tell."""
    if not stat.is_file():
        return 0
    found = dict(line.split() for line in stat.read_text(encoding="ascii").splitlines() if line)
    # The first version of control groups counts a group's own, and with `total_` all below it.
    return sum(
        int(found.get(f"total_{name}", found.get(name, 0)))
        for name in ("active_file", "inactive_file")
    )
