"""What a training run is: frozen dataclasses, checked when they are made."""

from dataclasses import dataclass, field
from typing import Literal

from marvel_jax.data.batch import RowShape
from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.parallel.mesh import MeshConfig
from marvel_jax.parallel.sharding import ShardingRules
from marvel_jax.settings import EmbeddingSettings


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MarvelError(message)


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: loaded from `source` (a Hugging Face folder or Hub id), or `scratch`."""

    source: str | None = None
    scratch: Qwen2VLConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "full"] = "none"

    def __post_init__(self) -> None:
        _require(
            (self.source is None) != (self.scratch is None),
            "give exactly one of model.source (a folder or Hub id) and model.scratch (an "
            "architecture to initialise).",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to zero.

    `temperature` None starts where a loaded model's was left, else at the published 0.05. It is
    learned as its logarithm (a step of Adam then moves it by a ratio, whatever its size), kept in
    [`temperature_min`, `temperature_max`].
    """

    learning_rate: float = 1e-4
    warmup_fraction: float = 0.03
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    temperature: float | None = None
    temperature_min: float = 0.01
    temperature_max: float = 1.0
    learn_temperature: bool = True
    temperature_learning_rate: float | None = None

    def __post_init__(self) -> None:
        _require(
            0 < self.temperature_min <= self.temperature_max,
            f"optimizer.temperature_min={self.temperature_min} must be positive and at most "
            f"temperature_max={self.temperature_max}.",
        )
        _require(
            self.temperature is None
            or self.temperature_min <= self.temperature <= self.temperature_max,
            f"optimizer.temperature={self.temperature} must lie in [{self.temperature_min}, "
            f"{self.temperature_max}].",
        )
        _require(
            0 <= self.warmup_fraction < 1,
            f"optimizer.warmup_fraction={self.warmup_fraction} is a share of the steps: 0 to 1.",
        )
        for name in ("b1", "b2"):
            value = getattr(self, name)
            _require(0 <= value < 1, f"optimizer.{name}={value} must lie in [0, 1).")
        _require(
            self.weight_decay >= 0,
            f"optimizer.weight_decay={self.weight_decay} must not be negative.",
        )
        rate = self.temperature_learning_rate
        _require(
            rate is None or rate >= 0,
            f"optimizer.temperature_learning_rate={rate} must not be negative.",
        )
        for name in ("learning_rate", "eps", "clip_norm"):
            value = getattr(self, name)
            _require(value > 0, f"optimizer.{name}={value} must be positive.")


@dataclass(frozen=True)
class DataConfig:
    """Where the queries come from and how a global batch is laid out.

    `path` is a corpus folder; `reader` says in which of its forms it is read. `task_weights` maps
    an M-BEIR task id to its share of every batch (None: by size).
    """

    path: str
    reader: Literal["tfds", "mbeir"] = "mbeir"
    split: str = "train"
    global_batch: int = 128
    task_weights: dict[int, float] | None = None
    row: RowShape = field(default_factory=lambda: RowShape(tokens=1024, patches=2048, items=64))
    prefetch: int = 4

    def __post_init__(self) -> None:
        _require(
            self.global_batch > 1,
            f"data.global_batch={self.global_batch}: a contrastive batch needs at least 2 pairs.",
        )
        _require(self.prefetch > 0, f"data.prefetch={self.prefetch} must be at least 1.")
        weights = self.task_weights
        if weights is not None:
            _require(
                bool(weights) and min(weights.values()) >= 0 and sum(weights.values()) > 0,
                f"data.task_weights={weights}: give at least one task a positive weight.",
            )


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    `embedding` holds whatever `model.source` was trained with before: stages may differ in it.
    """

    data: DataConfig
    model: ModelConfig
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sharding: ShardingRules = field(default_factory=ShardingRules)
    steps: int = 1000
    seed: int = 0
    symmetric_loss: bool = False
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        for name in ("steps", "checkpoint_every"):
            value = getattr(self, name)
            _require(value > 0, f"{name}={value} must be positive.")
