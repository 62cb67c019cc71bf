"""What a run's report says: what was measured and what was retrieved."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.protocols import Evaluation, RetrievalSet
from marvel_jax.retrieval.store import VectorStore


@dataclasses.dataclass(frozen=True)
class Hit:
    """One retrieved candidate: its cosine similarity to the query and whether it is right."""

    id: str
    item: Item
    score: float
    right: bool


@dataclasses.dataclass(frozen=True)
class Example:
    """A query with what was retrieved for it, best first, and one of its right answers."""

    id: str
    query: Item
    hits: tuple[Hit, ...]
    answer: Item
    num_answers: int


class Curve(NamedTuple):
    """A value over training steps; `name` labels its axis."""

    name: str
    points: Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    title: the heading. corpus: one sentence about what is searched.
    seconds: how long the whole run took.
    evaluation: the trained model's scores. untrained: the same before the first step.
    trained: names of the sets whose task was trained; the others are marked as only evaluated.
    examples: set name -> examples (see `pick_examples`).
    curves: e.g. loss and temperature. facts: what was run on what, shown as a table.
    commands: shell lines that reproduce the run.
    """

    title: str
    corpus: str
    seconds: float
    evaluation: Evaluation
    untrained: Evaluation | None
    trained: Collection[str]
    examples: Mapping[str, Sequence[Example]]
    curves: Sequence[Curve]
    facts: Mapping[str, str]
    commands: Sequence[str]

    def __post_init__(self) -> None:
        names = {scores.name for scores in self.evaluation.sets}
        for field in ("trained", "examples"):
            unknown = set(getattr(self, field)) - names
            if unknown:
                raise MarvelError(
                    f"{field} names {sorted(unknown)}, which the evaluation does not have: "
                    f"expected some of {sorted(names)}."
                )
        if self.untrained and {scores.name for scores in self.untrained.sets} != names:
            raise MarvelError("The untrained model was evaluated on other sets than the trained.")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain JSON-able values; pictures are given by name."""
        examples = {
            name: [
                {
                    "id": example.id,
                    "query": _item(example.query),
                    "instruction": example.query.instruction,
                    "answer": _item(example.answer),
                    "num_answers": example.num_answers,
                    "hits": [
                        {
                            "id": hit.id,
                            "score": round(hit.score, 6),
                            "right": hit.right,
                            **_item(hit.item),
                        }
                        for hit in example.hits
                    ],
                }
                for example in some
            ]
            for name, some in self.examples.items()
        }
        return {
            "title": self.title,
            "corpus": self.corpus,
            "seconds": round(self.seconds, 1),
            "evaluation": self.evaluation.to_dict(),
            "untrained": self.untrained.to_dict() if self.untrained else None,
            "trained": sorted(self.trained),
            "curves": {
                curve.name: [list(point) for point in curve.points] for curve in self.curves
            },
            "facts": dict(self.facts),
            "commands": list(self.commands),
            "examples": examples,
        }


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


def _item(item: Item) -> dict[str, Any]:
    images = [part.describe() for part in item.parts if isinstance(part, Image)]
    texts = [part for part in item.parts if isinstance(part, str)]
    return {"texts": texts, "images": images}
