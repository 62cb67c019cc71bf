"""What a training run is: frozen dataclasses, checked when they are made."""

import re
from dataclasses import dataclass, field
from typing import Literal

from marvel_jax.data.batch import RowShape
from marvel_jax.data.plan_groups import Batches
from marvel_jax.data.sources import Reader, SourceConfig
from marvel_jax.errors import MarvelError
from marvel_jax.losses.matryoshka import check_widths
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.lora import LoraConfig
from marvel_jax.parallel.mesh import MeshConfig
from marvel_jax.parallel.sharding import ShardingRules
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training.loss_config import LossConfig
from marvel_jax.training.objective_config import (
    DistillationConfig,
    Objective,
    RetentionConfig,
    check_objective,
)
from marvel_jax.training.rerank_config import RerankConfig


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MarvelError(message)


def _require_pattern(pattern: str, name: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise MarvelError(
            f"{name}={pattern!r} is no regular expression ({error}): write one such as 'vision/.*'."
        ) from error


@dataclass(frozen=True)
class ModelConfig:
    """The backbone: loaded from `source` (a Hugging Face folder or Hub id), or `scratch`.

    What is trained: with `adapters` they alone, over a frozen base; else everything but the
    parameters whose path (as in models.names) `frozen` matches in full, e.g. "vision/.*". What is
    frozen is stored in `dtype`, the type of the matmuls; what is trained is float32. `remat` says
    what the backward pass keeps of each block and what it computes again. `kernel` computes the
    attention: "pallas" is the Pallas kernel of the platform, "cudnn" wants rows of one item, and
    "auto" takes what suits the platform (`models.kernels.choice`).
    """

    source: str | None = None
    scratch: Qwen2VLConfig | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    remat: Literal["none", "dots", "attention", "full"] = "none"
    kernel: Literal["auto", "xla", "pallas", "cudnn"] = "auto"
    adapters: LoraConfig | None = None
    frozen: str | None = None

    def __post_init__(self) -> None:
        _require(
            (self.source is None) != (self.scratch is None),
            "give exactly one of model.source (a folder or Hub id) and model.scratch (an "
            "architecture to initialise).",
        )
        _require(
            self.adapters is None or self.frozen is None,
            f"model.frozen={self.frozen!r} beside model.adapters: adapters freeze the whole base "
            "already. Leave model.frozen=None.",
        )
        if self.frozen is not None:
            _require_pattern(self.frozen, "model.frozen")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters with a peak rate or a weight decay of their own; None leaves the common one.

    `pattern` is matched in full against paths: of a weight as in models.names
    ("vision/blocks/qkv/kernel"), of an adapter with "adapters/" before
    ("adapters/language/blocks/query/a"). Decay applies to those of them that decay at all.
    """

    pattern: str
    learning_rate: float | None = None
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        _require_pattern(self.pattern, "optimizer.groups: pattern")
        rate, decay = self.learning_rate, self.weight_decay
        _require(
            rate is not None or decay is not None,
            f"optimizer.groups: {self.pattern!r} sets neither learning_rate nor weight_decay.",
        )
        _require(
            rate is None or rate > 0,
            f"optimizer.groups: {self.pattern!r} has learning_rate={rate}, which must be positive; "
            "to leave parameters as they are, name them in model.frozen.",
        )
        _require(
            decay is None or decay >= 0,
            f"optimizer.groups: {self.pattern!r} has weight_decay={decay}, which must not be "
            "negative.",
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with linear warm-up and a cosine to zero.

    Each parameter belongs to the first of `groups` that matches it, or to none. `temperature` None
    starts where a loaded model's was left, else at the published 0.05. It is learned as its
    logarithm (a step of Adam then moves it by a ratio, whatever its size), kept in
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
    groups: tuple[ParameterGroup, ...] = ()

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
        _require(
            rate is None or self.learn_temperature,
            f"optimizer.temperature_learning_rate={rate} beside learn_temperature=False: leave it "
            "None.",
        )
        for name in ("learning_rate", "eps", "clip_norm"):
            value = getattr(self, name)
            _require(value > 0, f"optimizer.{name}={value} must be positive.")


@dataclass(frozen=True)
class DataConfig:
    """Where the queries come from and how a global batch is laid out.

    One source (`path`, `reader`, `split`, `images`, `include`, `exclude`, `mined`, `teacher`,
    `teacher_shares`: see `data.sources.SourceConfig`), or a `mixture` of several with shares.
    `tokenizer` is the folder of the tokenizer.json for a model from scratch (None:
    `path`/tokenizer).

    `task_weights` maps an M-BEIR task id to its share of every batch (None: by size). `batches`
    says how tasks meet: "mixed" in every batch, "homogeneous" one task of one data set a batch,
    "interleaved" runs of `sub_batch` queries of one such task. `duplicates` "avoid" keeps copies of
    queries and of their answers out of a batch where it can; with "mask" the loss masks them.
    Each query brings up to `positives_per_query` of its positives and `hard_negatives` of its
    negatives. `retrieved_by` is the `model_hash` and `taught_by` the `teacher_hash` that the
    manifests of mined and teacher files must have (None: any).
    """

    path: str | None = None
    reader: Reader = "mbeir"
    split: str = "train"
    images: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    mined: str | None = None
    teacher: str | tuple[str, ...] | None = None
    teacher_shares: tuple[float, ...] = ()
    retrieved_by: str | None = None
    taught_by: str | None = None
    mixture: tuple[SourceConfig, ...] = ()
    tokenizer: str | None = None
    global_batch: int = 128
    task_weights: dict[int, float] | None = None
    batches: Batches = "mixed"
    sub_batch: int | None = None
    duplicates: Literal["mask", "avoid"] = "mask"
    row: RowShape = field(default_factory=lambda: RowShape(tokens=1536, patches=3712, items=64))
    positives_per_query: int = 1
    hard_negatives: int = 0
    prefetch: int = 4

    def __post_init__(self) -> None:
        _require(
            (self.path is None) == bool(self.mixture),
            "give exactly one of data.path (a source) and data.mixture (several).",
        )
        if self.mixture:
            labels = [part.label for part in self.mixture]
            _require(
                len(set(labels)) == len(labels),
                f"data.mixture has parts of the same name ({', '.join(labels)}): give each its "
                "own name=....",
            )
            _require(
                self.task_weights is None
                and not (self.images or self.include or self.exclude or self.mined or self.teacher),
                "beside data.mixture, give task_weights, images, include, exclude, mined and "
                "teacher to its parts.",
            )
        else:
            _ = self.sources
        _require(
            (self.batches == "interleaved") == (self.sub_batch is not None),
            f"data.batches={self.batches!r} with data.sub_batch={self.sub_batch}: sub_batch goes "
            "with 'interleaved', and with it alone.",
        )
        _require(
            self.sub_batch is None
            or (self.sub_batch > 0 and self.global_batch % self.sub_batch == 0),
            f"data.sub_batch={self.sub_batch} does not divide data.global_batch="
            f"{self.global_batch}.",
        )
        _require(
            self.global_batch > 1,
            f"data.global_batch={self.global_batch}: a contrastive batch needs at least 2 pairs.",
        )
        _require(self.prefetch > 0, f"data.prefetch={self.prefetch} must be at least 1.")
        _require(
            self.positives_per_query > 0,
            f"data.positives_per_query={self.positives_per_query} must be at least 1.",
        )
        _require(
            self.hard_negatives >= 0,
            f"data.hard_negatives={self.hard_negatives} must not be negative: 0 for none.",
        )
        weights = self.task_weights
        if weights is not None:
            _require(
                bool(weights) and min(weights.values()) >= 0 and sum(weights.values()) > 0,
                f"data.task_weights={weights}: give at least one task a positive weight.",
            )

    @property
    def sources(self) -> tuple[SourceConfig, ...]:
        """What is read: the parts of the mixture, or the one source."""
        if self.path is None:
            return self.mixture
        return (
            SourceConfig(
                path=self.path,
                reader=self.reader,
                split=self.split,
                images=self.images,
                include=self.include,
                exclude=self.exclude,
                mined=self.mined,
                teacher=self.teacher,
                teacher_shares=self.teacher_shares,
            ),
        )


@dataclass(frozen=True)
class CheckpointConfig:
    """A checkpoint `every` so many steps: the last few stay, and the best few by a metric."""

    every: int = 200
    keep_last: int = 2
    keep_best: int = 0
    best_metric: Literal["loss", "accuracy", "positive_similarity"] = "loss"

    def __post_init__(self) -> None:
        for name, least in (("every", 1), ("keep_last", 1), ("keep_best", 0)):
            value = getattr(self, name)
            _require(value >= least, f"checkpoint.{name}={value} must be at least {least}.")


@dataclass(frozen=True)
class TrackingConfig:
    """Where metrics go besides metrics.jsonl: TensorBoard, a Weights & Biases project."""

    tensorboard: bool = False
    wandb_project: str | None = None

    def __post_init__(self) -> None:
        _require(
            self.wandb_project != "",
            "tracking.wandb_project='' is no name: give the project's, or None.",
        )


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    `embedding` holds whatever `model.source` was trained with before: stages may differ in it.
    `chunk_rows` is how many of its rows a device encodes at a time (GradCache: the loss still
    spans the whole global batch, and memory does not grow with it); None encodes all at once.
    `objective` is what is trained, `distillation` and `rerank` say how; `retention` adds a
    next-token loss to it.
    """

    data: DataConfig
    model: ModelConfig
    embedding: EmbeddingSettings = field(default_factory=EmbeddingSettings)
    objective: Objective = "contrastive"
    distillation: DistillationConfig | None = None
    rerank: RerankConfig | None = None
    retention: RetentionConfig | None = None
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    sharding: ShardingRules = field(default_factory=ShardingRules)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    steps: int = 1000
    seed: int = 0
    chunk_rows: int | None = None

    def __post_init__(self) -> None:
        _require(self.steps > 0, f"steps={self.steps} must be positive.")
        _require(
            self.chunk_rows is None or self.chunk_rows > 0,
            f"chunk_rows={self.chunk_rows} must be positive, or None for one forward pass.",
        )
        if self.model.scratch is not None:  # what is loaded, the step checks
            check_widths(self.loss.matryoshka, whole=self.model.scratch.text.hidden_size)
        _require(
            self.embedding.template != "umarvel_released",
            "embedding.template='umarvel_released' is for weights that were trained with it: it "
            "makes its marker tokens anew at every load, so training them would be lost. Train "
            "with template='marvel'.",
        )
        check_objective(self)
