"""`marvel serve`: a collection behind a page and an API."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, UseAppendAction, arg

from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome


def serve(
    collection: Annotated[Positional[Path], arg(help="What `marvel index FOLDER` made.")],
    *,
    reranker: Annotated[
        str | None, arg(help="A reranker or an instruct model; adds a switch to the page.")
    ] = None,
    model: Annotated[
        str | None, arg(help="Where the collection's model lies now, if it has moved.")
    ] = None,
    host: Annotated[
        str, arg(help="The address to listen on; 0.0.0.0 lets the whole network in.")
    ] = "127.0.0.1",
    port: Annotated[int, arg(help="0 takes a free one.")] = 8765,
    allow_host: Annotated[
        UseAppendAction[tuple[str, ...]],
        arg(help="A name by which the server may be asked, besides localhost and addresses."),
    ] = (),
    max_k: Annotated[int, arg(help="Results of a search at most.")] = 100,
    max_body_mb: Annotated[float, arg(help="MiB of a request at most.")] = 12.0,
    max_pixels: Annotated[int, arg(help="Pixels of a query's picture at most.")] = 40_000_000,
    rate: Annotated[float, arg(help="Searches a second and client in the long run.")] = 10.0,
    burst: Annotated[float, arg(help="Searches that a client may send at once.")] = 40.0,
    queue: Annotated[int, arg(help="Searches under way or waiting at most.")] = 64,
    batch: Annotated[int, arg(help="Queries encoded in one call of the device.")] = 16,
    rerank_depth: Annotated[int, arg(help="First results that the reranker reads.")] = 30,
    timeout: Annotated[float, arg(help="Seconds for an answer at most.")] = 60.0,
    json: Json = False,
) -> Outcome:
    """Opens a search page and a JSON API on a collection, for this machine only unless --host.

    Ctrl-C or SIGTERM ends it; searches that run are finished.
    """
    from marvel_jax.serving.command import serve_collection
    from marvel_jax.serving.limits import Limits

    limits = Limits(
        k=max_k,
        body_bytes=int(max_body_mb * 2**20),
        pixels=max_pixels,
        rate=rate,
        burst=burst,
        queue=queue,
        batch=batch,
        rerank_depth=rerank_depth,
        seconds=timeout,
    )
    served = serve_collection(
        collection,
        reranker=reranker,
        model=model,
        host=host,
        port=port,
        allowed_hosts=allow_host,
        limits=limits,
    )
    return Outcome(served._asdict(), [f"Ended well after {served.seconds:,.1f} s."])
