"""The most memory that this process held since a moment."""

from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """The high-water mark of resident memory since this was made; all of it, with mapped files.

    Where the system does not let the mark start anew, the mark is that of the process's life.
    """

    def __init__(self) -> None:
        try:
            _CLEAR.write_text("5", encoding="ascii")
        except OSError:
            return

    def bytes(self) -> int | None:
        """The mark now; None where the system (other than Linux) does not tell it."""
        return status_bytes("VmHWM")


def status_bytes(name: str) -> int | None:
    """A line of /proc/self/status in bytes: VmHWM, VmRSS, RssAnon, ..."""
    try:
        text = _STATUS.read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None
