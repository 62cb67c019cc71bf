"""The quickstart's collection: the test pool of its corpus, with test queries as labelled sample.

Pictures, names in 14 languages and cards of both are the candidates that the evaluation has encoded
already, so nothing is encoded here.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from marvel_jax.collection.build import Built, build_collection
from marvel_jax.data.items import Image
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.files import write_jsonl
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import instructed
from marvel_jax.retrieval.store import VectorStore

_LABELLED = 25  # queries of each test set


def build_demo(
    workdir: Path,
    store: VectorStore,
    *,
    embedder: Embedder,
    layout: MbeirFolder,
    seed: int,
    say: Callable[[str], None],
) -> Built:
    """Makes `workdir/collection` of the corpus there; `store` has its test pool."""
    labelled = workdir / "labelled.jsonl"
    write_jsonl(labelled, labelled_queries(layout, seed=seed))
    return build_collection(
        workdir / "corpus",
        workdir / "collection",
        model=str(workdir / "model"),
        embedder=embedder,
        reuse=store,
        labelled=labelled,
        say=say,
    )


def labelled_queries(layout: MbeirFolder, *, seed: int) -> Iterator[dict[str, Any]]:
    """Some test queries of every set, evenly over its file, each under its seeded instruction."""
    for one in layout.test_sets("test"):
        step = max(1, len(one.queries) // _LABELLED)
        for number in range(0, len(one.queries), step)[:_LABELLED]:
            query = one.queries[number]
            item = instructed(query, layout.instructions, seed=seed)
            texts = [part for part in item.parts if isinstance(part, str)]
            images = [part.source for part in item.parts if isinstance(part, Image)]
            yield {
                "id": query.id,
                **({"text": texts[0]} if texts else {}),
                **({"image": str(Path(str(images[0])).resolve())} if images else {}),
                "kind": one.task.candidate_modality,
                "instruction": item.instruction,
                "relevant": sorted(one.qrels[query.id]),
            }
