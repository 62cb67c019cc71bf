"""What `marvel evaluate --protocol` does."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.protocol_entry import find_protocol
from marvel_jax.recipes.protocol_evaluation import evaluate_protocol
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.store_types import StoreType


def evaluate_on(
    model: str,
    *,
    protocol: str,
    data: Path,
    workdir: Path,
    seed: int = 0,
    dtype: StoreType = "float32",
    dimension: int | None = None,
    compute: str = "float32",
    tolerate: int = 0,
    unused: Sequence[str] = (),
) -> Outcome:
    """Scores a model on one of the test sets beside M-BEIR; `unused` are flags of M-BEIR's alone.

    Raises:
      MarvelError: such a flag, no such protocol, or what `evaluate_protocol` refuses.
    """
    if unused:
        raise MarvelError(
            f"{', '.join(unused)} with --protocol: only an M-BEIR folder is judged so; leave it "
            "off."
        )
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    entry = find_protocol(protocol)
    loaded = entry.load(data)  # what is wrong with it is told before a model is read
    scores = evaluate_protocol(
        Embedder.from_pretrained(model, dtype=compute),
        loaded,
        workdir=workdir,
        seed=seed,
        model=model,
        dtype=dtype,
        dimension=dimension,
        tolerate=tolerate,
        say=say,
    )
    lines = [f"{entry.title}, {entry.checked}", *scores.lines(), f"{workdir / 'scores.json'}"]
    return Outcome(scores.to_dict(), lines)
