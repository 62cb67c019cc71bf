"""Negatives of the second round: none, random, the best found, filtered, by modality.

marvel run configs/ablations/negatives.py --workdir runs/negatives --size small
marvel table configs/ablations/negatives.py --workdir runs/negatives

The paper's fifth table, its third row with a filter at 0.7: before 60.6 / 58.7, the best found
without the batch's others collapses, unfiltered 57.4 / 55.4, filtered 61.7 / 59.9 (M-BEIR, local /
global). Random and modality-aware (MM-Embed) are ours to compare; the table's last column is the
share of the first answers, among everything, of a modality that was not asked for.
"""

import dataclasses

from marvel_jax.recipes.ablations import ablation
from marvel_jax.recipes.stages import Mine
from marvel_jax.recipes.umarvel_stages import MBEIR, data, mined, progressive
from marvel_jax.training.config import LossConfig

MINED = {
    "random": ("filtered", ("pick=pool", "threshold=None")),
    "unfiltered": ("unfiltered", ()),
    "filtered": ("filtered", ()),
    "by-modality": ("modality_aware", ("k=5",)),
}
found = {name: mined(f"mine-{name}.negatives") for name in MINED}

recipe = ablation(
    "Negatives",
    {
        "before": "instruct.model",
        "no negatives of its own": mined(None),
        "random": found["random"],
        "best, without the batch": dataclasses.replace(
            found["unfiltered"], loss=LossConfig(in_batch_negatives=False)
        ),
        "best, unfiltered": found["unfiltered"],
        "best, filtered": found["filtered"],
        "modality-aware": found["by-modality"],
    },
    data=data("Qwen/Qwen2-VL-7B-Instruct"),
    before=(
        *progressive(),
        *(
            Mine(
                f"mine-{name}",
                "instruct.model",
                MBEIR,
                preset=preset,
                settings=settings,
                vectors=None if name == "random" else "mine-random.vectors",
            )
            for name, (preset, settings) in MINED.items()
        ),
    ),
)
