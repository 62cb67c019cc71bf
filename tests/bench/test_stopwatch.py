"""Times are compared turn by turn, and peak memory is what the call itself took."""

import sys
import time

import numpy as np
import pytest

from marvel_jax.bench.stopwatch import Lap, lap, median, peak_memory, ratio, take_turns

MIB = 2**20


def test_contenders_take_turns():
    order = []

    def contender(name):
        return lambda: order.append(name) or Lap(1.0, 1.0)

    laps = take_turns({name: contender(name) for name in "ab"}, repeats=3)
    assert order == list("ababab")
    assert {name: len(found) for name, found in laps.items()} == {"a": 3, "b": 3}


def test_a_machine_that_slows_down_does_not_change_the_ratio():
    pace = [1.0, 1.0, 5.0, 9.0, 9.0, 9.0]
    ours = [Lap(2.0 * p, 3.0 * p) for p in pace]
    theirs = [Lap(1.0 * p, 4.0 * p) for p in pace]
    found = ratio(ours, theirs)
    assert found.seconds == pytest.approx(2.0) and found.cpu_seconds == pytest.approx(0.75)


def test_one_slow_lap_is_not_the_figure():
    assert median([Lap(1.0, 2.0), Lap(1.0, 2.0), Lap(100.0, 50.0)]) == Lap(1.0, 2.0)


def test_sleeping_takes_seconds_but_no_processor():
    found = lap(lambda: time.sleep(0.05))
    assert found.seconds >= 0.05
    assert found.cpu_seconds < found.seconds


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_peak_memory_is_what_the_call_takes_again_and_again():
    def take(mib: int) -> None:
        # In small pieces, which the allocator keeps for itself when they are freed.
        pieces = [np.ones(1024) for _ in range(mib * MIB // 8192)]
        del pieces

    for mib in (64, 64, 96):
        peak = peak_memory(lambda mib=mib: take(mib))
        assert 0.9 * mib < peak / MIB < 1.3 * mib + 4
