"""The first Ctrl-C or SIGTERM asks; only a second Ctrl-C interrupts."""

import os
import signal
import time

import pytest

from marvel_jax.training.signals import stop_requests


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(0.05)  # the handler runs between two instructions


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_a_request_and_the_handlers_come_back(number):
    before = [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)]
    with stop_requests() as stop:
        assert not stop.reached(0) and stop.signal is None
        send(number)
        assert stop.reached(1) and stop.signal == number
    assert [signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_ctrl_c_interrupts_at_once():
    with stop_requests() as stop:
        send(signal.SIGINT)
        assert stop.reached(0)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_schedulers_may_send_sigterm_again():
    with stop_requests() as stop:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.reached(0) and stop.signal == signal.SIGTERM
