"""What Prometheus reads at /metrics."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ROUTES = ("/api/search", "/api/image", "/api/item", "/api/collection", "/healthz", "/readyz")


class Metrics:
    """One server's own registry, so that two of them in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "marvel_requests",
            "Answers by route and status.",
            ("route", "status"),
            registry=registry,
        )
        self.seconds = Histogram(
            "marvel_request_seconds",
            "Whole requests.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.stages = Histogram(
            "marvel_stage_seconds",
            "Parts of a search: embed, search, rerank.",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            "marvel_batch_queries",
            "Queries encoded in one call of the device.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=registry,
        )
        self.under_way = Gauge(
            "marvel_searches_under_way", "Searches that run or wait.", registry=registry
        )
        self.entries = Gauge("marvel_entries", "Rows of the collection.", registry=registry)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)


class Counted:
    """ASGI that counts answers and their seconds."""

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._app, self._metrics, self._clock = app, metrics, clock

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Any other path is a stranger's word: it must not become a label.
        route = scope["path"] if scope["path"] in _ROUTES else "page"
        started, status = self._clock(), "none"

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(self._clock() - started)
