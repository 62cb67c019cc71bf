"""What a reranker is asked: the fixed words around a query and one candidate, or a few."""

from dataclasses import dataclass

_SYSTEM = "You are a helpful assistant."
# A line continuation in the source that the released weights were trained with.
_GAP = " " * 24


@dataclass(frozen=True)
class RerankPrompt:
    """The words of a prompt.

    The user's turn is `opening`, "Query:", the query, "Candidate:", the candidate; of several, each
    behind its number in brackets. `lead` stands behind a label, `close` behind an item that another
    part follows. The reply is one of `answers`, or "Ans: (2)".

    A part of a prompt ends where every byte-level tokenizer cuts, between a word and a colon or a
    bracket and a digit: so its tokens are the same whatever stands beside it.
    """

    system: str
    opening: str
    list_system: str
    list_opening: str
    lead: str = ""
    close: str = ""
    answers: tuple[str, str] = ("Yes", "No")


PROMPTS: dict[str, RerankPrompt] = {
    # The question goes first: all that comes is read in its light, and what a query's candidates
    # have in common is one prefix.
    "marvel": RerankPrompt(
        system="Judge whether the candidate is what the query asks for. Answer Yes or No.",
        opening="",
        list_system="Choose the candidate that best fits the query. Answer with its number.",
        list_opening="",
        lead="\n",
        close="\n",
    ),
    # Byte for byte what the released weights were trained with, spelling and blanks included
    # (spec/umarvel.md 5.2, 5.4).
    "umarvel_released": RerankPrompt(
        system=_SYSTEM,
        opening=(
            "I will provide you with a query and a candidate. Please evaluate whether the candidate"
            f"{_GAP}meets the requirements of the query. If it does, respond with 'Yes'; if it "
            "doesn't, responed with 'No'."
        ),
        list_system=_SYSTEM,
        list_opening=(
            "I will provide you with a query followed by multiple candidates in the format: (1) "
            "cand1 (2) cand2, etc. Each candidate is independent of the others. "
            f"{_GAP}Evaluate each candidate against the query, and respond with the number "
            "corresponding to the candidate that best meets the requirements of the query."
        ),
    ),
    # For models that were never trained to rerank (MM-Embed, spec/field.md G).
    "true_false": RerankPrompt(
        system=_SYSTEM,
        opening="Does the candidate answer the query? Reply with one word, True or False.\n",
        list_system=_SYSTEM,
        list_opening="Which candidate answers the query best? Reply with its number.\n",
        lead="\n",
        close="\n",
        answers=("True", "False"),
    ),
}

MOST_LISTED = 5
"""Candidates of a list-wise prompt at most; the fewest are two."""
