"""What a run's report says: what was measured and what was retrieved."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.protocols import Evaluation
from marvel_jax.retrieval.report_analyses import Analyses
from marvel_jax.retrieval.report_examples import Example as Example
from marvel_jax.retrieval.report_examples import Hit as Hit
from marvel_jax.retrieval.report_examples import example_dict
from marvel_jax.retrieval.report_examples import pick_examples as pick_examples


class Curve(NamedTuple):
    """A value over training steps; `name` labels its axis."""

    name: str
    points: Sequence[tuple[int, float]]


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything that the page shows.

    title: the heading. corpus: one sentence about what is searched.
    seconds: how long the whole run took, where it is known.
    evaluation: the trained model's scores. untrained: the same before the first step.
    trained: names of the sets whose task was trained; the others are marked as only evaluated.
      None where it is not known: then no set is marked.
    examples: set name -> examples (see `pick_examples`).
    curves: e.g. loss and temperature. facts: what was run on what, shown as a table.
    commands: shell lines that reproduce the run.
    analyses: what explains the scores; see `report_analyses`.
    """

    title: str
    corpus: str
    seconds: float | None
    evaluation: Evaluation
    untrained: Evaluation | None
    trained: Collection[str] | None
    examples: Mapping[str, Sequence[Example]]
    curves: Sequence[Curve]
    facts: Mapping[str, str]
    commands: Sequence[str]
    analyses: Analyses | None = None

    def __post_init__(self) -> None:
        names = {scores.name for scores in self.evaluation.sets}
        for field in ("trained", "examples"):
            unknown = set(getattr(self, field) or ()) - names
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
            name: [example_dict(example) for example in some]
            for name, some in self.examples.items()
        }
        return {
            "title": self.title,
            "corpus": self.corpus,
            "seconds": None if self.seconds is None else round(self.seconds, 1),
            "evaluation": self.evaluation.to_dict(),
            "untrained": self.untrained.to_dict() if self.untrained else None,
            "trained": None if self.trained is None else sorted(self.trained),
            "curves": {
                curve.name: [list(point) for point in curve.points] for curve in self.curves
            },
            "facts": dict(self.facts),
            "commands": list(self.commands),
            "examples": examples,
            **(self.analyses.to_dict() if self.analyses else {}),
        }
