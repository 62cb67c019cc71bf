"""What a client may ask for, and how often."""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, fields

from marvel_jax.errors import MarvelError

SEARCH_COST = 1.0
PICTURE_COST = 0.02  # a page of results has many thumbnails
_MOST_CLIENTS = 4096


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All limits of a server.

    Whoever asks for more is refused with a 4xx that says what is allowed; only an answer that takes
    longer than `seconds` is a 503.
    """

    body_bytes: int = 12 << 20
    """Of a request: a base64 picture is a third longer than its file."""
    pixels: int = 40_000_000
    """Of a query's picture: 160 MB when decoded, four bytes each; two are decoded at a time."""
    waiting_pixels: int = 64_000_000
    """Of all queries' pictures under way, resized as the models take them: 256 MB. Beyond it a
    picture is not decoded before another query has its answer."""
    text_characters: int = 20_000
    """Of a query's text; the model reads its beginning, as far as its own limit."""
    instruction_characters: int = 1000
    """Of an instruction."""
    k: int = 100
    """Results of a search."""
    rerank_depth: int = 30
    """Results that a reranker reads: each is a forward pass."""
    rate: float = 10.0
    """Searches a second and client, in the long run."""
    burst: float = 40.0
    """Searches that a client may send at once."""
    queue: int = 64
    """Searches under way or waiting; beyond it a client is told to come again."""
    batch: int = 16
    """Queries that are encoded in one call of the device."""
    batch_wait_ms: float = 3.0
    """How long a query waits for others to be encoded with."""
    seconds: float = 60.0
    """For an answer, and for a body to arrive."""
    connections: int = 512
    """Open at once."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0 and not (field.name == "batch_wait_ms" and value == 0):
                raise MarvelError(f"limits: {field.name}={value}: give a positive number.")


class TokenBuckets:
    """One bucket a client: it fills at `rate` a second up to `burst`.

    The clients seen longest ago are forgotten beyond a few thousand, so memory is bounded.
    """

    def __init__(
        self, *, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._burst, self._clock = rate, burst, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str, cost: float) -> float:
        """Takes `cost` from the client's bucket, or says in how many seconds it can be had.

        0.0 means that it was taken.
        """
        now = self._clock()
        level, since = self._buckets.pop(client, (self._burst, now))
        level = min(self._burst, level + (now - since) * self._rate)
        # What costs more than a bucket holds may go when the bucket is full.
        needed = min(cost, self._burst)
        lacking = max(0.0, needed - level)
        self._buckets[client] = (level if lacking else level - needed, now)
        while len(self._buckets) > _MOST_CLIENTS:
            self._buckets.popitem(last=False)
        return lacking / self._rate
