"""The processes of a run find each other, or each learns in time what is wrong."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.roll_call import Gathered, gather
from tests.training.runs import free_port


def call(
    numbers: list[int], *, count: int, port: int, timeout: float = 20.0, counts: dict | None = None
) -> list[Gathered | MarvelError]:
    """What each of the processes with these numbers comes to."""

    def one(number: int) -> Gathered | MarvelError:
        told = (counts or {}).get(number, count)
        try:
            return gather(
                f"localhost:{port}", num_processes=told, process_id=number, timeout=timeout
            )
        except MarvelError as error:
            return error

    with ThreadPoolExecutor(len(numbers)) as pool:
        found = list(pool.map(one, numbers))
    for gathered in found:
        if isinstance(gathered, Gathered):
            for connection in gathered.connections.values():
                connection.close()
    return found


def test_all_know_all_in_their_order():
    found = call([2, 1, 0, 3], count=4, port=free_port())
    assert [gathered.me.process_id for gathered in found] == [2, 1, 0, 3]
    for gathered in found:
        assert [peer.process_id for peer in gathered.peers] == [0, 1, 2, 3]
    assert sorted(found[2].connections) == [1, 2, 3] and list(found[0].connections) == [0]


def test_who_comes_before_the_first_waits_for_it():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(call, [1], count=2, port=port)
        time.sleep(0.8)
        assert isinstance(call([0], count=2, port=port)[0], Gathered)
        assert isinstance(early.result()[0], Gathered)


def test_the_missing_are_named_to_all_who_came():
    started = time.monotonic()
    found = call([0, 2], count=5, port=free_port(), timeout=1.0)
    assert time.monotonic() - started < 10
    for error in found:
        assert "after 1 s 3 of 5 processes have not come" in str(error)
        assert ": 1, 3, 4. There are process 0 (host" in str(error)
    assert str(found[1]).startswith("process 2 (host ")


def test_nobody_at_the_address():
    port = free_port()
    started = time.monotonic()
    (error,) = call([3], count=4, port=port, timeout=1.0)
    assert time.monotonic() - started < 10
    for part in (f"process 0 at localhost:{port}", "1 s", "process 3 (host", "refused", "its log"):
        assert part in str(error)


def test_a_name_that_does_not_resolve():
    with pytest.raises(MarvelError, match=r"process 0 at no\.such\.host\.invalid:1.*resolves"):
        gather("no.such.host.invalid:1", num_processes=2, process_id=1, timeout=0.5)


def test_somebody_else_at_the_address():
    with socket.create_server(("localhost", 0)) as other:
        (error,) = call([1], count=2, port=other.getsockname()[1], timeout=0.5)
    assert "is not process 0 of this run" in str(error)


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        (error,) = call([0], count=2, port=port)
    assert f"cannot listen at localhost:{port}" in str(error) and "port that is free" in str(error)


def test_a_stranger_does_not_disturb():
    port = free_port()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(call, [0], count=2, port=port)
        while True:
            try:
                stranger = socket.create_connection(("localhost", port), timeout=5)
                break
            except OSError:
                time.sleep(0.02)
        with stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert isinstance(call([1], count=2, port=port)[0], Gathered)
        assert isinstance(first.result()[0], Gathered)


def test_two_with_one_number_are_named_to_all():
    found = call([0, 1, 1], count=3, port=free_port())
    for error in found:
        assert "process 1 (host" in str(error) and "have the same number" in str(error)
        assert "another --process-id, from 0 to 2" in str(error)


def test_another_number_of_processes_is_named_to_all():
    found = call([0, 1], count=2, port=free_port(), counts={1: 3})
    for error in found:
        assert "was told of 3 processes, process 0" in str(error) and "of 2" in str(error)
