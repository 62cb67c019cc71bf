"""When a run is asked to stop: Ctrl-C, SIGTERM, or the notice that a machine is taken back."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jax.experimental import multihost_utils

from marvel_jax.parallel.hosts import is_alone

_CAUGHT = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def reached(self, step: int) -> bool:
        """Whether to save and stop after `step`; every process must ask at every step.

        Several processes agree through JAX's preemption service on one step that none has passed:
        a signal to one of them, or a notice of the cloud, stops them all.
        """
        if is_alone():
            return self.signal is not None
        if not multihost_utils.reached_preemption_sync_point(step):
            return False
        self.signal = self.signal or signal.SIGTERM
        return True


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turns the first Ctrl-C or SIGTERM into a request; a second Ctrl-C interrupts at once.

    A second SIGTERM does not: schedulers send several, and the state is being saved.
    """
    request = StopRequest()

    def ask(number: int, frame: Any) -> None:
        if number == signal.SIGINT and request.signal is not None:
            raise KeyboardInterrupt
        request.signal = signal.Signals(number)
        if not is_alone():  # the preemption service listens to SIGTERM, and tells the others
            os.kill(os.getpid(), signal.SIGTERM)

    # With several processes SIGTERM belongs to the preemption service.
    caught = _CAUGHT if is_alone() else (signal.SIGINT,)
    previous = {}
    try:
        for number in caught:
            previous[number] = signal.signal(number, ask)
    except ValueError:  # not the main thread: whoever owns it decides
        yield request
        return
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
