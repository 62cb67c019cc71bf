"""Global batch x mined negatives: does a larger batch do what hard negatives do?

marvel study run configs/studies/batch_negatives.py --workdir runs/studies
marvel study report runs/studies/batch_negatives

A first round is trained once and mined once; each trial goes on from it with as many pairs,
whatever the batch, and a learning rate that grows with the batch's square root. About an hour on
two idle cores.
"""

import dataclasses

from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Evaluate, Mine, Train
from marvel_jax.studies import emoji
from marvel_jax.studies.axes import Axis
from marvel_jax.studies.study import Metric, Size, Study
from marvel_jax.studies.trial import Value
from marvel_jax.training.config import ModelConfig

PAIRS = 38_400
RATE, AT = 1e-3, 128  # the learning rate of a batch


def make(
    size: Size, *, batches: tuple[int, ...], negatives: tuple[int, ...], seeds: tuple[int, ...]
) -> Study:
    """The study at a size."""
    first = emoji.training(size, steps=700)
    again = dataclasses.replace(
        first,
        model=ModelConfig(source="first.model"),
        data=dataclasses.replace(first.data, mined="mine.negatives", hard_negatives=1),
        loss=dataclasses.replace(first.loss, symmetric=False),
    )
    pairs = PAIRS if size == "full" else 2 * max(batches)

    def batch(value: Value) -> tuple[str, ...]:
        rate = RATE * (int(value) / AT) ** 0.5
        return (
            f"again.config.data.global_batch={value}",
            f"again.config.steps={pairs // int(value)}",
            f"again.config.optimizer.learning_rate={rate}",
        )

    def mined(value: Value) -> tuple[str, ...]:
        negatives = (f"again.config.data.hard_negatives={value}",)
        return negatives if value else (*negatives, "again.config.data.mined=None")

    return Study(
        question="How does retrieval depend on the batch, and on mined negatives beside it?",
        base=Recipe(
            (
                emoji.corpus(size),
                Train("first", first),
                Mine(
                    "mine",
                    "first.model",
                    emoji.CORPUS,
                    preset="unfiltered",
                    # Not the very best: names in fourteen languages often fit several pictures.
                    settings=("pick=random", "k=3", "first_rank=5", "last_rank=60"),
                ),
                Train("again", again),
                Evaluate("evaluate", "again.model", emoji.CORPUS),
            )
        ),
        axes=(
            Axis("batch", batch, batches),
            Axis("negatives", mined, negatives),
        ),
        seeds=seeds,
        seeded=("again.config.seed",),
        metrics=(
            Metric("mean local"),
            Metric("mean global"),
            Metric("hit@5 t->i local"),
        ),
    )


study = make("full", batches=(32, 64, 128, 256, 512), negatives=(0, 1, 3), seeds=(0, 1))
tiny = make("tiny", batches=(8, 16), negatives=(0, 1), seeds=(0,))
