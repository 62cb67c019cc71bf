"""What the shipped studies start from: the quickstart's training of a wider model as a recipe's
stage, and in little of the size "tiny", to see every part of a study work in seconds.
"""

import dataclasses

from marvel_jax.data.batch import RowShape
from marvel_jax.recipes import emoji
from marvel_jax.recipes.sizes import SIZES
from marvel_jax.recipes.stages import Emoji
from marvel_jax.studies.study import Size
from marvel_jax.training.config import CheckpointConfig, ModelConfig, TrainConfig
from marvel_jax.training.flops import Work, step_flops

CORPUS = "corpus.mbeir"
WIDTH = 256  # wider than the quickstart's: there are dimensions to leave out

_STEP = Work(tokens=3677, token_pairs=59_600, patches=2137, patch_pairs=29_800)
"""A step of the quickstart's 128 pairs, the mean of 1,400."""

_TINY_EMOJI = 60  # of fewer some tasks have a single query


def corpus(size: Size) -> Emoji:
    """The stage "corpus"."""
    return Emoji("corpus", limit=None if size == "full" else _TINY_EMOJI)


def steps_for(flops: float, config: TrainConfig) -> int:
    """How many steps of the quickstart's batch this model trains with so many operations."""
    assert config.model.scratch is not None
    pairs = config.data.global_batch
    one = step_flops(config.model.scratch, _STEP, queries=pairs, candidates=pairs)
    return max(1, round(flops / one))


def training(size: Size, *, steps: int) -> TrainConfig:
    """The quickstart's training on that corpus; tiny, of two steps and thousands of weights."""
    config = emoji.train_config(CORPUS, steps=steps, width=WIDTH)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, reader="mbeir"))
    if size == "full":
        return config
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, global_batch=16, row=RowShape(tokens=160, patches=64, items=16)
        ),
        model=ModelConfig(scratch=SIZES["tiny"].architecture),
        checkpoint=CheckpointConfig(every=1),
        steps=2,
    )
