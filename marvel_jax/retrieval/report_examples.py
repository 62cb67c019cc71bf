"""Searches that a report shows: a query with its pictures and texts, and what was retrieved."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from marvel_jax.data.items import Item, Video
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.protocols import RetrievalSet
from marvel_jax.retrieval.store import VectorStore


@dataclasses.dataclass(frozen=True)
class Hit:
    """One retrieved candidate: its cosine similarity to the query and whether it is right.

    rank: from 1; 0 where the place in the list says it.
    """

    id: str
    item: Item
    score: float
    right: bool
    rank: int = 0


@dataclasses.dataclass(frozen=True)
class Example:
    """A query with what was retrieved for it, best first, and one of its right answers.

    answer: None where no right answer has a vector. wanted: the modality asked for, where results
    of another are to be marked.
    """

    id: str
    query: Item
    hits: tuple[Hit, ...]
    answer: Item | None
    num_answers: int
    wanted: str | None = None


def pick_examples(
    test_set: RetrievalSet,
    ranking: TopK,
    store: VectorStore,
    *,
    query: Callable[[int], Item],
    candidate: Callable[[str], Item],
    count: int = 4,
    shown: int = 5,
    seed: int = 0,
) -> tuple[Example, ...]:
    """Examples of a set, drawn by seed and so not for their success.

    Args:
      test_set: the set, as it was evaluated.
      ranking: its TopK over rows of the store (`Evaluation.rankings[name].local_pool`).
      store: the store that was searched.
      query: number of a query in the set -> its item, with the instruction it was given.
      candidate: candidate id -> its item.
      count: how many queries.
      shown: how many results of each.
      seed: of the draw.
    """
    total = len(test_set.query_ids)
    chosen = np.random.default_rng(seed).permutation(total)[:count]
    examples = []
    for number in chosen.tolist():
        answers = list(dict.fromkeys(test_set.relevant[number]))
        hits: list[Hit] = []
        for row, score in zip(ranking.indices[number], ranking.scores[number], strict=True):
            if row < 0 or len(hits) == shown:
                break
            key = store.ids[int(row)]
            hits.append(Hit(key, candidate(key), float(score), key in answers))
        examples.append(
            Example(
                id=test_set.query_ids[number],
                query=query(number),
                hits=tuple(hits),
                answer=candidate(answers[0]),
                num_answers=len(answers),
            )
        )
    return tuple(examples)


def example_dict(example: Example) -> dict[str, Any]:
    """An example as JSON has it; pictures are given by name."""
    return {
        "id": example.id,
        "query": _item(example.query),
        "instruction": example.query.instruction,
        "wanted": example.wanted,
        "answer": _item(example.answer) if example.answer else None,
        "num_answers": example.num_answers,
        "hits": [
            {
                "id": hit.id,
                "rank": hit.rank or place,
                "score": round(hit.score, 6),
                "right": hit.right,
                **_item(hit.item),
            }
            for place, hit in enumerate(example.hits, start=1)
        ],
    }


def _item(item: Item) -> dict[str, Any]:
    texts = [part for part in item.parts if isinstance(part, str)]
    shown = {"texts": texts, "images": [image.describe() for image in item.images]}
    videos = [part.describe() for part in item.visuals if isinstance(part, Video)]
    return shown | {"videos": videos} if videos else shown
