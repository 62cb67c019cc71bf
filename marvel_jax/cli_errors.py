"""What a person is told when a command fails, and the exit code."""

import errno
import functools
import json
import sys
from typing import Any

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import EXIT_ERROR, EXIT_INTERRUPTED

_DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain(error: BaseException) -> tuple[str, int] | None:
    """What a person is told of an error, and the exit code; None for a fault of ours."""
    if isinstance(error, MarvelError):
        return str(error), EXIT_ERROR
    if isinstance(error, KeyboardInterrupt):
        return "interrupted; run the same command again to go on.", EXIT_INTERRUPTED
    # One that is about a file that a user named, or about the disk.
    if isinstance(error, OSError) and (error.filename or error.errno in _DISK_IS_FULL):
        named = error.filename or "a file could not be written"
        return f"{named}: {error.strerror}.", EXIT_ERROR
    return None


def tell(message: str, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": message}, ensure_ascii=False))
    print(f"marvel: {message}", file=sys.stderr)


def voice(*, as_json: bool) -> Any:
    """How one of several processes speaks when it ends: as a single one does."""
    from marvel_jax.parallel.watch import Voice

    return Voice(explain, functools.partial(tell, as_json=as_json), as_json=as_json)
