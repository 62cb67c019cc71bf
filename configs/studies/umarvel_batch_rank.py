"""Batch x adapter rank of the 7B, as many queries at any batch: to be planned before it is run.

marvel study plan configs/studies/umarvel_batch_rank.py --topology gpu:h100:64 gpu:h100:256
marvel study schedule configs/studies/umarvel_batch_rank.py --for slurm \
  --workdir /shared/runs/studies --out batch_rank.sbatch

A trial is the instruction stage of the published recipe and an evaluation on M-BEIR.
"""

import dataclasses
from pathlib import Path

from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Evaluate, Train
from marvel_jax.recipes.umarvel_stages import MBEIR
from marvel_jax.studies.axes import Axis
from marvel_jax.studies.study import Metric, Study
from marvel_jax.studies.trial import Value

QUERIES = 1_332_790  # of M-BEIR's training, once
RATE, AT = 4e-4, 3840  # the published learning rate, and its batch

config = load_config(Path(__file__).parents[1] / "qwen2_vl_7b_lora.py")


def batch(value: Value) -> tuple[str, ...]:
    """One epoch, the rate with the batch's square root."""
    size = int(value)
    return (
        f"train.config.data.global_batch={size}",
        f"train.config.steps={-(-QUERIES // size)}",
        f"train.config.optimizer.learning_rate={RATE * (size / AT) ** 0.5}",
    )


def rank(value: Value) -> tuple[str, ...]:
    """The published share of alpha to rank."""
    adapters = "train.config.model.adapters"
    return (f"{adapters}.rank={value}", f"{adapters}.alpha={2.0 * int(value)}")


study = Study(
    question="What do a larger batch and more adapter weights give a 7B?",
    base=Recipe(
        (
            Train(
                "train",
                dataclasses.replace(
                    config,
                    data=dataclasses.replace(config.data, path=MBEIR),
                    checkpoint=dataclasses.replace(config.checkpoint, every=100),
                ),
            ),
            Evaluate("evaluate", "train.model", MBEIR),
        ),
        {"mbeir": "data/mbeir"},
    ),
    axes=(
        Axis("batch", batch, (960, 1920, 3840, 7680)),
        Axis("rank", rank, (16, 64, 128)),
    ),
    metrics=(Metric("mean local"), Metric("mean global")),
)
