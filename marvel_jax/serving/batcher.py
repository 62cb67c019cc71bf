"""Queries of many clients in one call of the device."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Item

if TYPE_CHECKING:  # it brings the device; whoever hands it in has loaded it
    from marvel_jax.retrieval.embedder import Embedder


class Embedded(NamedTuple):
    """A query's unit vector float32 [D], the device's milliseconds, and how many went with it."""

    vector: np.ndarray
    milliseconds: float
    batch: int


class _Waiting:
    """A query in the queue; what it holds goes as soon as nobody waits for its vector."""

    def __init__(self, item: Item) -> None:
        self.item: Item | None = item
        self.future: Future[Embedded] = Future()
        self.future.add_done_callback(self._forget)

    def _forget(self, future: "Future[Embedded]") -> None:
        self.item = None


class Batcher:
    """Gathers queries for a few milliseconds, or until there are enough, and encodes them at once.

    One thread encodes. While it does, the next batch gathers by itself: under load nobody waits
    for the clock.
    """

    def __init__(
        self,
        embedder: "Embedder",
        *,
        size: int,
        wait_ms: float,
        device: threading.Lock,
        observe: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        """`device` is held while encoding; `observe` is told each batch's size and seconds."""
        self._embedder, self._size, self._wait = embedder, size, wait_ms / 1e3
        self._device, self._observe = device, observe
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="encode queries", daemon=True)
        self._thread.start()

    def submit(self, item: Item) -> "Future[Embedded]":
        """The item's vector, when it is there; a cancelled one that waits is not encoded."""
        waiting = _Waiting(item)
        self._queue.put(waiting)
        return waiting.future

    def close(self) -> None:
        """Encodes what waits, and ends."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        ending = False
        while not ending:
            first = self._queue.get()
            if first is None:
                return
            members, until = [first], time.monotonic() + self._wait
            while len(members) < self._size:
                try:
                    left = until - time.monotonic()
                    one = self._queue.get(timeout=left) if left > 0 else self._queue.get_nowait()
                except queue.Empty:
                    break
                if one is None:
                    ending = True
                    break
                members.append(one)
            running = [one for one in members if one.future.set_running_or_notify_cancel()]
            if running:
                self._encode(running)

    def _encode(self, members: Sequence[_Waiting]) -> None:
        items = [one.item for one in members if one.item is not None]  # each: it is not done yet
        failed: dict[int, ImageError] = {}
        try:
            with self._device:
                started = time.perf_counter()
                vectors = self._embedder.encode(
                    items,
                    steady=self._size,
                    on_failure=failed.__setitem__,
                )
                seconds = time.perf_counter() - started
        except BaseException as error:  # whoever waits must be told, whatever it is
            for one in members:
                one.future.set_exception(error)
            return
        self._observe(len(members), seconds)
        for place, one in enumerate(members):
            if place in failed:
                one.future.set_exception(failed[place])
            else:
                one.future.set_result(Embedded(vectors[place], 1e3 * seconds, len(members)))
