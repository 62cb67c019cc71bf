"""What a search may ask of this collection and this server, before anything is computed."""

from typing import TYPE_CHECKING

from marvel_jax.serving.entries import is_text
from marvel_jax.serving.limits import Limits
from marvel_jax.serving.problems import Problem
from marvel_jax.serving.schemas import SearchRequest

if TYPE_CHECKING:  # what computes is loaded by who hands it in
    from marvel_jax.collection.collection import Collection


def check_request(
    request: SearchRequest, collection: "Collection", *, limits: Limits, reranks: bool
) -> None:
    """Refuses what cannot be answered; `reranks` is whether there is a reranker.

    Raises:
      Problem: a 422 that says why.
    """
    if not (given(request.text) or request.image or request.like is not None):
        raise Problem(
            422, "empty", "The query is empty: give text, image, like or several of them."
        )
    for name, value, most in (
        ("text", request.text, limits.text_characters),
        ("instruction", request.instruction, limits.instruction_characters),
    ):
        if value is not None and len(value) > most:
            raise Problem(422, "too_long", f"{name}: {len(value):,} characters, at most {most:,}.")
        if value is not None and not is_text(value):
            raise Problem(422, "bad_text", f"{name}: it is not Unicode text.")
    if request.k > limits.k:
        raise Problem(422, "too_many", f"k: {request.k}, at most {limits.k}.")
    if request.method not in collection.methods:
        there = ", ".join(collection.methods)
        raise Problem(422, "no_method", f"method: {request.method}, this collection has {there}.")
    if request.dimension not in (None, *collection.dimensions):
        there = ", ".join(map(str, collection.dimensions))
        raise Problem(422, "no_dimension", f"dimension: {request.dimension}, there are {there}.")
    if request.method == "scann" and request.dimension not in (None, collection.dimensions[0]):
        raise Problem(
            422,
            "no_dimension",
            "dimension: the ScaNN index is of all numbers: leave dimension out, or search exactly.",
        )
    if request.rerank and not reranks:
        raise Problem(422, "no_reranker", "rerank: this server has no reranker: --reranker MODEL.")


def given(text: str | None) -> str | None:
    """A blank one is none."""
    return text if text is not None and text.strip() else None
