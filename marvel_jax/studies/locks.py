"""One process at a time in a folder that several share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from marvel_jax.parallel import hosts


@contextmanager
def locked(
    path: Path, *, wait: bool = True, say: Callable[[str], None] = lambda line: None
) -> Iterator[bool]:
    """Holds the lock file `path`, waiting for whoever has it; every process of a run calls it.

    Yields whether it is held: without `wait` it may be another's.

    The system lets go of it when the process ends, killed or not. On a network file system it
    needs that system's locks (NFS: `lockd`, or version 4).
    """
    with ExitStack() as held:

        def acquire() -> bool:
            import fcntl  # not on every system; nothing else here needs it

            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    return False
                say(f"another process is at {path.stem.removeprefix('.')}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            return True

        yield hosts.from_main(acquire)
