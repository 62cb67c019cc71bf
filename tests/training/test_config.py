"""A config that makes no sense is refused when it is made, by the name of its field."""

import dataclasses

import pytest

from marvel_jax.data.batch import RowShape
from marvel_jax.errors import MarvelError
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from tests import tiny


def train_config(**changes: object) -> TrainConfig:
    fields = {"data": DataConfig(path="."), "model": ModelConfig(source="owner/model")}
    return TrainConfig(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelConfig(), "exactly one of model.source .* and model.scratch"),
        (
            lambda: ModelConfig(source="a/b", scratch=tiny.architecture()),
            "exactly one of model.source .* and model.scratch",
        ),
        (lambda: OptimizerConfig(temperature=0.005), r"temperature=0.005 must lie in \[0.01, 1.0"),
        (lambda: OptimizerConfig(temperature=2), "temperature=2 must lie in"),
        (lambda: OptimizerConfig(temperature_min=0), "temperature_min=0 must be positive"),
        (lambda: OptimizerConfig(temperature_min=2), "temperature_min=2 .* at most .*max=1.0"),
        (lambda: OptimizerConfig(warmup_fraction=1), "warmup_fraction=1 is a share"),
        (lambda: OptimizerConfig(warmup_fraction=-0.1), "warmup_fraction=-0.1 is a share"),
        (lambda: OptimizerConfig(learning_rate=0), "optimizer.learning_rate=0 must be positive"),
        (lambda: OptimizerConfig(eps=0), "optimizer.eps=0 must be positive"),
        (lambda: OptimizerConfig(clip_norm=-1), "optimizer.clip_norm=-1 must be positive"),
        (lambda: DataConfig(path=".", global_batch=1), "global_batch=1: .* at least 2 pairs"),
        (lambda: DataConfig(path=".", task_weights={}), "task_weights={}: give at least one task"),
        (lambda: DataConfig(path=".", task_weights={0: 0.0}), "give at least one task a positive"),
        (lambda: DataConfig(path=".", task_weights={0: 2.0, 1: -1.0}), "task_weights={0: 2.0"),
        (lambda: train_config(steps=0), "steps=0 must be positive"),
        (lambda: train_config(checkpoint_every=-1), "checkpoint_every=-1 must be positive"),
        (lambda: EmbeddingSettings(template="qwen"), "template='qwen': choose one of marvel"),
        (lambda: EmbeddingSettings(pooling="max"), "pooling='max': choose one of mean, last"),
        (lambda: EmbeddingSettings(min_pixels=9, max_pixels=4), "min_pixels=9 .* max_pixels=4"),
        (lambda: EmbeddingSettings(max_text_tokens=0), "max_text_tokens=0 must be positive"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(MarvelError, match=message):
        make()


def test_a_config_cannot_be_changed_in_place():
    config = train_config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.steps = 3  # type: ignore[misc]
    row = RowShape(tokens=64, patches=64, items=4)
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, row=row))
    assert changed.data.row.tokens == 64 and config.data.row.tokens != 64
