"""A file read at any place, from several threads and, once pickled, from other processes."""

import os
import threading
from pathlib import Path
from typing import Any

from marvel_jax.errors import MarvelError


class ByteFile:
    """Reads ranges of a file. It is opened at the first read, by each process for itself.

    Raises:
      MarvelError: the file is missing; later, it ends before a range that is asked for.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise MarvelError(f"{self.path} does not exist.")
        self._descriptor: int | None = None
        self._lock = threading.Lock()

    def read(self, start: int, end: int) -> bytes:
        """The bytes from `start` to before `end`."""
        with self._lock:
            if self._descriptor is None:
                self._descriptor = os.open(self.path, os.O_RDONLY)
        found = os.pread(self._descriptor, end - start, start)
        if len(found) < end - start:
            raise MarvelError(
                f"{self.path} has become shorter since it was opened: {end} bytes are expected."
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._descriptor = None
        self._lock = threading.Lock()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", None) is not None:
            os.close(self._descriptor)  # type: ignore[arg-type]
