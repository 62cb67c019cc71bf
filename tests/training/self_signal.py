"""`marvel ...` in a process that sends itself a signal when a training step is written down.

python -m tests.training.self_signal SIGKILL 5 train ...
"""

import os
import signal
import sys
from typing import Any

from marvel_jax import cli
from marvel_jax.training.trackers import MetricsFile


def main(name: str, step: str, *args: str) -> None:
    write = MetricsFile.write

    def write_and_signal(self: MetricsFile, row: dict[str, Any]) -> None:
        write(self, row)
        if row["step"] == int(step):
            os.kill(os.getpid(), getattr(signal, name))

    MetricsFile.write = write_and_signal  # type: ignore[method-assign]
    cli.main(args)


if __name__ == "__main__":
    main(*sys.argv[1:])
