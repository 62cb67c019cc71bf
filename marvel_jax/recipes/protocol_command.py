"""What `marvel evaluate --protocol` does."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from marvel_jax.errors import MarvelError
from marvel_jax.models import hub
from marvel_jax.recipes.evaluate_command import WithReranker
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.protocol_entry import find_protocol
from marvel_jax.recipes.protocol_evaluation import evaluate_protocol
from marvel_jax.recipes.protocol_reranking import check_reranking, rerank_protocol
from marvel_jax.reranker_settings import RerankerSettings
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.rerank import Reranker
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
    reranker: WithReranker | None = None,
    unused: Sequence[str] = (),
) -> Outcome:
    """Scores a model on one of the test sets beside M-BEIR; `unused` are flags of M-BEIR's alone.

    Raises:
      MarvelError: such a flag, no such protocol, or what `evaluate_protocol` or `rerank_protocol`
        refuses.
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
    if reranker is not None:
        check_reranking(reranker.options, loaded)
        RerankerSettings.read(hub.resolve(reranker.model), prompt=reranker.prompt)
    evaluated = evaluate_protocol(
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
    scores = evaluated.scores
    facts, lines = scores.to_dict(), [f"{entry.title}, {entry.checked}", *scores.lines()]
    if reranker is not None:
        # The embedder's weights are free by now, so there is room for the reranker's.
        reranked = rerank_protocol(
            Reranker.from_pretrained(reranker.model, prompt=reranker.prompt, dtype=compute),
            evaluated,
            reranker.options,
            model=reranker.model,
            workdir=workdir,
            seed=seed,
            say=say,
        )
        facts["reranked"] = reranked.to_dict()
        lines += reranked.lines()
    return Outcome(facts, [*lines, f"{workdir / 'scores.json'}"])
