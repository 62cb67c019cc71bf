"""Process 0 hears from every other process before the run begins, or all learn who is missing.

`jax.distributed` ends a process that nobody answers with a C++ abort that names nobody. So the
processes meet first, on the same port, over plain sockets. The connections stay: the end of one is
the death of a process (see `watch`).
"""

import contextlib
import json
import os
import socket
import time
from typing import Any, NamedTuple

from marvel_jax.errors import MarvelError

_GREETING = "marvel roll call"
_SECONDS_BETWEEN_TRIES = 0.3
_SECONDS_OF_ONE_TRY = 10.0
_SECONDS_FOR_A_HELLO = 5.0
# Process 0 gives up at the deadline and tells the others why; they wait so much longer.
_SECONDS_FOR_THE_VERDICT = 5.0
_NAMED = 8
_LINE_LIMIT = 1 << 24


class Peer(NamedTuple):
    """A process of the run, and where a person finds it."""

    process_id: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.process_id} (host {self.host}, pid {self.pid})"


class Gathered(NamedTuple):
    """All processes by their number, and the open connections.

    Process 0 has one to each other process, the others have one to process 0.
    """

    me: Peer
    coordinator: str
    peers: tuple[Peer, ...]
    connections: dict[int, socket.socket]


def gather(coordinator: str, *, num_processes: int, process_id: int, timeout: float) -> Gathered:
    """Returns on every process when all are there.

    `coordinator` is HOST:PORT of process 0; `timeout` is in seconds.

    Raises:
      MarvelError: within `timeout` and a few seconds, on every process: somebody is missing, two
        have one number, or they do not agree how many they are; process 0 cannot be reached, or
        cannot listen.
    """
    me = Peer(process_id, socket.gethostname(), os.getpid())
    deadline = time.monotonic() + timeout
    if process_id:
        return _report(me, coordinator, num_processes, deadline=deadline, timeout=timeout)
    return _call(me, coordinator, num_processes, deadline=deadline, timeout=timeout)


def _call(me: Peer, coordinator: str, count: int, *, deadline: float, timeout: float) -> Gathered:
    """Process 0: listens until all have said who they are, then tells all."""
    try:
        listener = _listen(int(coordinator.rpartition(":")[2]))
    except OSError as error:
        raise MarvelError(
            f"{me} cannot listen at {coordinator}: {error.strerror}. Give a port that is free, "
            "the same to every process."
        ) from error
    arrived: list[tuple[Peer, socket.socket]] = []
    peers = {0: me}
    wrong = None
    with listener:
        while len(peers) < count and wrong is None:
            listener.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                wrong = _missing(peers, count, coordinator, timeout)
                break
            hello = _read_line(connection, time.monotonic() + _SECONDS_FOR_A_HELLO)
            if hello is None or hello.get("greeting") != _GREETING:
                connection.close()  # not one of us: a port scan, a health check
                continue
            peer = Peer(*hello["peer"])
            arrived.append((peer, connection))
            wrong = _refusal(peer, hello["count"], peers, count)
            peers.setdefault(peer.process_id, peer)
    answer = {"error": wrong} if wrong else {"peers": [peers[number] for number in range(count)]}
    for _, connection in arrived:
        _write_line(connection, answer)
    if wrong:
        for _, connection in arrived:
            connection.close()
        raise MarvelError(wrong)
    ordered = tuple(peers[number] for number in range(count))
    return Gathered(me, coordinator, ordered, {peer.process_id: one for peer, one in arrived})


def _report(me: Peer, coordinator: str, count: int, *, deadline: float, timeout: float) -> Gathered:
    """The others: say who they are to process 0, as soon as it is there, and wait for all."""
    host, _, port = coordinator.rpartition(":")
    obstacle = "it does not answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(
                (host.strip("[]"), int(port)), timeout=min(left, _SECONDS_OF_ONE_TRY)
            )
        except OSError as error:
            obstacle = error.strerror or str(error)
        else:
            _write_line(connection, {"greeting": _GREETING, "peer": me, "count": count})
            answer = _read_line(connection, deadline + _SECONDS_FOR_THE_VERDICT)
            if answer is not None and "error" in answer:
                raise MarvelError(f"{me}: {answer['error']}")
            if answer is not None and "peers" in answer:
                peers = tuple(Peer(*peer) for peer in answer["peers"])
                return Gathered(me, coordinator, peers, {0: connection})
            connection.close()
            obstacle = "what listens there is not process 0 of this run"
        time.sleep(_SECONDS_BETWEEN_TRIES)
    raise MarvelError(
        f"{me} of {count} has tried for {timeout:.0f} s to reach process 0 at {coordinator}: "
        f"{obstacle}. Look whether process 0 was started on that host and has not failed (its log "
        "says why), whether the name resolves here, and whether the port is open between hosts."
    )


def _missing(peers: dict[int, Peer], count: int, coordinator: str, timeout: float) -> str:
    absent = [str(number) for number in range(count) if number not in peers]
    named = ", ".join(absent[:_NAMED]) + (", ..." if len(absent) > _NAMED else "")
    there = ", ".join(str(peer) for peer in list(peers.values())[:_NAMED])
    return (
        f"after {timeout:.0f} s {len(absent)} of {count} processes have not come to {coordinator}: "
        f"{named}. There are {there}{', ...' if len(peers) > _NAMED else ''}. Look at the logs of "
        f"the missing, whether they reach that address, and whether there are {count} at all."
    )


def _refusal(peer: Peer, counted: int, peers: dict[int, Peer], count: int) -> str | None:
    if counted != count:
        return (
            f"{peer} was told of {counted} processes, {peers[0]} of {count}: give all the same "
            "--num-processes."
        )
    if peer.process_id in peers:
        other = peers[peer.process_id]
        return (
            f"{other} and another on host {peer.host}, pid {peer.pid} have the same number: give "
            f"each process another --process-id, from 0 to {count - 1}."
        )
    return None


def _listen(port: int) -> socket.socket:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    # JAX's service listens on this port next, while the connections made here are still open.
    return socket.create_server(
        ("", port), family=family, backlog=1024, reuse_port=False, dualstack_ipv6=both
    )


def _write_line(connection: socket.socket, content: dict[str, Any]) -> None:
    # Whoever hangs up is missed where its answer should be.
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(content).encode() + b"\n")


def _read_line(connection: socket.socket, deadline: float) -> dict[str, Any] | None:
    """One JSON line; None where the other side hangs up, is silent, or says something else."""
    line = b""
    while not line.endswith(b"\n") and len(line) < _LINE_LIMIT:
        connection.settimeout(max(0.01, deadline - time.monotonic()))
        try:
            # No further than the line: what comes behind it belongs to the watch.
            chunk = connection.recv(1)
        except OSError:
            return None
        if not chunk:
            return None
        line += chunk
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
