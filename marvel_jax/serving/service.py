"""A query in, results out: embed together with others, search, rerank."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from marvel_jax.collection.entry import KINDS, Entry, Kind
from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError
from marvel_jax.serving.batcher import Batcher, Embedded
from marvel_jax.serving.limits import Limits
from marvel_jax.serving.metrics import Metrics
from marvel_jax.serving.pictures import query_picture
from marvel_jax.serving.problems import BUSY, Problem
from marvel_jax.serving.schemas import (
    EntryBody,
    HitBody,
    SearchAnswer,
    SearchRequest,
    Shares,
)

if TYPE_CHECKING:  # what computes is loaded by who hands it in
    from marvel_jax.collection.collection import Collection, Hit
    from marvel_jax.retrieval.embedder import Embedder
    from marvel_jax.retrieval.rerank import Reranker

T = TypeVar("T")

_PAIRS = 8  # that the reranker reads in one call
_WARM, _USUAL = "Find what this asks for.", 20
"""An instruction and a number of results to compile for."""


class SearchService:
    """Answers queries on one collection with one embedder and perhaps a reranker."""

    def __init__(
        self,
        collection: "Collection",
        embedder: "Embedder",
        *,
        reranker: "Reranker | None" = None,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """`say` is told what a client must not be: which file of the collection is broken."""
        self.say = say
        self.collection, self.embedder, self.reranker = collection, embedder, reranker
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.metrics.entries.set(len(collection))
        self.warm = False
        self._device = threading.Lock()
        self._under_way = 0
        self._closed = False
        self._batcher = Batcher(
            embedder,
            size=self.limits.batch,
            wait_ms=self.limits.batch_wait_ms,
            device=self._device,
            observe=self._observe_batch,
        )
        # Decoding and searching: two at a time keep a small machine busy and bound memory.
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="search")

    def close(self) -> None:
        """Ends the threads; what they have begun they finish, and nothing more is begun."""
        self._closed = True
        self._workers.shutdown()
        self._batcher.close()

    def warm_up(self) -> None:
        """Compiles what most queries need, alone and in a batch, so that nobody waits for it.

        What is longer than usual is compiled when it first comes.

        Raises:
          Exception: whatever the model or the search raises.
        """
        grey, white = (
            Image(np.full((2048, 2048, 3), shade, np.uint8), name="the warm-up's picture")
            for shade in (128, 255)
        )
        for items in (
            [Item.of(text="warm"), Item.of(text="up")],
            [Item.of(image=grey), Item.of(image=white)],
            [Item.of(text="warm", image=grey), Item.of(text="up", image=white)],
        ):
            asked = [item.with_instruction(_WARM) for item in items]
            for some in (asked[:1], asked):
                with self._device:
                    vectors = self.embedder.encode(some, steady=self.limits.batch)
        depths = (_USUAL,) if self.reranker is None else (_USUAL, self.limits.rerank_depth)
        for kind in (None, *KINDS):
            for method, k in itertools.product(self.collection.methods, depths):
                found = self.collection.search(vectors[:1], k=k, kind=kind, method=method)[0]
            if self.reranker is not None:
                for query in (Item.of(text="warm"), Item.of(image=grey)):
                    self._chances(query.with_instruction(_WARM), found.hits[: _PAIRS + 1])
        self.warm = True

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Answers a query.

        Raises:
          Problem: the request asks for what there is not, more than is allowed, or the server is
            busy or too slow.
        """
        if self._closed:  # nobody would come for what is queued now
            raise Problem(503, "closed", "The server is ending: ask again when it is back.")
        self._check(request)
        if self._under_way >= self.limits.queue:
            raise Problem(503, "busy", BUSY, retry_after=1)
        self._under_way += 1
        self.metrics.under_way.set(self._under_way)
        try:
            async with asyncio.timeout(self.limits.seconds):
                return await self._answer(request)
        except TimeoutError:
            raise Problem(
                503,
                "slow",
                f"No answer within {self.limits.seconds:g} s: try again.",
                retry_after=2,
            ) from None
        except MarvelError as error:
            # What a client can do wrong was refused before; the details name folders.
            self.say(str(error))
            raise Problem(
                409, "changed", "The collection's files have changed since: index it again."
            ) from None
        finally:
            self._under_way -= 1
            self.metrics.under_way.set(self._under_way)

    def entry(self, id: str) -> Entry:
        """The entry of an id.

        Raises:
          Problem: there is none, or its picture has left the collection's folder.
        """
        try:
            row = self.collection.row_of(id) if _is_text(id) else -1
        except MarvelError:
            row = -1
        if row < 0:
            raise Problem(404, "unknown_id", "The collection has no entry of this id.")
        try:
            return self.collection.entry(row)
        except MarvelError as error:
            self.say(str(error))
            raise Problem(
                404, "gone", "This entry's picture is no longer where it was: index again."
            ) from None

    async def _answer(self, request: SearchRequest) -> SearchAnswer:
        started = time.perf_counter()
        liked = None if request.like is None else self.entry(request.like)
        item, embedded = await self._embed(request)
        vector = self._vector(request, embedded)
        asked = min(request.k + (liked is not None), len(self.collection))
        depth = min(self.limits.rerank_depth, len(self.collection)) if request.rerank else 0
        asked = max(asked, depth)
        found = await self.threaded(
            lambda: self.collection.search(
                vector[None],
                k=asked,
                kind=request.kind,
                method=request.method,
                dimension=request.dimension,
                collapse=request.collapse,
                compare=request.compare,
            )[0]
        )
        self.metrics.stages.labels("search").observe(found.search_ms / 1e3)
        hits: Sequence[Hit] = found.hits
        if liked is not None:
            self_row = self.collection.row_of(liked.id)
            hits = [hit for hit in hits if self_row not in (hit.row, *hit.copies)]
        order, chances, rerank_ms = list(range(len(hits))), np.zeros(0), None
        if request.rerank:
            query = item or (liked.item if liked is not None else None)
            assert query is not None  # a request without any query was refused
            began = time.perf_counter()
            chances = await self.threaded(
                lambda: self._chances(
                    query.with_instruction(_given(request.instruction)), hits[:depth]
                )
            )
            rerank_ms = 1e3 * (time.perf_counter() - began)
            self.metrics.stages.labels("rerank").observe(rerank_ms / 1e3)
            # What the reranker has not read stays behind what it has, as it was.
            order[:depth] = sorted(order[:depth], key=lambda place: (-chances[place], place))
        bodies = [
            self._hit(
                hits[place],
                rank=rank,
                chance=float(chances[place]) if place < len(chances) else None,
                previous=place + 1 if request.rerank else None,
            )
            for rank, place in enumerate(order[: request.k], start=1)
        ]
        return SearchAnswer(
            hits=bodies,
            shares=_shares([body.kind for body in bodies]),
            instruction=_given(request.instruction),
            method=request.method,
            dimension=request.dimension or self.collection.dimensions[0],
            recall=found.recall,
            embed_ms=round(embedded.milliseconds, 3) if embedded else 0.0,
            batch=embedded.batch if embedded else 0,
            search_ms=round(found.search_ms, 3),
            rerank_ms=None if rerank_ms is None else round(rerank_ms, 3),
            total_ms=round(1e3 * (time.perf_counter() - started), 3),
        )

    async def _embed(self, request: SearchRequest) -> tuple[Item | None, Embedded | None]:
        picture: Any = None
        if request.image:
            encoded = request.image
            picture = await self.threaded(lambda: query_picture(encoded, pixels=self.limits.pixels))
        if picture is None and not _given(request.text):
            return None, None
        item = Item.of(
            text=_given(request.text),
            image=None if picture is None else Image(picture, name="the query's picture"),
            instruction=_given(request.instruction),
        )
        try:
            return item, await asyncio.wrap_future(self._batcher.submit(item))
        except ImageError as error:  # of a shape that the model cannot cut, say
            raise Problem(422, "bad_image", str(error)) from None

    def _vector(self, request: SearchRequest, embedded: Embedded | None) -> np.ndarray:
        parts = [] if embedded is None else [embedded.vector]
        if request.like is not None:
            parts.append(self.collection.vector(self.collection.row_of(request.like)))
        total = np.sum(np.asarray(parts, np.float32), axis=0)
        norm = float(np.linalg.norm(total))
        if norm < 1e-6:
            raise Problem(
                422, "opposed", "The query and the entry that it should be like cancel out."
            )
        return np.asarray(total / norm, np.float32) if len(parts) > 1 else parts[0]

    def _chances(self, query: Item, hits: "Sequence[Hit]") -> np.ndarray:
        assert self.reranker is not None
        candidates = [self.collection.entry(hit.row).item for hit in hits]
        with self._device:
            pairs = [(query, one) for one in candidates]
            return self.reranker.score(pairs, steady=_PAIRS).p_yes

    def _hit(self, hit: "Hit", *, rank: int, chance: float | None, previous: int | None) -> HitBody:
        return HitBody(
            **self.body(self.collection.entry(hit.row)).model_dump(),
            rank=rank,
            score=round(float(hit.score), 6),
            copies=[self.body(self.collection.entry(row)) for row in hit.copies],
            rerank_score=None if chance is None else round(chance, 6),
            previous_rank=previous,
        )

    def body(self, entry: Entry) -> EntryBody:
        """What a client is told of an entry: no path."""
        return EntryBody(
            id=entry.id,
            kind=entry.kind,
            name=entry.name,
            text=entry.text,
            image=entry.image is not None,
        )

    def _check(self, request: SearchRequest) -> None:
        limits = self.limits
        if not (_given(request.text) or request.image or request.like is not None):
            raise Problem(
                422, "empty", "The query is empty: give text, image, like or several of them."
            )
        for name, value, most in (
            ("text", request.text, limits.text_characters),
            ("instruction", request.instruction, limits.instruction_characters),
        ):
            if value is not None and len(value) > most:
                raise Problem(
                    422, "too_long", f"{name}: {len(value):,} characters, at most {most:,}."
                )
            if value is not None and not _is_text(value):
                raise Problem(422, "bad_text", f"{name}: it is not Unicode text.")
        if request.k > limits.k:
            raise Problem(422, "too_many", f"k: {request.k}, at most {limits.k}.")
        if request.method not in self.collection.methods:
            there = ", ".join(self.collection.methods)
            raise Problem(
                422, "no_method", f"method: {request.method}, this collection has {there}."
            )
        if request.dimension not in (None, *self.collection.dimensions):
            there = ", ".join(map(str, self.collection.dimensions))
            raise Problem(
                422, "no_dimension", f"dimension: {request.dimension}, there are {there}."
            )
        if request.method == "scann" and request.dimension not in (
            None,
            self.collection.dimensions[0],
        ):
            raise Problem(
                422,
                "no_dimension",
                "dimension: the ScaNN index is of all numbers: leave dimension out, or search "
                "exactly.",
            )
        if request.rerank and self.reranker is None:
            raise Problem(
                422, "no_reranker", "rerank: this server has no reranker: --reranker MODEL."
            )

    def _observe_batch(self, size: int, seconds: float) -> None:
        self.metrics.batch.observe(size)
        self.metrics.stages.labels("embed").observe(seconds)

    async def threaded(self, work: Callable[[], T]) -> T:
        """Runs what takes long, or waits for a disk, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def _given(text: str | None) -> str | None:
    """A blank one is none."""
    return text if text is not None and text.strip() else None


def _is_text(value: str) -> bool:
    """Half of a surrogate pair, which JSON can write, is no text that a tokenizer reads."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shares(kinds: Sequence[Kind]) -> Shares:
    text, image, both = (round(kinds.count(one) / max(1, len(kinds)), 4) for one in KINDS)
    return Shares(text=text, image=image, image_text=both)
