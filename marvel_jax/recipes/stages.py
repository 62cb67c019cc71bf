"""The kinds of stages that a recipe is made of: what each reads, how it does its work, what it
leaves.

A stage's inputs are the fields named in `INPUTS`, also deep in its `TrainConfig`: "mine.negatives"
is an output of an earlier stage, "data.mbeir" one of the recipe's own `data`, anything else a path
or a Hub id.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from marvel_jax.data.mbeir_synthetic import CAPTIONS_FILE, NLI_FILE
from marvel_jax.data.rerank_prompts import PROMPTS
from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.recipes.stage_inputs import CACHES as CACHES
from marvel_jax.recipes.stage_inputs import INPUTS as INPUTS
from marvel_jax.recipes.stage_inputs import inputs as inputs
from marvel_jax.recipes.stage_inputs import with_inputs as with_inputs
from marvel_jax.recipes.strategies import strategies_of
from marvel_jax.retrieval.store_types import StoreType, check_type
from marvel_jax.training.config import TrainConfig

Pool = Literal["local", "global"]


@dataclass(frozen=True)
class Stage:
    """One stage under its name; `outputs` maps names to paths within its folder.

    `pool_vectors` says where among its `vectors` those of the pool lie, if it has any: stages that
    keep them alike can share them.

    Raises:
      MarvelError: fields that cannot be, or not together, so that a recipe is refused before its
        first stage and not at this one's turn.
    """

    name: str
    outputs: ClassVar[Mapping[str, str]] = {}
    pool_vectors: ClassVar[str | None] = None

    def _require(self, condition: bool, message: str) -> None:
        if not condition:
            raise MarvelError(f"{self.name}: {message}")


@dataclass(frozen=True)
class Emoji(Stage):
    """Builds the emoji corpus; `limit` keeps about so many emoji."""

    seed: int = 0
    limit: int | None = None
    outputs: ClassVar[Mapping[str, str]] = {"mbeir": "corpus"}


@dataclass(frozen=True)
class Synthetic(Stage):
    """Makes a synthetic M-BEIR with sentence triplets and captions beside it."""

    size: str = "tiny"
    seed: int = 0
    outputs: ClassVar[Mapping[str, str]] = {
        "mbeir": "corpus",
        "nli": f"corpus/{NLI_FILE}",
        "captions": f"corpus/{CAPTIONS_FILE}",
    }


@dataclass(frozen=True)
class Base(Stage):
    """Draws a model's weights: where a recipe's chain starts if nothing pretrained is given.

    `data` is a corpus whose tokenizer the model takes.
    """

    data: str
    architecture: Qwen2VLConfig
    seed: int = 0
    max_pixels: int = 56 * 56
    outputs: ClassVar[Mapping[str, str]] = {"model": "model"}


@dataclass(frozen=True)
class Deepen(Stage):
    """A model with further language layers on top, which begin as the identity.

    Where a model of few layers is to compare what it has just read: what is compared must first be
    understood.
    """

    model: str
    layers: int = 2
    seed: int = 0
    outputs: ClassVar[Mapping[str, str]] = {"model": "model"}

    def __post_init__(self) -> None:
        self._require(self.layers > 0, f"layers={self.layers}: give 1 or more.")


@dataclass(frozen=True)
class Subset(Stage):
    """A part of an M-BEIR folder's queries in a folder of its own; pools and pictures stay whole.

    Of each set's queries, shuffled by `seed`, those between the shares `first` and `last`, at most
    `most` of them. `include` and `exclude` choose sets as `SourceConfig` does. With the candidates
    "own" the split's union pool keeps only those of the queries' data sets.
    """

    data: str
    split: str = "train"
    first: float = 0.0
    last: float = 1.0
    most: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    candidates: Literal["all", "own"] = "all"
    seed: int = 42
    outputs: ClassVar[Mapping[str, str]] = {"mbeir": "corpus"}

    def __post_init__(self) -> None:
        self._require(
            0 <= self.first < self.last <= 1,
            f"first={self.first}, last={self.last}: give 0 <= first < last <= 1.",
        )
        self._require(
            self.most is None or self.most > 0, f"most={self.most}: give 1 or more, or None."
        )
        self._require(
            self.candidates in ("all", "own"), f"candidates={self.candidates!r}: give all or own."
        )


@dataclass(frozen=True)
class Train(Stage):
    """Trains, and writes the result, adapters merged, as a model folder.

    What is trained, an embedder by contrast or by distillation or a reranker, says the config.
    """

    config: TrainConfig
    outputs: ClassVar[Mapping[str, str]] = {"model": "model"}


@dataclass(frozen=True)
class Mine(Stage):
    """Mines hard negatives, or the lists that a reranker is to score, for a split's queries.

    `settings` change the preset as `marvel mine --set` does. `vectors` are those of an earlier
    stage with the same model and pool.
    """

    model: str
    data: str
    split: str = "train"
    pool: Pool = "global"
    preset: str = "filtered"
    settings: tuple[str, ...] = ()
    teacher: str | None = None
    chosen_only: bool = False
    scann: bool = False
    seed: int = 0
    vectors: str | None = None
    outputs: ClassVar[Mapping[str, str]] = {
        "negatives": "negatives.jsonl",
        "manifest": "negatives.manifest.json",
        "vectors": "vectors",
    }
    pool_vectors: ClassVar[str | None] = "pool"

    def __post_init__(self) -> None:
        try:
            strategies = strategies_of(self.preset, self.settings)
        except MarvelError as error:
            raise MarvelError(f"{self.name}: preset and settings: {error}") from error
        self._require(
            self.pool in get_args(Pool), f"pool={self.pool!r}: choose one of local, global."
        )
        self._require(
            not self.scann or self.pool == "global",
            "scann=True searches the whole pool: leave it False with pool='local'.",
        )
        self._require(
            self.teacher is not None or not strategies.asks_teacher,
            "settings: teacher_above needs a reranker's scores: give teacher='STAGE.scores'.",
        )


@dataclass(frozen=True)
class Recall(Stage):
    """The best `depth` candidates of each query of a test split, in its own pool and in all.

    `vectors` are those of an earlier evaluation of the same model on the same pool.
    """

    model: str
    data: str
    split: str = "test"
    depth: int = 50
    seed: int = 0
    vectors: str | None = None
    outputs: ClassVar[Mapping[str, str]] = {
        "local": "local.jsonl",
        "local-manifest": "local.manifest.json",
        "global": "global.jsonl",
        "global-manifest": "global.manifest.json",
        "vectors": "vectors",
    }
    pool_vectors: ClassVar[str | None] = "store"

    def __post_init__(self) -> None:
        self._require(self.depth > 0, f"depth={self.depth}: give 1 or more.")


@dataclass(frozen=True)
class Score(Stage):
    """A reranker's logits for the first `top` of each list of a file of `Mine` or `Recall`.

    `model` is a reranker, or with `prompt` any instruct model.
    """

    model: str
    lists: str
    data: str
    split: str = "train"
    top: int = 50
    prompt: str | None = None
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_tokens: int = 8192
    seed: int = 0
    outputs: ClassVar[Mapping[str, str]] = {
        "scores": "scores.jsonl",
        "manifest": "scores.manifest.json",
    }

    def __post_init__(self) -> None:
        for name in ("top", "batch_tokens"):
            value = getattr(self, name)
            self._require(value > 0, f"{name}={value}: give 1 or more.")
        self._require(
            self.prompt is None or self.prompt in PROMPTS,
            f"prompt={self.prompt!r}: choose one of {', '.join(PROMPTS)}, or None for the model's.",
        )


@dataclass(frozen=True)
class Evaluate(Stage):
    """Every test set against its own pool and against all, by the M-BEIR protocol."""

    model: str
    data: str
    scann: bool = False
    seed: int = 0
    outputs: ClassVar[Mapping[str, str]] = {"scores": "scores.json", "vectors": "vectors"}
    pool_vectors: ClassVar[str | None] = "store"


@dataclass(frozen=True)
class Search(Stage):
    """Searches an evaluation's vectors once more, in the pool of everything: kept with fewer bytes
    (`dtype`, the first `dimension` numbers), with `scann`, or among fewer candidates.

    `leaves` of the index are looked at (None: as its rule says). With `pool` each query is asked of
    so many candidates drawn by `seed` and of its right answers; larger pools hold the smaller ones.
    `scores` and `vectors` are those of an `Evaluate`.
    """

    scores: str
    vectors: str
    dtype: StoreType = "float32"
    dimension: int | None = None
    scann: bool = False
    leaves: int | None = None
    pool: int | None = None
    seed: int = 0
    outputs: ClassVar[Mapping[str, str]] = {"scores": "scores.json"}
    pool_vectors: ClassVar[str | None] = "store"

    def __post_init__(self) -> None:
        check_type(self.dtype)
        for name in ("dimension", "leaves", "pool"):
            value = getattr(self, name)
            self._require(value is None or value > 0, f"{name}={value}: give 1 or more, or None.")
        self._require(
            self.leaves is None or self.scann, f"leaves={self.leaves} are ScaNN's: give scann=True."
        )
        self._require(
            not (self.scann and self.dtype == "binary"),
            "scann=True with dtype='binary': a vector of signs is its own code; search it exactly.",
        )
        self._require(
            not (self.scann and self.pool),
            f"scann=True with pool={self.pool}: an index holds the whole pool; give one of them.",
        )


@dataclass(frozen=True)
class Judged:
    """Scores of a split's lists, and the folder that the split's queries are in."""

    scores: str
    data: str
    split: str = "test"


@dataclass(frozen=True)
class Fuse(Stage):
    """Fits the weight of a reranker on validation queries and judges it on others, pool by pool.

    `validation` and `test` name the scored lists of "local" and "global". With `sure` a weight is
    used only where its gain on validation is clear of 0.
    """

    validation: dict[str, Judged]
    test: dict[str, Judged]
    form: Literal["add", "alpha"] = "add"
    scope: Literal["task", "global"] = "task"
    sure: bool = False
    seed: int = 0
    outputs: ClassVar[Mapping[str, str]] = {"scores": "fusion.json"}

    def __post_init__(self) -> None:
        told = [", ".join(pools) or "none" for pools in (self.validation, self.test)]
        self._require(
            bool(self.test) and self.validation.keys() == self.test.keys() <= {*get_args(Pool)},
            f"validation has the pools {told[0]}, test {told[1]}: give both the same, local, "
            "global or both.",
        )


@dataclass(frozen=True)
class Column:
    """What a column of a table shows: scores of an `Evaluate`, or of a `Fuse`."""

    label: str
    scores: str


@dataclass(frozen=True)
class Report(Stage):
    """Scores beside one another: by task and pool with 95% intervals.

    With `averages` a terminal gets the means over sets alone, a column a line.
    """

    columns: tuple[Column, ...]
    title: str = ""
    averages: bool = False
    outputs: ClassVar[Mapping[str, str]] = {"table": "table.md", "scores": "table.json"}

    def __post_init__(self) -> None:
        labels = [one.label for one in self.columns]
        self._require(
            bool(labels) and len({*labels}) == len(labels),
            f"columns={labels}: give one or more, each a label of its own.",
        )


KINDS: tuple[type[Stage], ...] = (
    Emoji,
    Synthetic,
    Base,
    Deepen,
    Subset,
    Train,
    Mine,
    Recall,
    Score,
    Evaluate,
    Search,
    Fuse,
    Report,
)


def known_outputs() -> Iterator[str]:
    """The names that outputs of stages have."""
    for kind in KINDS:
        yield from kind.outputs
