"""Lets ScaNN use the vector instructions that the processor has.

ScaNN chooses its kernels by flags of its library. Its wheels for x86-64 (1.3.5 to 1.4.2 were looked
at) lack the code that asks the processor, so that every flag says no and the oldest kernels (SSE4
for codes, AVX for distances) run on every machine: at little more than half of the speed. The flags
are exported; here they are given what ScaNN's own rule gives them.
`MARVEL_SCANN_INSTRUCTIONS=installed` leaves them as they are.
"""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path

from marvel_jax.errors import MarvelError

VARIABLE = "MARVEL_SCANN_INSTRUCTIONS"
AS_INSTALLED = "installed"

# What ScaNN asks of a processor, in the words of /proc/cpuinfo. Its other flags, for VNNI and AMX,
# speed up nothing that an index of ours does.
_NEEDS = {
    "avx2": {"avx2", "fma"},
    "avx512": {"avx2", "fma", "avx512f", "avx512dq", "avx512bw"},
}
_CPUINFO = Path("/proc/cpuinfo")


def enable(library: Path) -> tuple[str, ...]:
    """Raises the flags of ScaNN's library; must come before an index is built or loaded.

    Returns:
      The kernels, of "avx2" and "avx512", that ScaNN uses from now on and did not before. None
      where it asks the processor itself, or has no such flags, as on aarch64.

    Raises:
      MarvelError: the environment variable has another value than "installed".
    """
    asked = os.environ.get(VARIABLE, "")
    if asked not in ("", AS_INSTALLED):
        raise MarvelError(
            f"{VARIABLE}={asked}: expected {AS_INSTALLED!r}, which leaves ScaNN as it was "
            "installed, or that it is not set."
        )
    if asked == AS_INSTALLED:
        return ()
    usable = kernels(instructions())
    raised = []
    for name, flag in flags(library).items():
        if name in usable and not flag.value:
            flag.value = True
            raised.append(name)
    return tuple(raised)


def kernels(has: Iterable[str]) -> set[str]:
    """Which of ScaNN's sets of kernels run on a processor that `has` these instructions."""
    return {name for name, needed in _NEEDS.items() if needed <= set(has)}


def flags(library: Path) -> dict[str, ctypes.c_bool]:
    """Those that the library has: `research_scann::flags_internal::should_use_...`."""
    try:
        loaded = ctypes.CDLL(str(library))  # it is loaded already: the same one
    except OSError:
        return {}
    found = {}
    for name in _NEEDS:
        variable = f"should_use_{name}"
        try:
            symbol = f"_ZN14research_scann14flags_internal{len(variable)}{variable}E"
            found[name] = ctypes.c_bool.in_dll(loaded, symbol)
        except ValueError:
            continue
    return found


def instructions(cpuinfo: Path = _CPUINFO) -> list[str]:
    """What the system lets a program use of an x86-64 processor; nothing of another."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return []
    return next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
