"""What `marvel index | search` do."""

import time
from pathlib import Path
from typing import TYPE_CHECKING

from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.retrieval import exact
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.scann_index import ScannIndex, describe
from marvel_jax.retrieval.store import VectorStore

if TYPE_CHECKING:
    pass


def build_index(store: Path, *, out: Path) -> Outcome:
    """Builds a ScaNN index over a store."""
    opened = VectorStore.open(store)
    index = ScannIndex.build(opened, path=out)
    facts = {"out": str(out), "count": len(opened), "build_seconds": index.build_seconds}
    return Outcome(facts, [f"{out}: {len(opened):,} vectors, {describe(index.config)}"])


def search_store(
    model: str,
    *,
    store: Path,
    index: Path | None,
    text: str | None,
    image: Path | None,
    instruction: str | None,
    k: int,
) -> Outcome:
    """Searches a store for one query."""
    if text is None and image is None:
        raise MarvelError("give --text, --image or both.")
    opened = VectorStore.open(store)
    embedder = Embedder.from_pretrained(model)
    opened.require(**embedder.manifest_fields())
    searched = ScannIndex.open(index, opened) if index is not None else None
    query = Item.of(text=text, image=image, instruction=instruction, id="query")
    vectors = embedder.encode([query])
    started = time.perf_counter()
    if searched is not None:
        if not 1 <= k <= len(opened):
            raise MarvelError(f"k={k}: the store holds {len(opened)} vectors; give 1 to that.")
        found = searched.search(vectors, k)
    else:
        found = exact.top_k(vectors, opened, k)
    milliseconds = 1e3 * (time.perf_counter() - started)
    hits = [
        {"rank": rank, "id": opened.ids[int(row)], "score": round(float(score), 6)}
        for rank, (row, score) in enumerate(
            zip(found.indices[0], found.scores[0], strict=True), start=1
        )
        if row >= 0
    ]
    lines = [f"{hit['rank']:>4}  {hit['score']:.4f}  {hit['id']}" for hit in hits]
    return Outcome({"hits": hits, "milliseconds": round(milliseconds, 3)}, lines)
