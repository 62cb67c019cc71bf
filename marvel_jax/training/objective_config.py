"""What a train step minimises, beside the contrastive loss: distillation and retention."""

import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from marvel_jax.errors import MarvelError

Objective = Literal["contrastive", "distillation", "rerank"]


@dataclass(frozen=True)
class DistillationConfig:
    """The objective "distillation": a reranker's judgement of lists (`data.teacher`).

    The loss is kl_weight * KL(teacher || student) over each query's list + contrastive_weight *
    InfoNCE over the whole batch, whose entries of lists are candidates like the others. A query
    whose source has no teacher takes InfoNCE only, so that a mixture with text alone keeps text
    retrieval alive. kl_weight=0 with `loss.in_batch_negatives` False is the published control: the
    list as negatives of its own query.

    Attributes:
      teacher: "logit_diff" (yes - no), "p_yes" (P(Yes)) or "fused" ((cosine + fused_weight *
        P(Yes)) / 2, the published one): see `losses.distillation.teacher_logits`.
      fused_weight: of P(Yes) in "fused".
      fused_task_weights: the same for some tasks, "data set:task" as mined files name them: the
        published recipe has {"9:0": 0.5, "9:3": 0.1} (MSCOCO). A mixture's parts count alike.
      depth: K, the candidates of a list that are used: the best by the recall's cosine.
      teacher_temperature: None takes the student's own, detached. Log-odds are a hundred times as
        wide as cosines: give "logit_diff" one of its own, e.g. 1.
      kl_weight, contrastive_weight: see above. Without InfoNCE no query brings its positives.

    Source: U-MARVEL (specification 6).
    """

    teacher: Literal["logit_diff", "p_yes", "fused"] = "fused"
    fused_weight: float = 1.0
    fused_task_weights: dict[str, float] | None = None
    depth: int = 50
    teacher_temperature: float | None = None
    kl_weight: float = 1.0
    contrastive_weight: float = 0.0

    def __post_init__(self) -> None:
        _require(self.depth > 1, f"distillation.depth={self.depth}: a list has at least 2.")
        temperature = self.teacher_temperature
        _require(
            temperature is None or temperature > 0,
            f"distillation.teacher_temperature={temperature} must be positive, or None for the "
            "student's.",
        )
        for name in ("fused_weight", "kl_weight", "contrastive_weight"):
            value = getattr(self, name)
            _require(value >= 0, f"distillation.{name}={value} must not be negative.")
        _require(
            self.kl_weight + self.contrastive_weight > 0,
            "distillation.kl_weight and contrastive_weight are both 0: nothing would be trained.",
        )
        weights = self.fused_task_weights or {}
        _require(
            not weights or self.teacher == "fused",
            f"distillation.fused_task_weights with teacher={self.teacher!r} would not be used: "
            "leave it None, or set teacher='fused'.",
        )
        for task, weight in weights.items():
            _require(
                re.fullmatch(r"\d+:\d+", task) is not None and weight >= 0,
                f"distillation.fused_task_weights: {task!r}: {weight} is no 'data set:task' with "
                "a weight of 0 or more, such as '9:0': 0.5.",
            )


@dataclass(frozen=True)
class RetentionConfig:
    """A next-token loss beside the objective's own, so that the model does not forget to speak.

    Each step reads a few texts of a JSON lines file by a causal pass of its own and adds `weight`
    times the mean cross-entropy of the tokens that are supervised: of {"messages": [{"role",
    "content"}, ...]} the assistant's replies, of {"text"} everything.

    Attributes:
      path: the file.
      weight: 0 is the same as no retention.
      texts: of the global batch; each has a row of its own.
      max_tokens: the length of these rows; what is longer is cut at its end.
    """

    path: str
    weight: float = 0.1
    texts: int = 16
    max_tokens: int = 512

    def __post_init__(self) -> None:
        _require(self.weight >= 0, f"retention.weight={self.weight} must not be negative.")
        _require(self.texts > 0, f"retention.texts={self.texts} must be at least 1.")
        _require(self.max_tokens > 1, f"retention.max_tokens={self.max_tokens}: give at least 2.")


class Run(Protocol):
    """What is asked of a `training.config.TrainConfig`, which stands on this file."""

    @property
    def objective(self) -> Objective: ...
    @property
    def distillation(self) -> DistillationConfig | None: ...
    @property
    def retention(self) -> RetentionConfig | None: ...
    @property
    def data(self) -> Any: ...
    @property
    def loss(self) -> Any: ...
    @property
    def checkpoint(self) -> Any: ...


def retains(config: Run) -> bool:
    """Whether a step has the next-token loss."""
    return config.retention is not None and config.retention.weight > 0


def contrasts(config: Run) -> bool:
    """Whether a step has the contrastive loss."""
    distillation = config.distillation
    return distillation is None or distillation.contrastive_weight > 0


def labels(config: Run) -> int:
    """P: how many of its positives a query brings."""
    return int(config.data.positives_per_query) if contrasts(config) else 0


def listed(config: Run) -> int:
    """K: how many candidates a query's list has; 0 without distillation."""
    return 0 if config.distillation is None else config.distillation.depth


def brought(config: Run) -> int:
    """Places for candidates that each query has in a batch."""
    return labels(config) + int(config.data.hard_negatives) + listed(config)


def check_objective(config: Run) -> None:
    """Holds the parts of a config that belong to objectives against each other.

    Raises:
      MarvelError: a part is missing or would not be used, or they contradict each other.
    """
    objective = config.objective
    for name in ("distillation", "rerank"):
        given = getattr(config, name) is not None
        _require(
            given == (objective == name),
            f"objective={objective!r} with {name}={'given' if given else None}: give {name} with "
            f"objective={name!r}, and with it alone.",
        )
    _require(
        config.retention is None or objective != "rerank",
        "retention with objective='rerank', whose loss is a next-token loss itself: leave it None.",
    )
    _require(
        config.data.hard_negatives == 0 or objective != "rerank",
        f"data.hard_negatives={config.data.hard_negatives} with objective='rerank' would not be "
        "used: set 0, and say in rerank.negatives how many each query has.",
    )
    _require(
        config.data.hard_negatives > 0
        or objective == "rerank"
        or not any(part.mined for part in config.data.sources),
        "data.mined with data.hard_negatives=0 would not be used: set data.hard_negatives=5, "
        "or leave mined None.",
    )
    taught = [part.label for part in config.data.sources if part.teachers]
    _require(
        not taught or objective == "distillation",
        f"data.teacher with objective={objective!r} would not be used: set "
        "objective='distillation', or leave it None.",
    )
    _require(
        config.data.taught_by is None or bool(taught),
        f"data.taught_by={config.data.taught_by!r} without data.teacher has nothing to check: "
        "name a file of teacher scores, or leave it None.",
    )
    _require(
        config.data.retrieved_by is None
        or any(part.mined or part.teachers for part in config.data.sources),
        f"data.retrieved_by={config.data.retrieved_by!r} without data.mined and data.teacher has "
        "nothing to check: name a file, or leave it None.",
    )
    _require(
        config.loss.in_batch_negatives or config.data.hard_negatives + listed(config) > 0,
        "loss.in_batch_negatives=False with data.hard_negatives=0 leaves nothing to tell a "
        "positive from: set data.hard_negatives=1 or more.",
    )
    metric = config.checkpoint.best_metric
    _require(
        config.checkpoint.keep_best == 0 or metric == "loss" or contrasts(config),
        f"checkpoint.best_metric={metric!r} is a metric of the contrastive loss, which this run "
        "does not have: set best_metric='loss'.",
    )
    if config.distillation is not None:
        _check_distillation(config, taught)


def _check_distillation(config: Run, taught: list[str]) -> None:
    _require(
        bool(taught),
        "objective='distillation' has no data.teacher: name a file of teacher scores, which "
        "reranking mined lists writes.",
    )
    untaught = [part.label for part in config.data.sources if not part.teachers]
    _require(
        not untaught or contrasts(config),
        f"data.mixture: {', '.join(untaught)} without a teacher would not be trained on: give "
        "distillation.contrastive_weight, or name a teacher.",
    )
    _require(
        config.data.hard_negatives == 0 or contrasts(config),
        f"data.hard_negatives={config.data.hard_negatives} without the contrastive loss would not "
        "be used: set 0, or give distillation.contrastive_weight.",
    )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MarvelError(message)
