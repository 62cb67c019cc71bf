"""Batch x temperature x learning rate of the instruction stage.

marvel run configs/ablations/batch.py --workdir runs/batch --size small
marvel table configs/ablations/batch.py --workdir runs/batch

The paper's fourth table (M-BEIR, local): 57.2, 57.4, 58.3, 58.5, 58.9, 58.7, 58.9, 60.1, 60.3.
"""

from marvel_jax.recipes.ablations import ablation
from marvel_jax.recipes.umarvel_stages import captions, data, instruct, text

ROWS = (
    (480, 1e-4, False),
    (1920, 1e-4, False),
    (1920, 2e-4, False),
    (3840, 2.8e-4, False),
    (3840, 4e-4, False),
    (5760, 6e-4, False),
    (7680, 6e-4, False),
    (3840, 4e-4, True),
    (7680, 4e-4, True),
)


def label(batch: int, rate: float, learned: bool) -> str:
    return f"{batch} queries, {'learned' if learned else '0.05'}, rate {rate:g}"


recipe = ablation(
    "Batch, temperature, learning rate",
    {
        label(batch, rate, learned): instruct(
            "captions.model", batch=batch, rate=rate, learn_temperature=learned
        ).config
        for batch, rate, learned in ROWS
    },
    data=data("Qwen/Qwen2-VL-7B-Instruct"),
    before=(text(rank=64), captions(rank=128)),
)
