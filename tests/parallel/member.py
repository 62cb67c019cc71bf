"""One process of a run that only watches: python -m tests.parallel.member ID COUNT PORT WHAT.

No JAX, so that many of them start in no time. WHAT is what this process does in the run.
"""

import os
import socket
import sys
import threading
import time
from pathlib import Path

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.roll_call import gather
from marvel_jax.parallel.watch import Patience, Voice, Watch

PATIENCE = Patience(stamp=0.2, silence=3.0, grace=1.5)


def act(what: str) -> None:
    """What happens in the run."""
    if what == "leave":
        return
    if what == "fail":
        raise MarvelError("data.path=/nowhere does not exist")
    if what == "unheard":  # its standard output leads nowhere, as behind `head`
        read, write = os.pipe()
        os.close(read)
        os.dup2(write, 1)
        sys.stdout.write("not flushed yet")
        threading.Event().wait()
    if what == "bug":
        raise ZeroDivisionError("a fault")
    if what == "abort":
        os.abort()  # as JAX's C++ part does
    if what == "spin":  # Python all the time, longer than a silence that means death
        until = time.monotonic() + 2 * PATIENCE.silence
        while time.monotonic() < until:
            pass
    elif what == "hold":  # no other thread runs meanwhile
        until = time.monotonic() + PATIENCE.silence / 2
        while time.monotonic() < until:
            sum(range(10_000_000))
    elif what == "stay":
        time.sleep(2 * PATIENCE.silence)
    elif what == "forever":
        threading.Event().wait()
    else:
        raise AssertionError(what)


def main(number: str, count: str, port: str, what: str, started: str) -> None:
    gathered = gather(
        f"localhost:{port}", num_processes=int(count), process_id=int(number), timeout=60
    )
    if number == "0":
        # As JAX's service, on the port of the roll call, whose connections are still open.
        service = socket.create_server(("", int(port)))
    with Watch(gathered, voice=Voice(as_json=True), patience=PATIENCE):
        Path(started, number).write_text(str(os.getpid()))
        act(what)
    print("left", flush=True)
    if number == "0":
        service.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
