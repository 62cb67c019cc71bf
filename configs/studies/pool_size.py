"""Pool size: how fast does a score fall as the pool grows, for a better and for a worse model?

marvel study run configs/studies/pool_size.py --workdir runs/studies
marvel study report runs/studies/pool_size

Each query is asked of a drawn pool and of its own right answers; the seeds draw the pools, of which
the largest has nearly all of the 20,072 candidates. About ten minutes on two idle cores.
"""

from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Evaluate, Search, Train
from marvel_jax.studies import emoji
from marvel_jax.studies.axes import Axis
from marvel_jax.studies.study import Metric, Size, Study


def make(
    size: Size, *, pools: tuple[int, ...], steps: tuple[int, ...], seeds: tuple[int, ...]
) -> Study:
    """The study at a size."""
    return Study(
        question="How fast does a score fall as the pool grows?",
        base=Recipe(
            (
                emoji.corpus(size),
                Train("train", emoji.training(size, steps=steps[-1])),
                Evaluate("evaluate", "train.model", emoji.CORPUS),
                Search("search", "evaluate.scores", "evaluate.vectors"),
            )
        ),
        axes=(
            Axis("steps", "train.config.steps", steps),
            Axis("pool", "search.pool", pools),
        ),
        seeds=seeds,
        seeded=("search.seed",),
        metrics=(
            Metric("mean global"),
            Metric("hit@5 t->i global"),
            Metric("milliseconds per query", better="lower"),
        ),
    )


study = make(
    "full", pools=(100, 300, 1000, 3000, 10_000, 20_000), steps=(350, 1400), seeds=(0, 1, 2)
)
tiny = make("tiny", pools=(20, 100), steps=(1, 2), seeds=(0,))
