"""What a run shows is readable in a log too, and silent where another process speaks."""

import re
import time

import pytest

from marvel_jax.training import progress
from marvel_jax.training.progress import Teller, TrainProgress

ROW = {
    "loss": 1.23456,
    "temperature": 0.05,
    "pairs_per_second": 321.4,
    "wait_seconds": 0.02,
    "seconds": 0.4,
}


def test_without_a_terminal_a_line_tells_the_state(capsys):
    with TrainProgress(total=40, done=10) as shown:
        shown.update(40, ROW)
    told = capsys.readouterr()
    assert told.out == ""
    expected = "train 40/40  loss 1.235  temperature 0.0500  321 pairs/s  wait 5%  0 s left"
    assert expected in told.err


def test_a_long_phase_leaves_a_line(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_A_PHASE_IS_TOLD", 0.01)
    with Teller().phase("reading the weights") as counted:
        counted(1, 2)
        time.sleep(0.02)
    assert re.search(r"reading the weights: \d+ s", capsys.readouterr().err)


@pytest.mark.parametrize("speak", ["phase", "say", "update", "note"])
def test_another_process_is_quiet(capsys, monkeypatch, speak):
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_A_PHASE_IS_TOLD", 0.0)
    with TrainProgress(total=4, done=0, quiet=True) as shown:
        if speak == "phase":
            with Teller(quiet=True).phase("reading"):
                pass
        elif speak == "say":
            Teller(quiet=True).say("here")
            shown.say("here")
        elif speak == "update":
            shown.update(4, ROW)
        else:
            shown.note("compiling")
    assert capsys.readouterr() == ("", "")
