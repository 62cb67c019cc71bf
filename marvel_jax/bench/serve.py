"""`marvel serve` under load: many clients on loopback, beside bare encode and search calls."""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from marvel_jax.bench.machine import result
from marvel_jax.errors import MarvelError

Say = Callable[[str], None]
_START_SECONDS = 900.0  # compiling on a slow machine
_WARM = 32
_PAUSE = 0.05  # seconds of a client that got no answer: a server that is gone is not stormed
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class ServeOptions:
    """What to serve, and how hard to ask."""

    collection: Path
    """What `marvel index` made."""
    clients: int = 8
    """That ask at once, each its next query when it has the answer."""
    seconds: float = 60.0
    """Of load."""
    bare_seconds: float = 15.0
    """Of bare calls."""
    k: int = 10
    """Results of a query."""

    def __post_init__(self) -> None:
        if min(self.clients, self.seconds, self.bare_seconds, self.k) <= 0:
            raise MarvelError("clients, seconds, bare_seconds and k are positive numbers.")


@dataclass
class _Told:
    """What the clients saw."""

    seconds: list[float] = field(default_factory=list)
    faults: int = 0
    refused: int = 0
    lost: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, status: int, seconds: float) -> None:
        with self.lock:
            self.faults += status >= 500
            self.refused += 400 <= status < 500
            if status == 200:
                self.seconds.append(seconds)

    def add_lost(self) -> None:
        with self.lock:
            self.lost += 1


def run(options: ServeOptions, *, say: Say = lambda line: None) -> dict[str, Any]:
    """A row for the server and one for the bare calls; times in milliseconds.

    The server is a process of its own, as `marvel serve` starts it, its rate limit lifted. The bare
    calls are `Embedder.encode` of one query and `Collection.search`, one after another.

    Raises:
      MarvelError: no collection, one without texts, or the server does not start.
    """
    from marvel_jax.collection.collection import Collection

    collection = Collection.open(options.collection)
    queries = _queries(collection)
    say(f"serving {len(collection):,} entries; {options.clients} clients")
    with _served(options.collection) as (process, host, port):
        _load(host, port, queries, clients=options.clients, k=options.k, most=_WARM)
        before = _resident(process.pid)
        told, seconds = _load(
            host, port, queries, clients=options.clients, k=options.k, seconds=options.seconds
        )
        after = _resident(process.pid)
    served = {
        "what": f"marvel serve, {options.clients} clients",
        **_figures(told.seconds, seconds),
        "5xx": told.faults,
        "4xx": told.refused,
        "no_answer": told.lost,
        "memory_start_mib": before,
        "memory_end_mib": after,
    }
    say("bare encode and search")
    times, seconds = _bare(collection, queries, k=options.k, seconds=options.bare_seconds)
    bare = {"what": "bare encode + search", **_figures(times, seconds)}
    ratios = {
        name: round(served[name] / bare[name], 3) for name in ("queries/s", "p50_ms", "p95_ms")
    }
    told_ratios = ", ".join(f"{name} {value}" for name, value in ratios.items())
    return result(
        "serve",
        [served, bare],
        clients=options.clients,
        seconds=options.seconds,
        entries=len(collection),
        of_bare=ratios,
        notes=[f"server over bare: {told_ratios}"],
    )


def _queries(collection: Any) -> list[str]:
    rows = np.linspace(0, len(collection) - 1, min(1000, len(collection))).astype(int)
    texts = [collection.entry(int(row)).text for row in rows]
    found = [text[:200] for text in texts if text]
    if not found:
        raise MarvelError(f"{collection.folder} has no texts to ask with: index some.")
    return found


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str, int]]:
    command = [sys.executable, "-m", "marvel_jax.cli", "serve", str(folder), "--port", "0"]
    command += ["--rate", "1000000", "--burst", "1000000"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            opened = re.search(r"http://\S+", line)
            if opened:
                where = urlsplit(opened[0])
                break
        else:
            raise MarvelError(f"marvel serve did not start: {''.join(said[-5:]).strip()}")
        # What else it says must not fill the pipe.
        drain = threading.Thread(target=process.stderr.read, daemon=True)
        drain.start()
        assert where.hostname is not None and where.port is not None
        _until_ready(where.hostname, where.port, process)
        yield process, where.hostname, where.port
        process.send_signal(signal.SIGTERM)
        if process.wait(60) != 0:
            raise MarvelError(f"marvel serve ended with {process.returncode}.")
    finally:
        process.kill()
        process.wait()


def _until_ready(host: str, port: int, process: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        with contextlib.suppress(OSError):
            connection = http.client.HTTPConnection(host, port, timeout=30)
            connection.request("GET", "/readyz")
            ready = connection.getresponse().status == 200
            connection.close()
            if ready:
                return
        time.sleep(0.1)
    raise MarvelError(f"marvel serve was not ready in {_START_SECONDS:.0f} s.")


def _load(
    host: str,
    port: int,
    queries: Sequence[str],
    *,
    clients: int,
    k: int,
    seconds: float = float("inf"),
    most: int | None = None,
) -> tuple[_Told, float]:
    """Asks until the time is over, or `most` queries were sent."""
    told, numbers = _Told(), itertools.count()
    until = time.monotonic() + seconds

    def ask() -> None:
        connection = http.client.HTTPConnection(host, port, timeout=120)
        for number in iter(lambda: next(numbers), most):
            if time.monotonic() >= until or (most is not None and number > most):
                break
            body = json.dumps({"text": queries[number % len(queries)], "k": k})
            began = time.perf_counter()
            try:
                connection.request(
                    "POST", "/api/search", body, {"Content-Type": "application/json"}
                )
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException):
                told.add_lost()
                connection.close()  # the next request opens another
                time.sleep(_PAUSE)
            else:
                told.add(answer.status, time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return told, time.perf_counter() - began


def _bare(
    collection: Any, queries: Sequence[str], *, k: int, seconds: float
) -> tuple[list[float], float]:
    from marvel_jax.collection.collection import load_embedder
    from marvel_jax.data.items import Item

    embedder = load_embedder(collection)

    def one(number: int) -> float:
        began = time.perf_counter()
        item = Item.of(text=queries[number % len(queries)])
        collection.search(embedder.encode([item]), k=k)
        return time.perf_counter() - began

    for number in range(_WARM):
        one(number)
    times: list[float] = []
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        times.append(one(len(times)))
    return times, time.perf_counter() - began


def _figures(times: Sequence[float], seconds: float) -> dict[str, Any]:
    if not times:
        raise MarvelError("no query was answered: give more --seconds.")
    p50, p95 = np.percentile(np.asarray(times) * 1e3, [50, 95])
    return {
        "queries": len(times),
        "queries/s": round(len(times) / seconds, 1),
        "p50_ms": round(float(p50), 2),
        "p95_ms": round(float(p95), 2),
    }


def _resident(pid: int) -> float | None:
    """MiB in memory; None where there is no /proc."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / _MIB, 1)
