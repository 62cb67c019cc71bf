"""What every request passes before the application sees it: host, origin, rate and size.

It is ASGI of its own and not a framework's middleware, for it must count a body's bytes as they
arrive, before anything reads them.
"""

import asyncio
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from marvel_jax.serving.limits import PICTURE_COST, SEARCH_COST, Limits, TokenBuckets
from marvel_jax.serving.problems import FAULT, Problem

_COSTS = {"/api/search": SEARCH_COST, "/api/image": PICTURE_COST}

# Nothing but this server's own files is loaded, and no script that is not one of them runs. Its
# pictures are `blob:` where a person has just chosen one.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class Guard:
    """Refuses what the limits do not allow, and adds the headers that keep a browser strict."""

    def __init__(self, app: ASGIApp, *, limits: Limits, hosts: Sequence[str] = ()) -> None:
        """`hosts` are the names, besides localhost, under which the server may be asked."""
        self._app, self._limits = app, limits
        self._hosts = {host.lower().rstrip(".") for host in hosts} | {"localhost"}
        self._buckets = TokenBuckets(rate=limits.rate, burst=limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def strict(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._admit(scope)
            await self._app(scope, self._counted(scope, receive), strict)
        except Problem as problem:
            if started:  # the answer is under way already: nothing can be said any more
                raise
            await _refuse(problem, scope, receive, strict)
        except Exception:
            if not started:  # the application tells of its own faults; this one is ours
                await _refuse(Problem(500, "fault", FAULT), scope, receive, strict)
            raise  # for the log

    def _admit(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = _host_name(headers.get("host", ""))
        if not (host in self._hosts or _is_address(host)):
            raise Problem(
                421,
                "unknown_host",
                f"This server is not called {host or 'by an empty name'}: ask it by its address, "
                "or start it with --allow-host NAME.",
            )
        origin = headers.get("origin")
        if origin is not None and _origin_host(origin) != headers.get("host"):
            raise Problem(403, "other_origin", "Pages of other sites may not ask this server.")
        length = headers.get("content-length", "0")
        # A number of thousands of digits is an error to Python, so they are counted first.
        if not length.isdecimal() or len(length) > 18 or int(length) > self._limits.body_bytes:
            raise self._too_large()
        cost = _COSTS.get(scope["path"])
        if cost is not None:
            client = scope.get("client") or ("unknown", 0)
            wait = self._buckets.wait(client[0], cost)
            if wait > 0:
                raise Problem(
                    429,
                    "too_many",
                    f"More than {self._limits.rate:g} searches a second: wait "
                    f"{max(1, round(wait))} s.",
                    retry_after=wait,
                )

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        taken, complete = 0, False

        async def counting() -> Message:
            nonlocal taken, complete
            if complete:
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self._limits.seconds)
            except TimeoutError:
                raise Problem(
                    408, "slow", f"The request did not arrive in {self._limits.seconds:g} s."
                ) from None
            taken += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if taken > self._limits.body_bytes:
                raise self._too_large()
            return message

        return counting

    def _too_large(self) -> Problem:
        return Problem(
            413,
            "too_large",
            f"The request has more than the {self._limits.body_bytes / 2**20:.1f} MiB that are "
            "taken: make the picture smaller.",
        )


async def _refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    # What is left of the body is not read: the connection ends.
    response = problem.response()
    response.headers["Connection"] = "close"
    await response(scope, receive, send)


def _origin_host(origin: str) -> str | None:
    """Host and port of an Origin header; None where it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _host_name(host: str) -> str:
    """The name or address of a Host header, without its port."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    """A number is safe: a page can only reach us under a false pretence by a name of its own."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
