"""Locks between processes, as files. The system lets go of one when its process ends or is killed.

On a network file system they need that system's locks (NFS: `lockd`, or version 4).
"""

from collections.abc import Callable
from pathlib import Path
from typing import IO


def lock(path: Path, *, on_wait: Callable[[], None] | None = None) -> IO[str] | None:
    """The lock file, open: closing it lets go. None where another process holds it.

    With `on_wait`, which is told so, it waits for the other. On Windows there is no such lock:
    two at once are the user's to avoid there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("a")
    try:
        import fcntl
    except ImportError:
        return file
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if on_wait is None:
            file.close()
            return None
        on_wait()
        fcntl.flock(file, fcntl.LOCK_EX)
    return file
