"""`marvel ...` in a process to which something happens when a training step is written down.

python -m tests.training.self_signal SIGKILL 5 train ...    a signal to itself
python -m tests.training.self_signal 16384 5 train ...      files cannot grow beyond so many bytes,
                                                            from the first whole checkpoint on
"""

import os
import resource
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marvel_jax import cli
from marvel_jax.training.trackers import MetricsFile


def main(what: str, step: str, *args: str) -> None:
    write = MetricsFile.write

    def write_and_act(self: MetricsFile, row: Mapping[str, Any]) -> None:
        write(self, row)
        if row["step"] != int(step):
            return
        if what.isdigit():
            run = Path(args[args.index("--workdir") + 1])
            while not list((run / "checkpoints").glob("[0-9]")):
                time.sleep(0.01)  # the one before is to be whole
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(what), resource.RLIM_INFINITY))
        else:
            os.kill(os.getpid(), getattr(signal, what))

    MetricsFile.write = write_and_act  # type: ignore[method-assign]
    cli.main(args)


if __name__ == "__main__":
    main(*sys.argv[1:])
