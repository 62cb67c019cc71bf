"""All that explains a run's scores, as the page, the JSON and the tables take it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from marvel_jax.retrieval.analysis_against import Comparison
from marvel_jax.retrieval.analysis_copies import Copies
from marvel_jax.retrieval.analysis_gallery import Gallery
from marvel_jax.retrieval.analysis_obedience import Obedience
from marvel_jax.retrieval.analysis_tradeoff import Tradeoff
from marvel_jax.retrieval.published import Beside


@dataclass(frozen=True)
class Analyses:
    """What explains the scores; what was not asked for is empty or None.

    published: tables of others over the same sets. against: another run on the same queries.
    reranked: the reranked and the fused order, each beside the retrieval's on the same queries.
    reranker_cost: pairs, seconds and pairs_per_second, as scores.json has them. paraphrases: the
    scores under every wording of the instructions, as scores.json has them.
    """

    obedience: Obedience | None = None
    copies: Copies | None = None
    published: Sequence[Beside] = ()
    against: Comparison | None = None
    reranked: Sequence[Comparison] = ()
    reranker_cost: Mapping[str, float] | None = None
    paraphrases: Mapping[str, Any] | None = None
    tradeoff: Tradeoff | None = None
    galleries: Sequence[Gallery] = ()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; pictures are given by name."""
        return {
            "obedience": self.obedience.to_dict() if self.obedience else None,
            "copies": self.copies.to_dict() if self.copies else None,
            "published": [one.to_dict() for one in self.published],
            "against": self.against.to_dict() if self.against else None,
            "reranked": [one.to_dict() for one in self.reranked],
            "reranker_cost": self.reranker_cost,
            "paraphrases": self.paraphrases,
            "tradeoff": self.tradeoff.to_dict() if self.tradeoff else None,
            "galleries": {one.name: one.to_dict() for one in self.galleries},
        }
