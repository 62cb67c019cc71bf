"""What a reranker is trained on besides the queries: prompt, negatives, what the loss covers."""

from dataclasses import dataclass

from marvel_jax.data.rerank_prompts import MOST_LISTED, PROMPTS
from marvel_jax.errors import MarvelError


@dataclass(frozen=True)
class RerankConfig:
    """The objective "rerank": each query with one positive ("Yes") and some negatives ("No").

    Negatives are drawn from the mined file's results (`data.mined`) that rank among the first
    `top`, known positives left out, or without `top` from those that mining chose; without such a
    file from the source's own hard negatives.

    Attributes:
      prompt: a name of `data.rerank_prompts.PROMPTS`; it is kept with the exported model.
      negatives: "No" sequences of a query.
      top: ranks of the mined list that negatives are drawn from (the paper's 50, the code's 100);
        None takes the chosen ones, such as random ones of the pool, which are easier at first.
      listed: a further sequence of a query, the positive among 1 to `listed` - 1 negatives whose
        number is asked for; 0 for none, 5 as LamRA.
      whole_reply: the loss covers the reply's frame too, six tokens of which one tells anything,
        as the released recipe does.
      max_text_tokens: cuts the query's text, its instruction included, and the candidate's.

    Source: U-MARVEL (specification 5.1 to 5.4).
    """

    prompt: str = "marvel"
    negatives: int = 1
    top: int | None = 100
    listed: int = 0
    whole_reply: bool = False
    max_text_tokens: int = 256

    def __post_init__(self) -> None:
        if self.prompt not in PROMPTS:
            raise MarvelError(f"rerank.prompt={self.prompt!r}: choose one of {', '.join(PROMPTS)}.")
        for name in ("negatives", "top", "max_text_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MarvelError(f"rerank.{name}={value} must be at least 1.")
        if self.listed and not 2 <= self.listed <= MOST_LISTED:
            raise MarvelError(
                f"rerank.listed={self.listed}: give 0 for none, or 2 to {MOST_LISTED} candidates."
            )
