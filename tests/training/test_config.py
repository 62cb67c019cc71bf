"""A config that makes no sense is refused when it is made, by the name of its field."""

import dataclasses

import pytest

from marvel_jax.data.batch import RowShape
from marvel_jax.data.sources import SourceConfig
from marvel_jax.errors import MarvelError
from marvel_jax.models.lora import LoraConfig
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training.config import (
    CheckpointConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ParameterGroup,
    TrackingConfig,
    TrainConfig,
)
from marvel_jax.training.objective_config import DistillationConfig, RetentionConfig
from marvel_jax.training.rerank_config import RerankConfig
from tests import tiny


def train_config(**changes: object) -> TrainConfig:
    fields = {"data": DataConfig(path="."), "model": ModelConfig(source="owner/model")}
    return TrainConfig(**{**fields, **changes})  # type: ignore[arg-type]


def distillation(changes: dict | None = None, **data: object) -> TrainConfig:
    fields = {"objective": "distillation", "distillation": DistillationConfig()}
    return train_config(data=DataConfig(**data), **fields, **(changes or {}))  # type: ignore


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
        (lambda: train_config(chunk_rows=0), "chunk_rows=0 must be positive, or None"),
        (lambda: CheckpointConfig(every=0), "checkpoint.every=0 must be at least 1"),
        (lambda: CheckpointConfig(keep_last=0), "checkpoint.keep_last=0 must be at least 1"),
        (lambda: CheckpointConfig(keep_best=-1), "checkpoint.keep_best=-1 must be at least 0"),
        (lambda: TrackingConfig(wandb_project=""), "wandb_project='' is no name"),
        (
            lambda: ModelConfig(source="a/b", adapters=LoraConfig(), frozen="vision/.*"),
            r"frozen='vision/\.\*' beside model.adapters.* Leave model.frozen=None",
        ),
        (lambda: ModelConfig(source="a/b", frozen="vision/("), "model.frozen=.* 'vision/\\.\\*'"),
        (lambda: DataConfig(path=".", positives_per_query=0), "positives_per_query=0 .* least 1"),
        (lambda: DataConfig(path=".", hard_negatives=-1), "hard_negatives=-1 .* 0 for none"),
        (lambda: LossConfig(tile=0), "loss.tile=0 must be positive"),
        (
            lambda: LossConfig(implementation="ring", form="focal"),
            "loss.implementation='ring' cannot do loss.form='focal': use .*'gather'",
        ),
        (
            lambda: LossConfig(symmetric=True, in_batch_negatives=False),
            "loss.symmetric=True needs loss.in_batch_negatives=True",
        ),
        (
            lambda: LossConfig(symmetric=True, form="sigmoid"),
            "loss.symmetric=True beside loss.form='sigmoid'.*leave loss.symmetric=False",
        ),
        (
            lambda: train_config(loss=LossConfig(in_batch_negatives=False)),
            "data.hard_negatives=0 leaves nothing .* set data.hard_negatives=1",
        ),
        (
            lambda: train_config(data=DataConfig(path=".", mined="x")),
            "data.mined with data.hard_negatives=0",
        ),
        (
            lambda: train_config(objective="distillation"),
            "objective='distillation' with distillation=None: give distillation",
        ),
        (
            lambda: train_config(rerank=RerankConfig()),
            "objective='contrastive' with rerank=given: give rerank with objective='rerank'",
        ),
        (lambda: distillation(path="."), "has no data.teacher: name a file of teacher scores"),
        (
            lambda: train_config(data=DataConfig(path=".", teacher="x")),
            "data.teacher with objective='contrastive' would not be used",
        ),
        (
            lambda: distillation(
                mixture=(SourceConfig("a", teacher="x"), SourceConfig("b", "nli"))
            ),
            "nli without a teacher would not be trained on: give .*contrastive_weight",
        ),
        (
            lambda: distillation(path=".", teacher="x", hard_negatives=1),
            "hard_negatives=1 without the contrastive loss",
        ),
        (
            lambda: distillation(
                {"checkpoint": CheckpointConfig(keep_best=1, best_metric="accuracy")},
                path=".",
                teacher="x",
            ),
            "best_metric='accuracy' is a metric of the contrastive loss",
        ),
        (
            lambda: train_config(
                objective="rerank", rerank=RerankConfig(), retention=RetentionConfig("x")
            ),
            "retention with objective='rerank'",
        ),
        (
            lambda: train_config(
                objective="rerank",
                rerank=RerankConfig(),
                data=DataConfig(path=".", mined="x", hard_negatives=2),
            ),
            "data.hard_negatives=2 with objective='rerank' would not be used: set 0, and say in",
        ),
        (
            lambda: train_config(data=DataConfig(path=".", taught_by="t0")),
            "data.taught_by='t0' without data.teacher has nothing to check",
        ),
        (
            lambda: train_config(data=DataConfig(path=".", retrieved_by="m0")),
            "data.retrieved_by='m0' without data.mined and data.teacher has nothing to check",
        ),
        (
            lambda: train_config(embedding=EmbeddingSettings(template="umarvel_released")),
            "makes its marker tokens anew at every load.* Train with template='marvel'",
        ),
        (lambda: DistillationConfig(depth=1), "distillation.depth=1: a list has at least 2"),
        (lambda: DistillationConfig(kl_weight=-1), "kl_weight=-1 must not be negative"),
        (lambda: DistillationConfig(kl_weight=0), "are both 0: nothing would be trained"),
        (lambda: DistillationConfig(teacher_temperature=0), "teacher_temperature=0 must be pos"),
        (
            lambda: DistillationConfig(teacher="p_yes", fused_task_weights={"9:0": 0.5}),
            "fused_task_weights with teacher='p_yes' would not be used",
        ),
        (
            lambda: DistillationConfig(fused_task_weights={"mscoco_task0": 0.5}),
            "'mscoco_task0': 0.5 is no 'data set:task'",
        ),
        (lambda: RetentionConfig("x", weight=-1), "retention.weight=-1 must not be negative"),
        (lambda: RetentionConfig("x", texts=0), "retention.texts=0 must be at least 1"),
        (lambda: RetentionConfig("x", max_tokens=1), "retention.max_tokens=1: give at least 2"),
        (lambda: ParameterGroup("vision/.*"), "sets neither learning_rate nor weight_decay"),
        (lambda: ParameterGroup("(", learning_rate=1.0), r"groups: pattern='\(' is no regular"),
        (lambda: ParameterGroup("a", learning_rate=0.0), "=0.0, which must be positive; .*frozen"),
        (lambda: ParameterGroup("a", weight_decay=-1.0), "weight_decay=-1.0, which must not"),
        (
            lambda: OptimizerConfig(learn_temperature=False, temperature_learning_rate=1.0),
            "temperature_learning_rate=1.0 beside learn_temperature=False",
        ),
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
