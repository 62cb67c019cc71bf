"""The process: a socket, uvicorn on it, and an end that lets running requests finish."""

import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from marvel_jax.errors import MarvelError
from marvel_jax.serving.limits import Limits

_GRACE_SECONDS = 30


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one.

    Raises:
      MarvelError: the port is taken, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:
        raise MarvelError(f"--host {host}: no such address ({error}).") from error
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1024)
    except OverflowError as error:
        bound.close()
        raise MarvelError(f"--port {port}: give a number from 0 to 65535.") from error
    except OSError as error:
        bound.close()
        raise MarvelError(
            f"{host}:{port} cannot be listened on ({error.strerror}): give another --port, or "
            "--port 0 for a free one."
        ) from error
    return bound


def address(bound: socket.socket) -> str:
    """What a person opens in a browser."""
    host, port = bound.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "127.0.0.1"
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach it."""
    return ipaddress.ip_address(bound.getsockname()[0]).is_loopback


def run(
    app: ASGIApp,
    bound: socket.socket,
    *,
    limits: Limits,
    started: Callable[[], None] = lambda: None,
) -> None:
    """Serves until SIGTERM or Ctrl-C; then no more is accepted and what runs is finished.

    Running requests have half a minute. `started` is called before the first is accepted.
    """
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,  # a search is its client's own business; /metrics counts
        lifespan="on",
        proxy_headers=False,  # anyone can write X-Forwarded-For; the rate is per connection
        server_header=False,
        date_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=_GRACE_SECONDS,
        ws="none",
    )
    server = uvicorn.Server(config)
    with _quiet_ends((signal.SIGTERM, signal.SIGINT)):
        started()
        server.run(sockets=[bound])


@contextlib.contextmanager
def _quiet_ends(signals: Sequence[signal.Signals]) -> Iterator[None]:
    """Uvicorn sends itself the signal again once it has ended well; that is then nothing."""
    before = {one: signal.signal(one, lambda *_: None) for one in signals}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
