"""The process: where it listens, and how it ends."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.serving import server

ROOT = Path(__file__).parents[2]


def test_a_port_that_is_taken_is_one_clear_error():
    with server.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MarvelError, match=f"127.0.0.1:{port} cannot be listened on"):
            server.listen("127.0.0.1", port)
    with pytest.raises(MarvelError, match="from 0 to 65535"):
        server.listen("127.0.0.1", 70_000)


def test_only_loopback_is_this_machine_alone():
    with server.listen("127.0.0.1", 0) as inner, server.listen("0.0.0.0", 0) as outer:
        assert server.is_loopback(inner) and not server.is_loopback(outer)
        assert server.address(inner).startswith("http://127.0.0.1:")
        assert server.address(outer).startswith("http://127.0.0.1:")


CHILD = """
import sys, threading
from pathlib import Path
from tests.serving import fakes
from marvel_jax.serving import server
from marvel_jax.serving.app import create_app
from marvel_jax.serving.limits import Limits
from marvel_jax.serving.service import SearchService

collection = fakes.FakeCollection(Path(sys.argv[1]), fakes.FRUIT)
embedder = fakes.FakeEmbedder()
service = SearchService(collection, embedder)
with server.listen("127.0.0.1", 0) as bound:
    app = create_app(service)
    tell = lambda: print(server.address(bound), flush=True)
    server.run(app, bound, limits=Limits(), started=tell)
print("ended", flush=True)
"""


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_well_on_a_signal(tmp_path, end):
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        address = child.stdout.readline().strip()
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(address + "readyz", timeout=60).close()
                break
            except OSError:
                assert time.monotonic() < until and child.poll() is None
                time.sleep(0.05)
        child.send_signal(end)
        out, _ = child.communicate(timeout=60)
        assert child.returncode == 0 and out.strip() == "ended"
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2])), 5)
    finally:
        child.kill()
        child.wait()
