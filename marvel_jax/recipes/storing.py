"""What `marvel convert` does."""

import time
from pathlib import Path

from rich.console import Console

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.evaluation import Ticker
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_convert import convert
from marvel_jax.retrieval.store_types import StoreType


def convert_store(
    store: Path, *, out: Path, dtype: StoreType | None, dimension: int | None
) -> Outcome:
    """Writes a store again in fewer bytes a vector."""
    if dtype is None and dimension is None:
        raise MarvelError("give --dtype, --dimension or both: what the new store is to be.")
    if out.exists():  # before a large store is verified
        raise MarvelError(f"{out} exists already: choose another folder, or remove it.")
    say = Console(stderr=True, highlight=False).print
    started = time.perf_counter()
    opened = VectorStore.open(store, progress=Ticker(say, "vectors verified"))
    made = convert(
        opened, out, dtype=dtype, dimension=dimension, progress=Ticker(say, "vectors written")
    )
    seconds = time.perf_counter() - started
    facts = {
        "out": str(out),
        "count": len(made),
        "dtype": made.dtype,
        "dimension": made.dimension,
        "bytes_per_vector": made.bytes_per_vector,
        "bytes_per_vector_before": opened.bytes_per_vector,
        "seconds": round(seconds, 1),
    }
    line = (
        f"{out}: {len(made):,} vectors of {made.dimension} numbers, {made.dtype}: "
        f"{made.bytes_per_vector:,} bytes each, before {opened.bytes_per_vector:,}"
    )
    return Outcome(facts, [line])
