"""The routes: an API that OpenAPI describes, the page's three files, health and metrics."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from importlib import resources
from typing import Annotated, Any, Literal, cast

from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

import marvel_jax
from marvel_jax.collection.entry import KINDS
from marvel_jax.errors import MarvelError
from marvel_jax.serving.entries import body_of
from marvel_jax.serving.guard import Guard
from marvel_jax.serving.metrics import CONTENT_TYPE, Counted
from marvel_jax.serving.pictures import SIZES, Thumbnails
from marvel_jax.serving.problems import FAULT, Problem, ProblemBody, problem_response
from marvel_jax.serving.schemas import (
    AddressRequest,
    CollectionBody,
    EntryBody,
    Health,
    Method,
    Offered,
    Preset,
    SearchAnswer,
    SearchRequest,
)
from marvel_jax.serving.service import SearchService

_PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/picture.js": ("picture.js", "text/javascript; charset=utf-8"),
    "/results.js": ("results.js", "text/javascript; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_TOLD = {
    403: "A page of another site asked.",
    404: "There is no such entry or page.",
    405: "The address does not take this method.",
    408: "The request did not arrive in time.",
    409: "The collection's files have changed since it was indexed.",
    413: "The body or the picture is too large.",
    421: "The Host header names another server.",
    422: "The request is not one that can be answered; the sentence says why.",
    429: "Too many searches from this client or at once; Retry-After says when to come again.",
    503: "Warming up, too slow or ending; come again.",
}

_OTHERS = {  # of the framework: what we answer for it
    400: (422, "invalid", "The body cannot be read: send JSON in UTF-8."),
    404: (404, "unknown_page", "There is no such page."),
    405: (405, "method", "This address does not take this method."),
}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    always = (403, 408, 413, 421)
    return {
        status: {"model": ProblemBody, "description": _TOLD[status]}
        for status in sorted({*always, *statuses})
    }


def create_app(service: SearchService, *, hosts: Sequence[str] = ()) -> ASGIApp:
    """The whole application; `hosts` are names, besides localhost, that it may be asked by."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Beside the first requests: what waits for it is only what needs the model.
        warming = asyncio.create_task(asyncio.to_thread(_warm_up, service))
        yield
        await warming
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Search a collection",
        description="Text, a picture or both in; entries of a collection out, best first.",
        version=marvel_jax.__version__,
        openapi_url="/api/openapi.json",
        docs_url=None,  # their scripts come from another host
        redoc_url=None,
        lifespan=lifespan,
    )
    _handle_errors(app)
    _add_search(app, service)
    _add_entries(app, service)
    _add_health(app, service)
    _add_page(app)
    return Counted(Guard(app, limits=service.limits, hosts=hosts), metrics=service.metrics)


def _warm_up(service: SearchService) -> None:
    try:
        service.warm_up()
    except Exception as error:  # a search would tell it a client; here it is told the log
        service.say(f"The model could not be warmed up, and /readyz stays at 503: {error!r}")


def _add_search(app: FastAPI, service: SearchService) -> None:
    refusals = _refusals(404, 409, 422, 429, 503)

    @app.post("/api/search", responses=refusals, operation_id="search")
    async def search(request: SearchRequest) -> SearchAnswer:
        """Searches by text, picture, "more like this" or several of them."""
        return await service.search(request)

    @app.get("/api/search", responses=refusals, operation_id="search_by_address")
    async def search_by_address(
        request: Annotated[AddressRequest, Query()],
    ) -> SearchAnswer:
        """The same without a picture, for an address bar or curl."""
        return await service.search(SearchRequest(**request.model_dump()))

    @app.get("/api/collection", responses=_refusals(), operation_id="collection")
    async def collection() -> CollectionBody:
        """What is searched, what a search may ask for, and the limits."""
        return _collection_body(service)


def _add_entries(app: FastAPI, service: SearchService) -> None:
    thumbnails = Thumbnails()
    refusals = _refusals(404, 422)

    # The id is a parameter and no part of the path: ids are file names with slashes and dots.
    @app.get("/api/item", responses=refusals, operation_id="item")
    def item(id: str) -> EntryBody:
        """What an entry shows."""
        return body_of(service.entries.find(id))

    @app.get(
        "/api/image",
        responses={
            **_refusals(404, 409, 422, 429),
            200: {
                "description": "The picture.",
                "content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}},
            },
        },
        response_class=Response,
        operation_id="image",
    )
    async def image(id: str, size: Literal["small", "large"] = "small") -> Response:
        """A picture of an entry, decoded and written anew."""
        found = await service.threaded(lambda: service.entries.find(id))
        if found.gone:
            raise Problem(
                404, "gone", "This entry's picture is no longer where it was: index again."
            )
        path = found.entry.image
        if path is None:
            raise Problem(404, "no_image", "This entry has no picture.")
        try:
            made = await service.threaded(lambda: thumbnails.webp(path, side=SIZES[size]))
        except (MarvelError, OSError) as error:
            service.say(str(error))
            raise Problem(
                409, "changed", "This picture cannot be read any more: index again."
            ) from None
        return Response(
            made, media_type="image/webp", headers={"Cache-Control": "private, max-age=300"}
        )


def _add_health(app: FastAPI, service: SearchService) -> None:
    @app.get("/healthz", responses=_refusals(), operation_id="health")
    async def health() -> Health:
        """Whether the process answers."""
        return Health(status="ok")

    @app.get(
        "/readyz",
        responses={**_refusals(), 503: {"model": Health, "description": _TOLD[503]}},
        operation_id="ready",
    )
    async def ready(response: Response) -> Health:
        """Whether the first search will be quick: the model's programs are compiled."""
        response.status_code = 200 if service.warm else 503
        return Health(status="ready" if service.warm else "warming")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    for path, (name, media_type) in _PAGE.items():
        content = (resources.files(__package__) / "page" / name).read_bytes()
        app.add_route(path, _plain(content, media_type), methods=["GET"])


def _plain(content: bytes, media_type: str) -> Any:
    async def file(request: Request) -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return file


def _handle_errors(app: FastAPI) -> None:
    @app.exception_handler(Problem)
    async def refused(request: Request, problem: Problem) -> Response:
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(one) for one in first["loc"][1:])
        return problem_response(422, "invalid", f"{field or 'the request'}: {first['msg']}.")

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        status, code, told = _OTHERS.get(
            error.status_code, (error.status_code, "refused", str(error.detail))
        )
        return problem_response(status, code, told, headers=error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> Response:
        return problem_response(500, "fault", FAULT)


def _collection_body(service: SearchService) -> CollectionBody:
    collection, manifest, limits = service.collection, service.collection.manifest, service.limits
    return CollectionBody(
        name=collection.folder.name,
        model=manifest.model.rstrip("/").rsplit("/", 1)[-1],
        count=len(collection),
        counts=manifest.counts,
        built=manifest.built,
        methods=cast("list[Method]", list(collection.methods)),
        dimensions=list(collection.dimensions),
        reranker=service.reranking is not None,
        presets=[
            Preset(query=query, target=target, text=text)
            for query in KINDS
            for target in KINDS
            for text in collection.presets(query, target)
        ],
        limits=Offered(
            k=limits.k,
            body_bytes=limits.body_bytes,
            text_characters=limits.text_characters,
            instruction_characters=limits.instruction_characters,
        ),
    )
