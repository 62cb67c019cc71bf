"""When a process of a run dies, stalls or fails, the others end soon and say which it was."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parallel.member import PATIENCE
from tests.training.runs import ROOT, free_port

WAIT = 60.0  # for what takes seconds


class Run:
    """Processes that watch each other; killed at the end of a test, whatever happens."""

    def __init__(self, folder: Path, *whats: str) -> None:
        port = free_port()
        self.processes = [
            subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.parallel.member"),
                    *map(str, (number, len(whats), port, what, folder)),
                ],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for number, what in enumerate(whats)
        ]
        self.folder = folder

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()

    def all_in(self) -> None:
        until = time.monotonic() + WAIT
        while len(list(self.folder.iterdir())) < len(self.processes):
            assert time.monotonic() < until, [one.poll() for one in self.processes]
            time.sleep(0.02)

    def send(self, number: int, what: signal.Signals) -> None:
        self.processes[number].send_signal(what)

    def ends(self, number: int) -> tuple[int, str, str]:
        """(exit code, standard output, standard error) of a process."""
        out, err = self.processes[number].communicate(timeout=WAIT)
        return self.processes[number].returncode, out, err

    def name(self, number: int) -> str:
        return f"process {number} (host {os.uname().nodename}, pid {self.processes[number].pid})"


def test_nobody_is_dead_who_is_busy_holds_the_interpreter_or_has_left(tmp_path):
    with Run(tmp_path, "leave", "spin", "hold", "leave") as run:
        assert [run.ends(number) for number in range(4)] == [(0, "left\n", "")] * 4


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_is_named_by_all(tmp_path, victim):
    with Run(tmp_path, "forever", "forever", "forever") as run:
        run.all_in()
        run.send(victim, signal.SIGKILL)
        for number in {0, 1, 2} - {victim}:
            code, out, err = run.ends(number)
            assert code == 1 and out == ""
            assert err.startswith(f"marvel: {run.name(number)} stops, because {run.name(victim)}")
            assert " died " in err and "Start all processes again with the same command" in err
        # Whoever looks at the log of the one that died finds more than nothing.
        code, out, err = run.ends(victim)
        assert code == -signal.SIGKILL
        assert json.loads(out)["error"] in err
        assert err.startswith(f"marvel: {run.name(victim)} ended without a word of its own")


@pytest.mark.parametrize("victim", [0, 2])
def test_a_stopped_process_is_dead_after_a_while(tmp_path, victim):
    with Run(tmp_path, "forever", "forever", "forever") as run:
        run.all_in()
        run.send(victim, signal.SIGSTOP)
        for number in {0, 1, 2} - {victim}:
            code, _, err = run.ends(number)
            assert code == 1
            assert f"because {run.name(victim)}" in err and "has said nothing for 3 s" in err


def test_who_was_stopped_itself_does_not_blame_the_others(tmp_path):
    with Run(tmp_path, "stay", "stay") as run:
        run.all_in()
        for number in (0, 1):
            run.send(number, signal.SIGSTOP)
        time.sleep(PATIENCE.silence + 1)
        for number in (0, 1):
            run.send(number, signal.SIGCONT)
        assert [run.ends(number)[0] for number in range(2)] == [0, 0]


@pytest.mark.parametrize("culprit", [0, 1])
def test_the_error_of_one_ends_all_with_its_text(tmp_path, culprit):
    whats = ["forever"] * 3
    whats[culprit] = "fail"
    with Run(tmp_path, *whats) as run:
        code, _, err = run.ends(culprit)
        assert code == 1
        assert err == f"marvel: {run.name(culprit)}: data.path=/nowhere does not exist\n"
        for number in {0, 1, 2} - {culprit}:
            code, _, err = run.ends(number)
            assert code == 1
            assert f"because {run.name(culprit)} ended: data.path=/nowhere" in err


def test_an_error_of_all_is_told_by_each_once(tmp_path):
    with Run(tmp_path, "fail", "fail", "fail") as run:
        for number in range(3):
            code, _, err = run.ends(number)
            assert (code, err.count("\n")) == (1, 1) and "stops, because" not in err


@pytest.mark.parametrize("unheard", [0, 1])
def test_a_process_that_cannot_say_why_ends_all_the_same(tmp_path, unheard):
    whats = ["fail"] * 2
    whats[unheard] = "unheard"
    with Run(tmp_path, *whats) as run:
        assert run.ends(unheard)[0] == 1
        assert run.ends(1 - unheard)[0] == 1


def test_a_fault_of_the_program_keeps_its_traceback(tmp_path):
    with Run(tmp_path, "forever", "bug") as run:
        code, _, err = run.ends(1)
        assert code == 1 and "Traceback" in err
        assert err.endswith(f"marvel: {run.name(1)}: ZeroDivisionError: a fault\n")
        assert "ended: ZeroDivisionError: a fault" in run.ends(0)[2]


def test_an_abort_is_not_the_last_word(tmp_path):
    with Run(tmp_path, "forever", "abort") as run:
        code, _, err = run.ends(1)
        assert code == -signal.SIGABRT
        assert err.splitlines()[-1].startswith(f"marvel: {run.name(1)} ended without a word")
        assert f"because {run.name(1)} died" in run.ends(0)[2]
