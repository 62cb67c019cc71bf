"""What `marvel evaluate` does."""

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.files import write_json
from marvel_jax.recipes.evaluation import evaluate_embedder, score_table
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.retrieval.embedder import Embedder

if TYPE_CHECKING:
    pass


def evaluate_model(model: str, *, data: Path, workdir: Path, seed: int, scann: bool) -> Outcome:
    """Scores a model on every test set of an M-BEIR folder."""
    console = Console(stderr=True)
    evaluated = evaluate_embedder(
        Embedder.from_pretrained(model),
        MbeirFolder(data),
        workdir=workdir,
        seed=seed,
        scann=scann,
        say=console.print,
    )
    facts = evaluated.evaluation.to_dict()
    write_json(workdir / "scores.json", facts)
    return Outcome(facts, score_table(evaluated.evaluation))
