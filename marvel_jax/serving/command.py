"""What `marvel serve` does."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from marvel_jax.collection.collection import Collection, load_embedder
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.serving import server
from marvel_jax.serving.app import create_app
from marvel_jax.serving.limits import Limits
from marvel_jax.serving.service import SearchService


class Served(NamedTuple):
    """What was served, where, and for how long."""

    address: str
    entries: int
    seconds: float


def serve_collection(
    folder: Path,
    *,
    reranker: str | None,
    model: str | None,
    host: str,
    port: int,
    allowed_hosts: Sequence[str],
    limits: Limits,
) -> Served:
    """Serves a collection until it is told to end.

    Raises:
      MarvelError: no collection, another model, a port that is taken.
    """
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    bound = server.listen(host, port)  # a port that is taken is told before anything is loaded
    with bound:
        collection = Collection.open(folder)
        embedder = load_embedder(collection, model=model)
        judge = None if reranker is None else Reranker.from_pretrained(reranker)
        service = SearchService(
            collection,
            embedder,
            reranker=judge,
            limits=limits,
            say=lambda line: say(line, markup=False),
        )
        where = server.address(bound)
        app = create_app(service, hosts=[*allowed_hosts, host])

        def started() -> None:
            say(f"{len(collection):,} entries of {folder}", markup=False)
            say(f"Open {where} (Ctrl-C ends it)", markup=False)
            if not server.is_loopback(bound):
                say(
                    f"WARNING: {host} lets every machine of the network in: there is no password "
                    "and no encryption. Leave out --host to keep it to this machine.",
                    markup=False,
                    style="bold red",
                )

        began = time.monotonic()
        server.run(app, bound, limits=limits, started=started)
        return Served(where, len(collection), round(time.monotonic() - began, 1))
