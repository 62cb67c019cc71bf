"""One process at a time in a folder that several share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from marvel_jax.parallel import hosts


@contextmanager
def locked(path: Path, *, say: Callable[[str], None] = lambda line: None) -> Iterator[None]:
    """Holds the lock file `path`, waiting for whoever has it; every process of a run calls it.

    The system lets go of it when the process ends, killed or not. On a network file system it
    needs that system's locks (NFS: `lockd`, or version 4).
    """
    with ExitStack() as held:

        def acquire() -> None:
            import fcntl  # not on every system; nothing else here needs it

            path.parent.mkdir(parents=True, exist_ok=True)
            file = held.enter_context(path.open("a"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another process is at {path.stem.removeprefix('.')}: waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)

        hosts.from_main(acquire)
        yield
