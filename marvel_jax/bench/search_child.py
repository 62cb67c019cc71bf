"""A contender of `marvel bench search` in a process of its own, asked line by line in JSON.

So each has its own memory, is built alone, and stays to be timed in turns with the others.
"""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from marvel_jax.bench.machine import cpu_seconds
from marvel_jax.bench.peak_memory import status_bytes
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.store import VectorStore

Setting = dict[str, int]
_GIB = 2**30
_TAIL = 2000
_GRID_LAPS = 2


class Contender(Protocol):
    """An index over a store."""

    def build(self, store: VectorStore, *, workdir: Path) -> float | None:
        """Builds it; where it was kept from an earlier run, the seconds that it took then."""

    def settings(self) -> list[list[Setting]]:
        """What it can be searched with: lines of settings, each from fast to accurate."""

    def search(self, queries: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        """The rows found: int [Q, k]."""


class Child:
    """The parent's side: starts the process, asks, and ends it."""

    def __init__(
        self,
        name: str,
        *,
        workdir: Path,
        threads: int,
        seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._seconds = seconds
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed with the process)
        asked = {"name": name, "workdir": str(workdir), "threads": threads}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "marvel_jax.bench.search_contenders", json.dumps(asked)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, **(environment or {})},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was written and not read any more
                    pipe.close()
        self._log.close()

    def ask(self, call: str, **arguments: Any) -> Any:
        """What a function of `Answers` returns there.

        Raises:
          MarvelError: the process ended or did not answer in time; its last words are quoted.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        timer = threading.Timer(self._seconds, self._process.kill)
        timer.start()
        try:
            self._process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if not line:
            self._log.seek(0)
            words = self._log.read().decode(errors="replace")[-_TAIL:].strip()
            raise MarvelError(
                f"{self.name}: its process ended while asked to {call} (limit "
                f"{self._seconds:.0f} s). Its last words: {words}"
            )
        return json.loads(line)


class Answers:
    """The child's side."""

    def __init__(self, contender: Contender, workdir: Path) -> None:
        self._contender = contender
        self._workdir = workdir
        self._queries = np.load(workdir / "queries.npy")
        self._exact = np.load(workdir / "exact.npy")

    def build(self) -> dict[str, Any]:
        """Seconds, and memory at the worst and afterwards; no worst of what was built before."""
        store = VectorStore.open(self._workdir / "store", check="layout")
        started = time.perf_counter()
        before = self._contender.build(store, workdir=self._workdir)
        seconds = time.perf_counter() - started
        peak = status_bytes("VmHWM") if before is None else None
        _give_back()
        # Some are loaded when they are asked first.
        first = self._contender.settings()[0][0]
        self._contender.search(self._queries[:1], self._exact.shape[1], first)
        after = status_bytes("RssAnon")
        return {
            "build_seconds": round(seconds if before is None else before, 3),
            "build_peak_gib": None if peak is None else round(peak / _GIB, 2),
            "held_gib": None if after is None else round(after / _GIB, 2),
        }

    def grid(self, targets: list[float]) -> list[dict[str, Any] | None]:
        """The fastest setting for each target recall; None where none reaches it.

        On each line of settings it stops where the highest target is well passed.
        """
        best: list[dict[str, Any] | None] = [None] * len(targets)
        for line in self._contender.settings():
            for setting in line:
                recall = self._recall(setting)  # first: it warms what the laps time
                laps = [self.lap(setting) for _ in range(_GRID_LAPS)]
                fastest = max(laps, key=lambda lap: lap["queries/s"])
                point = {"setting": setting, "recall": recall, **fastest}
                for place, target in enumerate(targets):
                    known = best[place]
                    if point["recall"] >= target and (
                        known is None or point["queries/s"] > known["queries/s"]
                    ):
                        best[place] = point
                if point["recall"] >= max(targets) or _hopeless(point, best):
                    break
        return best

    def lap(self, setting: Setting) -> dict[str, Any]:
        """One batch of all queries."""
        started, used = time.perf_counter(), cpu_seconds()
        self._contender.search(self._queries, self._exact.shape[1], setting)
        seconds, cpu = time.perf_counter() - started, cpu_seconds() - used
        count = len(self._queries)
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "queries/s": round(count / seconds, 1),
            "queries/cpu-s": round(count / max(cpu, 1e-9), 1),
        }

    def _recall(self, setting: Setting) -> float:
        found = self._contender.search(self._queries, self._exact.shape[1], setting)
        shares = [np.isin(right, got).mean() for got, right in zip(found, self._exact, strict=True)]
        return round(float(np.mean(shares)), 5)


def _give_back() -> None:
    """Returns to the system what building took and the allocator keeps: others need the memory."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _hopeless(point: dict[str, Any], best: list[dict[str, Any] | None]) -> bool:
    """Whether nothing further on the line, all of it slower, can be the fastest."""
    return all(one is not None and point["queries/s"] < one["queries/s"] / 2 for one in best)
