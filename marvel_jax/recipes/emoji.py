"""The small recipe: a small Qwen2-VL, from scratch, on the emoji corpus."""

import dataclasses

from marvel_jax.data.batch import RowShape
from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training.config import (
    CheckpointConfig,
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)

# Pictures are shown at 56 x 56 pixels: 16 patches, 4 visual tokens.
_SIDE = 56

# Task id -> share of a batch. Text to picture is the hardest: 14 languages meet 3,789 pictures.
# Task 4 (i->i) is only evaluated: a thousand pairs of drawings teach too little in this time.
TASK_WEIGHTS = {0: 7.0, 1: 1.0, 2: 0.6, 3: 1.6, 6: 1.0, 7: 1.0, 8: 0.5}


# A first stage from scratch: what shows a picture on both sides, too, for names alone are hard to
# bring together with pictures, and a stage that fails at it is a worse start than none.
PICTURED_WEIGHTS = {task: weight for task, weight in TASK_WEIGHTS.items() if task != 1}


# What the quickstart's minutes are best spent on: a fourth of the width has many times the steps
# (docs/studies.md, model and data).
WIDTH = 64
_HEAD, _VISION_HEAD = 64, 32  # numbers of a head, at most
_RATE, _AT = 3e-3, 256  # the learning rate of a width


def architecture(width: int = WIDTH) -> Qwen2VLConfig:
    """Qwen2-VL in small, both towers in proportion; `width` is 16, 32 or a multiple of 64.

    Vocabulary and special tokens are taken from the corpus's tokenizer.
    """
    # Wider initial weights than the published 0.02, which is meant for widths in the thousands.
    head, vision_head = min(_HEAD, width), min(_VISION_HEAD, width // 2)
    heads = width // head
    return Qwen2VLConfig(
        vision=VisionConfig(
            depth=2,
            embed_dim=width // 2,
            num_heads=width // 2 // vision_head,
            mlp_ratio=2,
            initializer_range=0.05,
        ),
        text=TextConfig(
            vocab_size=8000,
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            mrope_section=(head // 8, 3 * head // 16, 3 * head // 16),
            initializer_range=0.05,
        ),
        tie_word_embeddings=True,
    )


def learning_rate(width: int) -> float:
    """A wider model learns at a lower rate."""
    return float(_RATE * (_AT / width) ** 0.5)


def train_config(
    corpus: str, *, seed: int = 0, steps: int = 5000, width: int = WIDTH
) -> TrainConfig:
    """The training run of the quickstart, on the corpus folder that `marvel data emoji` wrote."""
    return TrainConfig(
        data=DataConfig(
            path=corpus,
            reader="tfds",
            global_batch=128,
            task_weights=TASK_WEIGHTS,
            row=RowShape(tokens=56, patches=32, items=8),
        ),
        model=ModelConfig(scratch=architecture(width)),
        embedding=EmbeddingSettings(
            min_pixels=_SIDE**2 // 4, max_pixels=_SIDE**2, max_text_tokens=48
        ),
        loss=LossConfig(symmetric=True),
        optimizer=OptimizerConfig(
            learning_rate=learning_rate(width),
            warmup_fraction=0.05,
            b2=0.98,
            temperature_min=0.02,
            temperature_learning_rate=1e-2,
        ),
        checkpoint=CheckpointConfig(every=200),
        steps=steps,
        seed=seed,
    )


def of_texts(config: TrainConfig, *, width: int, steps: int) -> TrainConfig:
    """A training of texts that ask for texts, as the first stage from scratch.

    It is gentle and warm: a high rate makes all vectors alike, and what comes after starts late.
    """
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data, global_batch=128, include=("task1",), task_weights=None
        ),
        optimizer=dataclasses.replace(
            config.optimizer, learning_rate=learning_rate(width) / 10, temperature=0.2
        ),
        steps=steps,
    )


def of_pictures(config: TrainConfig, *, width: int, steps: int) -> TrainConfig:
    """A training of pictures and their names, without instructions, as the second stage."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            global_batch=128,
            include=tuple(f"task{task}" for task in PICTURED_WEIGHTS),
            task_weights=PICTURED_WEIGHTS,
        ),
        embedding=dataclasses.replace(config.embedding, instruction="none"),
        optimizer=dataclasses.replace(
            config.optimizer, learning_rate=learning_rate(width), temperature=0.05
        ),
        steps=steps,
    )
