"""One process at a time in a folder that several share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

from marvel_jax.file_locks import lock
from marvel_jax.parallel import hosts


@contextmanager
def locked(
    path: Path, *, wait: bool = True, say: Callable[[str], None] = lambda line: None
) -> Iterator[bool]:
    """Holds the lock file `path`, waiting for whoever has it; every process of a run calls it.

    Yields whether it is held: without `wait` it may be another's.
    """
    with ExitStack() as held:

        def acquire() -> bool:
            what = path.stem.removeprefix(".")
            told = partial(say, f"another process is at {what}: waiting for it")
            file = lock(path, on_wait=told if wait else None)
            if file is not None:
                held.enter_context(file)
            return file is not None

        yield hosts.from_main(acquire)
