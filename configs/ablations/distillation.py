"""Distillation: the lists, the control without a teacher, and text in the mixture.

marvel run configs/ablations/distillation.py --workdir runs/distillation --size small
marvel table configs/ablations/distillation.py --workdir runs/distillation

The paper's sixth table: before 61.7 / 59.9, distilled from local lists 63.2 / 60.7, the same lists
as hard negatives 62.2 / 60.0 (M-BEIR, local / global). Lists of the pool of everything, and text in
the mixture, so that text retrieval does not decay, are ours to compare.
"""

import dataclasses

from marvel_jax.recipes.ablations import ablation
from marvel_jax.recipes.umarvel_stages import (
    data,
    distillation,
    hard_negatives,
    progressive,
    reranker,
    teacher,
)
from marvel_jax.training.config import LossConfig

LOCAL, GLOBAL = "teach-local.scores", "teach-global.scores"

control = dataclasses.replace(
    distillation((LOCAL,), kl_weight=0.0, contrastive_weight=1.0),
    loss=LossConfig(in_batch_negatives=False),
)

recipe = ablation(
    "Distillation",
    {
        "before": "hard.model",
        "local lists": distillation((LOCAL,)),
        "global lists": distillation((GLOBAL,)),
        "local and global lists": distillation((LOCAL, GLOBAL)),
        "with InfoNCE": distillation((LOCAL, GLOBAL), contrastive_weight=1.0),
        "with InfoNCE and text": distillation((LOCAL, GLOBAL), text=True),
        "lists as hard negatives": control,
    },
    data=data("Qwen/Qwen2-VL-7B-Instruct"),
    before=(
        *progressive(),
        *hard_negatives(),
        *reranker("reranker", lists_of="instruct", vectors="mine.vectors"),
        *teacher(),
    ),
)
