"""`marvel serve` as it is: a process of its own on a real collection, model and reranker."""

import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request

import pytest

from marvel_jax.bench import serve as bench
from tests import tiny
from tests.serving.fakes import until

PATIENCE = 900  # seconds; a busy machine compiles slowly


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for number in range(4):
        (folder / f"{number}.png").write_bytes(tiny.picture(number))
    (folder / "a.txt").write_text("red cat")
    (folder / "b.txt").write_text("a big blue fish")
    return folder


@pytest.fixture(scope="module")
def collection(source, tiny_model, tmp_path_factory):
    from marvel_jax.collection.build import build_collection

    out = tmp_path_factory.mktemp("collections") / "tiny"
    return build_collection(source, out, model=str(tiny_model)).folder


@pytest.fixture
def one_device(monkeypatch):
    """A child has one device, as a laptop has, and not the tests' eight."""
    monkeypatch.delenv("XLA_FLAGS")


@contextlib.contextmanager
def served(folder, log, *options):
    """The address of a server that is ready, and its process."""
    command = [sys.executable, "-m", "marvel_jax.cli", "serve", str(folder), "--port", "0"]
    with log.open("w") as stream:
        process = subprocess.Popen([*command, *options], stdout=stream, stderr=stream)
    try:
        found = []

        def told():
            assert process.poll() is None, log.read_text()
            found[:] = re.findall(r"http://\S+/", log.read_text())
            return found

        until(told, seconds=PATIENCE)
        until(lambda: ask(found[0] + "readyz")[0] == 200, seconds=PATIENCE)
        yield found[0], process
    finally:
        process.kill()
        process.wait(60)


def ask(address, **request):
    """Status and JSON."""
    body = json.dumps(request).encode() if request else None
    sent = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(sent, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_it_searches_reranks_and_ends_well(collection, source, tmp_path, one_device):
    from tests.retrieval import test_rerank

    reranker = test_rerank.save(tmp_path / "reranker")
    log = tmp_path / "log"
    with served(collection, log, "--reranker", str(reranker)) as (address, process):
        search = address + "api/search"
        status, answer = ask(search, text="red cat", k=3)
        assert status == 200 and len(answer["hits"]) == 3
        assert answer["hits"][0]["id"] == "a.txt"
        assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
        picture = base64.b64encode((source / "1.png").read_bytes()).decode()
        status, answer = ask(search, image=picture, kind="image", k=9)
        assert status == 200 and len(answer["hits"]) == 4
        assert answer["hits"][0]["id"] == "1.png"
        assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
        for query in ({"image": picture, "text": "but blue"}, {"like": "b.txt"}):
            status, answer = ask(search, **query, rerank=True, instruction="Find it.")
            assert status == 200
            chances = [hit["rerank_score"] for hit in answer["hits"]]
            assert len(chances) == 6 - ("like" in query)
            assert chances == sorted(chances, reverse=True) and chances[0] > chances[-1]
        with urllib.request.urlopen(address + "api/image?id=2.png", timeout=60) as shown:
            assert shown.read()[8:12] == b"WEBP"
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    assert "Ended well" in log.read_text() and "Traceback" not in log.read_text()


def test_its_benchmark_counts_and_compares(collection, one_device):
    found = bench.run(
        bench.ServeOptions(collection=collection, clients=2, seconds=1, bare_seconds=0.5, k=3)
    )
    served, bare = found["rows"]
    assert (served["5xx"], served["4xx"], served["no_answer"]) == (0, 0, 0)
    assert served["queries"] > 0 and bare["queries"] > 0
    assert found["entries"] == 6 and found["of_bare"]["p50_ms"] > 0


def test_a_server_that_hangs_up_is_counted_and_not_forgotten():
    """The first connections are cut; the last one is answered."""
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with socket.create_server(("127.0.0.1", 0)) as bound:
        bound.settimeout(60)

        def hang_up():
            for number in range(4):
                connection, _ = bound.accept()
                with connection:
                    connection.settimeout(60)
                    connection.recv(65536)
                    if number == 3:
                        connection.sendall(answer)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        told, _ = bench._load(*bound.getsockname(), ["x"], clients=1, k=1, most=4)
        thread.join(60)
    assert (told.lost, len(told.seconds), told.faults) == (3, 1, 0)
