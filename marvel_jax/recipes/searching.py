"""What `marvel index | search` do."""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from marvel_jax.data.item_json import item_from_json
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object
from marvel_jax.recipes.evaluation import Ticker
from marvel_jax.recipes.outcome import EXIT_ERROR, Outcome
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.scann_config import ScannConfig
from marvel_jax.retrieval.scann_index import ScannIndex
from marvel_jax.retrieval.searcher import open_searcher
from marvel_jax.retrieval.store import VectorStore


def build_index(
    store: Path,
    *,
    out: Path,
    config: ScannConfig | None = None,
    memory_gb: float | None = None,
    target_recall: float | None = None,
    queries: Path | None = None,
) -> Outcome:
    """Builds a ScaNN index over a store; tuned to a recall if asked.

    `queries` is a store of queries, to tune with. The exit code is 1 where the recall asked for
    is not reached: the index is there all the same, with its most accurate setting.
    """
    say = Console(stderr=True, highlight=False).print
    if queries is not None and target_recall is None:
        raise MarvelError("--queries are for tuning: give --target-recall, too.")
    if out.exists():  # before a large store is verified
        raise MarvelError(f"{out} exists already: choose another folder, or remove it first.")
    if store.is_file() or (store.is_dir() and not any(store.glob("*.npy"))):
        raise MarvelError(
            f"{store} is not a vector store. Make one with `marvel encode`; or add --model, and a "
            "collection is made of its pictures and texts."
        )
    opened = VectorStore.open(store, progress=Ticker(say, "vectors verified"))
    asked = None if queries is None else VectorStore.open(queries)
    if asked is not None:
        asked.require(model_hash=opened.manifest.model_hash)
    index = ScannIndex.build(
        opened,
        config,
        path=out,
        memory_gb=memory_gb,
        target_recall=target_recall,
        queries=None if asked is None else asked.vectors(),
        say=say,
    )
    facts = {
        "out": str(out),
        "count": len(opened),
        "build_seconds": index.build_seconds,
        "bytes": index.bytes,
        "config": dataclasses.asdict(index.config),
        "tuned": index.tuned,
    }
    lines = [f"{out}: {len(opened):,} vectors, {index.description}"]
    code = 0
    if index.tuned is not None:
        chosen, reached = index.tuned["chosen"], index.tuned["reached"]
        lines.append(
            f"recall@{index.tuned['k']} {chosen['recall']:.4f} at "
            f"{chosen['queries_per_second']:,.0f} queries/s"
            + ("" if reached else f": no setting reaches {target_recall}, this is the best")
        )
        code = 0 if reached else EXIT_ERROR
    return Outcome(facts, lines, code)


def search_store(
    model: str,
    *,
    store: Path,
    index: Path | None,
    text: str | None,
    image: Path | None,
    instruction: str | None,
    k: int,
    video: Path | None = None,
    parts: Path | None = None,
) -> Outcome:
    """Searches a store for one query.

    `parts` is a JSON file of one item, for what text, image and video cannot say: their order.
    """
    query = _query(text=text, image=image, video=video, parts=parts, instruction=instruction)
    say = Console(stderr=True, highlight=False).print
    opened = VectorStore.open(store, progress=Ticker(say, "vectors verified"))
    embedder = Embedder.from_pretrained(model)
    opened.require(**embedder.manifest_fields())
    searcher = open_searcher(opened, index, say=say)
    vectors = embedder.encode([query])
    started = time.perf_counter()
    found = searcher.search(vectors, k)
    milliseconds = 1e3 * (time.perf_counter() - started)
    hits = [
        {"rank": rank, "id": opened.ids[int(row)], "score": round(float(score), 6)}
        for rank, (row, score) in enumerate(
            zip(found.indices[0], found.scores[0], strict=True), start=1
        )
        if row >= 0
    ]
    lines = [f"{hit['rank']:>4}  {hit['score']:.4f}  {hit['id']}" for hit in hits]
    facts = {
        "hits": hits,
        "milliseconds": round(milliseconds, 3),
        "search": searcher.description,
    }
    return Outcome(facts, lines)


def refuse_unused(flags: Mapping[str, object], *, of: str) -> None:
    """Refuses flags that were given and have no meaning here; `of` says where they have one."""
    given = [name for name, value in flags.items() if value not in (None, False, ())]
    if given:
        raise MarvelError(f"{given[0]} is for {of}: leave it out.")


def _query(
    *,
    text: str | None,
    image: Path | None,
    video: Path | None,
    parts: Path | None,
    instruction: str | None,
) -> Item:
    plain = not (text is None and image is None and video is None)
    if plain == (parts is not None):
        raise MarvelError("give --text, --image, --video or several of them, or --parts alone.")
    if parts is None:
        return Item.of(text=text, image=image, video=video, instruction=instruction, id="query")
    content = read_json_object(parts)
    item = item_from_json(content, root=parts.parent, where=str(parts), id="query")
    return item.with_instruction(instruction)
