"""A query in, results out: embed together with others, search, rerank."""

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np

from marvel_jax.collection.entry import KINDS, Kind
from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError
from marvel_jax.serving.batcher import Batcher, Embedded
from marvel_jax.serving.checks import check_request, given
from marvel_jax.serving.entries import Entries, Shown, body_of
from marvel_jax.serving.limits import Limits
from marvel_jax.serving.metrics import Metrics
from marvel_jax.serving.pictures import query_pictures
from marvel_jax.serving.problems import BUSY, Problem
from marvel_jax.serving.reranking import PAIRS, Reranking, reordered
from marvel_jax.serving.schemas import HitBody, SearchAnswer, SearchRequest, Shares

if TYPE_CHECKING:  # what computes is loaded by who hands it in
    from marvel_jax.collection.collection import Collection, Found, Hit
    from marvel_jax.retrieval.embedder import Embedder
    from marvel_jax.retrieval.rerank import Reranker

T = TypeVar("T")

_WARM, _USUAL = "Find what this asks for.", 20
"""An instruction and a number of results to compile for."""


class _Query(NamedTuple):
    """What a request brings, as the reranker reads it, and its vector; None where it is `like`."""

    item: Item | None
    embedded: Embedded | None


class _Liked(NamedTuple):
    """The entry of `like`."""

    row: int
    shown: Shown
    vector: np.ndarray


class _Result(NamedTuple):
    """A hit, and the entries of its row and of its copies."""

    hit: "Hit"
    shown: Shown
    copies: list[Shown]


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
        self.collection, self.embedder = collection, embedder
        self.entries = Entries(collection, say=say)
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics()
        self.metrics.entries.set(len(collection))
        self.warm = False
        self._device = threading.Lock()
        self.reranking = (
            None if reranker is None else Reranking(reranker, device=self._device, say=say)
        )
        # For the embedder, and for the reranker where it takes pictures at another size.
        self._geometries = [embedder.processor.geometry]
        if self.reranking is not None and self.reranking.geometry not in self._geometries:
            self._geometries.append(self.reranking.geometry)
        each = sum(geometry.max_pixels for geometry in self._geometries)
        self._pictures = asyncio.Semaphore(max(1, self.limits.waiting_pixels // each))
        self._under_way = 0
        self._closed = False
        self._batcher = Batcher(
            embedder,
            size=self.limits.batch,
            wait_ms=self.limits.batch_wait_ms,
            device=self._device,
            observe=self._observe_batch,
        )
        # Decoding and searching: two at a time keep a small machine busy. A decoded picture is
        # large only here; what waits to be encoded is as small as the model takes it.
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
        depths = (_USUAL,) if self.reranking is None else (_USUAL, self.limits.rerank_depth)
        for kind in (None, *KINDS):
            for method, k in itertools.product(self.collection.methods, depths):
                found = self.collection.search(vectors[:1], k=k, kind=kind, method=method)[0]
            if self.reranking is not None:
                shown = [self.entries.at(hit.row) for hit in found.hits[: PAIRS + 1]]
                for query in (Item.of(text="warm"), Item.of(image=grey)):
                    self.reranking.chances(query.with_instruction(_WARM), shown)
        self.warm = True

    async def search(self, request: SearchRequest) -> SearchAnswer:
        """Answers a query.

        Raises:
          Problem: the request asks for what there is not, more than is allowed, or the server is
            busy or too slow.
        """
        if self._closed:  # nobody would come for what is queued now
            raise Problem(503, "closed", "The server is ending: ask again when it is back.")
        check_request(
            request, self.collection, limits=self.limits, reranks=self.reranking is not None
        )
        if self._under_way >= self.limits.queue:
            raise Problem(429, "busy", BUSY, retry_after=1)
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

    async def _answer(self, request: SearchRequest) -> SearchAnswer:
        started = time.perf_counter()
        like = request.like
        liked = None if like is None else await self.threaded(lambda: self._liked(like))
        async with self._pictures if request.image else contextlib.nullcontext():
            query = await self._embed(request)
            found, results = await self.threaded(lambda: self._found(request, query, liked))
            self.metrics.stages.labels("search").observe(found.search_ms / 1e3)
            chances, rerank_ms = await self._reranked(request, query, liked, results)
        bodies = [
            _body(
                results[place],
                rank=rank,
                chance=chances[place] if place < len(chances) else None,
                previous=place + 1 if request.rerank else None,
            )
            for rank, place in enumerate(
                # What the reranker has not read stays behind what it has, as it was.
                [*reordered(chances), *range(len(chances), len(results))][: request.k],
                start=1,
            )
        ]
        embedded = query.embedded
        read = embedded is not None or request.rerank
        return SearchAnswer(
            hits=bodies,
            shares=_shares([body.kind for body in bodies]),
            instruction=given(request.instruction) if read else None,
            method=request.method,
            dimension=request.dimension or self.collection.dimensions[0],
            recall=found.recall,
            embed_ms=round(embedded.milliseconds, 3) if embedded else 0.0,
            batch=embedded.batch if embedded else 0,
            search_ms=round(found.search_ms, 3),
            rerank_ms=None if rerank_ms is None else round(rerank_ms, 3),
            total_ms=round(1e3 * (time.perf_counter() - started), 3),
        )

    async def _embed(self, request: SearchRequest) -> _Query:
        embedder, reranker = None, None
        if request.image:
            encoded, limits = request.image, self.limits
            embedder, *others = await self.threaded(
                lambda: query_pictures(encoded, pixels=limits.pixels, geometries=self._geometries)
            )
            reranker = others[0] if others else embedder
        if embedder is None and not given(request.text):
            return _Query(None, None)

        def item(picture: Any) -> Item:
            return Item.of(
                text=given(request.text),
                image=None if picture is None else Image(picture, name="the query's picture"),
                instruction=given(request.instruction),
            )

        try:
            embedded = await asyncio.wrap_future(self._batcher.submit(item(embedder)))
        except ImageError as error:
            raise Problem(422, "bad_image", str(error)) from None
        return _Query(item(reranker), embedded)

    def _liked(self, id: str) -> _Liked:
        row = self.entries.row(id)
        return _Liked(row, self.entries.at(row), self.collection.vector(row))

    def _found(
        self, request: SearchRequest, query: _Query, liked: _Liked | None
    ) -> "tuple[Found, list[_Result]]":
        """What the collection has, best first; of `like` without the entry itself."""
        most = len(self.collection)
        depth = min(self.limits.rerank_depth, most) if request.rerank else 0
        found = self.collection.search(
            _vector(query.embedded, liked)[None],
            k=max(min(request.k, most), depth) + (liked is not None),
            kind=request.kind,
            method=request.method,
            dimension=request.dimension,
            collapse=request.collapse,
            compare=request.compare,
        )[0]
        results = [
            _Result(hit, self.entries.at(hit.row), [self.entries.at(row) for row in hit.copies])
            for hit in found.hits
        ]
        if liked is not None:
            results = [one for one in results if not _is_liked(one, liked, fold=request.collapse)]
        return found, results

    async def _reranked(
        self,
        request: SearchRequest,
        query: _Query,
        liked: _Liked | None,
        results: "Sequence[_Result]",
    ) -> tuple[list[float | None], float | None]:
        """The first results' chances, and the milliseconds that they took."""
        reranking = self.reranking
        if not request.rerank or reranking is None:
            return [], None
        item = query.item
        if item is None:
            assert liked is not None  # a request without any query was refused
            if liked.shown.gone:
                raise Problem(404, "gone", "rerank: the picture of `like` is no longer there.")
            item = liked.shown.entry.item.with_instruction(given(request.instruction))
        first = [one.shown for one in results[: self.limits.rerank_depth]]
        began = time.perf_counter()
        chances = await self.threaded(lambda: reranking.chances(item, first))
        seconds = time.perf_counter() - began
        self.metrics.stages.labels("rerank").observe(seconds)
        return chances, 1e3 * seconds

    def _observe_batch(self, size: int, seconds: float) -> None:
        self.metrics.batch.observe(size)
        self.metrics.stages.labels("embed").observe(seconds)

    async def threaded(self, work: Callable[[], T]) -> T:
        """Runs what takes long, or waits for a disk, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)


def _vector(embedded: Embedded | None, liked: _Liked | None) -> np.ndarray:
    """Of the query, of the entry that is liked, or between them."""
    parts = [] if embedded is None else [embedded.vector]
    if liked is not None:
        parts.append(liked.vector)
    total = np.sum(np.asarray(parts, np.float32), axis=0)
    norm = float(np.linalg.norm(total))
    if norm < 1e-6:
        raise Problem(422, "opposed", "The query and the entry that it should be like cancel out.")
    return np.asarray(total / norm, np.float32) if len(parts) > 1 else parts[0]


def _is_liked(result: _Result, liked: _Liked, *, fold: bool) -> bool:
    """Whether a result is the entry itself or, where copies are folded, a copy of it."""
    if liked.row in (result.hit.row, *result.hit.copies):
        return True
    content = liked.shown.entry.content
    # Of very many copies the entry itself may not be among the first that a search folds.
    return fold and any(one.entry.content == content for one in (result.shown, *result.copies))


def _body(result: _Result, *, rank: int, chance: float | None, previous: int | None) -> HitBody:
    return HitBody(
        **body_of(result.shown).model_dump(),
        rank=rank,
        score=round(float(result.hit.score), 6),
        copies=[body_of(one) for one in result.copies],
        rerank_score=None if chance is None else round(chance, 6),
        previous_rank=previous,
    )


def _shares(kinds: Sequence[Kind]) -> Shares:
    text, image, both = (round(kinds.count(one) / max(1, len(kinds)), 4) for one in KINDS)
    return Shares(text=text, image=image, image_text=both)
