"""Dimension x type x search: what do a smaller store and a faster search cost?

marvel study run configs/studies/dimension_type_scann.py --workdir runs/studies
marvel study report runs/studies/dimension_type_scann

Two models are trained, one of them with Matryoshka's loss, and each is evaluated once; a trial is
one way to keep and to search its vectors. About a quarter of an hour on two idle cores.
"""

from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Evaluate, Search, Train
from marvel_jax.studies import emoji
from marvel_jax.studies.axes import Axis, Point
from marvel_jax.studies.study import Metric, Size, Study
from marvel_jax.studies.trial import Value

LEAVES = {"exact": None, "ScaNN, 8 leaves": 8, "ScaNN, 32 leaves": 32}


def search(value: Value) -> tuple[str, ...]:
    """Exact, or an index of which so many leaves are looked at."""
    leaves = LEAVES[str(value)]
    return (f"search.scann={leaves is not None}", f"search.leaves={leaves}")


def can_be(point: Point) -> bool:
    """A vector of signs is its own code: ScaNN has no use for it."""
    return point["type"] != "binary" or point["search"] == "exact"


def make(size: Size, *, dimensions: tuple[int, ...], searches: tuple[str, ...]) -> Study:
    """The study at a size; the shorter dimensions are those of Matryoshka's loss."""

    def loss(value: Value) -> tuple[str, ...]:
        widths = tuple(sorted(dimensions[1:])) if value == "Matryoshka" else ()
        return (f"train.config.loss.matryoshka={widths}",)

    return Study(
        question="What do a smaller store and a faster search cost in score?",
        base=Recipe(
            (
                emoji.corpus(size),
                Train("train", emoji.training(size, steps=1400)),
                Evaluate("evaluate", "train.model", emoji.CORPUS),
                Search("search", "evaluate.scores", "evaluate.vectors"),
            )
        ),
        axes=(
            Axis("loss", loss, ("plain", "Matryoshka")),
            Axis("dimension", "search.dimension", dimensions),
            Axis("type", "search.dtype", ("float32", "int8", "binary")),
            Axis("search", search, searches),
        ),
        only=can_be,
        metrics=(
            Metric("mean global"),
            Metric("recall"),
            Metric("milliseconds per query", better="lower"),
            Metric("bytes per vector", better="lower"),
        ),
    )


study = make("full", dimensions=(256, 128, 64, 32, 16), searches=tuple(LEAVES))
tiny = make("tiny", dimensions=(32, 16), searches=("exact",))
