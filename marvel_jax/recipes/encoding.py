"""What `marvel encode` does."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from marvel_jax.data.items import Candidate, Item
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files, read_jsonl
from marvel_jax.recipes.evaluation import Ticker
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates

if TYPE_CHECKING:
    pass


def encode_pool(model: str, *, pool: Path, out: Path) -> Outcome:
    """Embeds the candidates of an M-BEIR folder or a jsonl into a store."""
    say = Console(stderr=True).print
    started = time.perf_counter()
    if pool.is_dir():
        candidates: Any = MbeirFolder(pool).pool("test")
        source_hash = hash_files(*(file.path for file in candidates.files))
    else:
        candidates, source_hash = read_items(pool), hash_files(pool)
    store = encode_candidates(
        Embedder.from_pretrained(model),
        candidates,
        out,
        source_hash=source_hash,
        progress=Ticker(say, "candidates"),
    )
    seconds = time.perf_counter() - started
    facts = {"out": str(out), "count": len(store), "dimension": store.dimension}
    return Outcome(
        facts | {"seconds": round(seconds, 1)},
        [f"{out}: {len(store):,} vectors of {store.dimension} numbers in {seconds:.0f} s"],
    )


def read_items(path: Path) -> list[Candidate]:
    """Reads candidates from a jsonl: `id`, and `text`, `image` (a path beside the file) or both.

    Raises:
      MarvelError: a line is broken, has no id or no content, or an id occurs twice.
    """
    found: dict[str, Candidate] = {}
    for number, row in read_jsonl(path):
        id, text, image = row.get("id"), row.get("text"), row.get("image")
        if not isinstance(id, str) or not id:
            raise MarvelError(f"{path}, line {number}: expected an id (text), found {id!r}.")
        if id in found:
            raise MarvelError(f"{path}, line {number}: id {id!r} occurs twice; rename one.")
        for name, value in (("text", text), ("image", image)):
            if value is not None and not isinstance(value, str):
                raise MarvelError(
                    f"{path}, line {number}: {id!r} has {name} {value!r}; expected text or null."
                )
        if not image and not (text and text.strip()):
            raise MarvelError(f"{path}, line {number}: {id!r} has neither text nor image.")
        item = Item.of(text=text, image=path.parent / image if image else None, id=id)
        found[id] = Candidate(id, item, item.modality)
    if not found:
        raise MarvelError(f"{path} holds no item.")
    return list(found.values())
