"""A recipe at another size: the same stages on other data, with a smaller model and fewer steps.

"tiny" is a made-up M-BEIR and a model of thousands of parameters, to see every stage work.
"small" is the emoji corpus and the model of the quickstart: figures that mean something in minutes
a stage.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from marvel_jax.data.batch import RowShape
from marvel_jax.data.mbeir_sets import SETS
from marvel_jax.data.sources import SourceConfig
from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig
from marvel_jax.parallel.mesh import MeshConfig
from marvel_jax.parallel.sharding import ShardingRules
from marvel_jax.recipes import emoji
from marvel_jax.recipes.recipe import DATA, Recipe
from marvel_jax.recipes.split_tests import with_split_tests
from marvel_jax.recipes.stages import (
    Base,
    Emoji,
    Evaluate,
    Mine,
    Recall,
    Score,
    Stage,
    Subset,
    Synthetic,
    Train,
    with_inputs,
)
from marvel_jax.training.config import CheckpointConfig, DataConfig, TrainConfig

CORPUS, BASE = "stand-in-corpus", "stand-in-base"
_SMALL = 256  # numbers of a vector, of --size small
"""The stages that take the place of a recipe's data."""

_Config = TypeVar("_Config", DataConfig, SourceConfig)

# U-MARVEL's instruction stage, by which the others are scaled.
_FULL_BATCH, _FULL_RATE = 3840, 4e-4


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
      corpus: the stage that makes the data.
      architecture: of the model to start from.
      batch: queries of a batch, where the published recipe has 3,840; other batches in proportion
        with `scaled`, at least `least`.
      rate: learning rate in the place of 4e-4, others in proportion; None leaves them.
      steps: of a first round of contrast, of a round that goes on from one (as with hard
        negatives), of distillation, of a reranker, of texts or captions alone (on the emoji corpus
        `emoji.of_texts` and `emoji.of_pictures` have their own).
      row, pair_row: rows of embedders and of rerankers.
      lists: candidates of a list that are scored and distilled.
      queries: most queries of a subset, by set.
    """

    corpus: Stage
    architecture: Qwen2VLConfig
    batch: int
    least: int
    scaled: bool
    rate: float | None
    steps: Mapping[str, int]
    row: RowShape
    pair_row: RowShape
    side: int
    text_tokens: int
    hard_negatives: int
    lists: int
    queries: int
    checkpoint_every: int
    mining: tuple[str, ...] = ()


SIZES: dict[str, Size] = {
    "tiny": Size(
        corpus=Synthetic(CORPUS, size="tiny"),
        architecture=Qwen2VLConfig(
            vision=VisionConfig(depth=1, embed_dim=16, num_heads=2),
            text=TextConfig(
                vocab_size=300,
                hidden_size=32,
                intermediate_size=48,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                mrope_section=(2, 1, 1),
            ),
            tie_word_embeddings=True,
        ),
        batch=16,
        least=16,
        scaled=False,
        rate=None,
        steps=dict.fromkeys(("contrast", "hard", "distillation", "rerank", "pairs"), 2),
        row=RowShape(tokens=160, patches=64, items=16),
        pair_row=RowShape(tokens=320, patches=64, items=4),
        side=56,
        text_tokens=48,
        hard_negatives=2,
        lists=10,
        queries=4,
        checkpoint_every=1,
        # Vectors of a model that has hardly learned are all alike.
        mining=("threshold=None", "relative=None", "margin=None", "k=2"),
    ),
    "small": Size(
        corpus=Emoji(CORPUS),
        architecture=emoji.architecture(_SMALL),
        batch=256,
        least=32,
        scaled=True,
        rate=3e-3,
        steps={"contrast": 700, "hard": 300, "distillation": 200, "rerank": 500, "pairs": 200},
        # With a prompt before the vector, as in an ablation, the longest query has 57 tokens.
        row=RowShape(tokens=64, patches=32, items=8),
        pair_row=RowShape(tokens=192, patches=64, items=4),
        side=56,
        text_tokens=48,
        hard_negatives=3,
        lists=20,
        queries=200,
        checkpoint_every=200,
    ),
}


def shrink(recipe: Recipe, size: Size) -> Recipe:
    """The recipe at a size; its data are made by a stage that stands before the others.

    A recipe that makes its own data has the size "small" as it is.

    Raises:
      MarvelError: it reads data that nothing can stand in for.
    """
    if size.scaled and not recipe.data:
        return recipe
    before: list[Stage] = []
    data: dict[str, str] = {}
    if recipe.data:
        before = [
            size.corpus,
            Base(BASE, f"{CORPUS}.mbeir", size.architecture, max_pixels=size.side**2),
        ]
        made = {name: f"{CORPUS}.{name}" for name in size.corpus.outputs}
        # Where there are no pairs their task of the corpus stands in: see `_source`.
        made = {"nli": f"{CORPUS}.mbeir", "captions": f"{CORPUS}.mbeir", **made}
        made |= {"base": f"{BASE}.model"}
        unknown = sorted(set(recipe.data) - set(made))
        if unknown:
            raise MarvelError(
                f"The recipe reads {', '.join(f'{DATA}.{name}' for name in unknown)}, for which a "
                f"smaller size has nothing: it has {', '.join(made)}."
            )
        data = {f"{DATA}.{name}": made[name] for name in recipe.data}
    stages: list[Stage] = []
    trained: set[str] = set()  # by contrast of M-BEIR's queries
    for stage in recipe.stages:
        again = isinstance(stage, Train) and _maker(stage.config.model.source) in trained
        if isinstance(stage, Train) and _kind(stage.config, again=again) in ("contrast", "hard"):
            trained.add(stage.name)
        shrunk = _stage(stage, size, again=again)
        stages.append(with_inputs(shrunk, lambda text: data.get(text, text)))
    if isinstance(size.corpus, Emoji):
        corpus = data.get(f"{DATA}.mbeir", "")
        stages = with_split_tests(stages, corpus, most=size.queries)
    return Recipe((*before, *stages))


def _maker(source: str | None) -> str:
    """The stage whose model a training starts from."""
    return (source or "").partition(".")[0]


def _stage(stage: Stage, size: Size, *, again: bool) -> Stage:
    if isinstance(stage, Train):
        shrunk = _train(stage.config, size, again=again)
        if isinstance(size.corpus, Emoji) and _kind(stage.config, again=again) == "pairs":
            texts = stage.config.data.reader == "nli"
            first = emoji.of_texts if texts else emoji.of_pictures
            shrunk = first(shrunk, width=_SMALL, steps=150 if texts else 900)
        return dataclasses.replace(stage, config=shrunk)
    if isinstance(stage, Base):
        return dataclasses.replace(stage, architecture=size.architecture)
    if isinstance(stage, Emoji) and size.queries < 10:
        return dataclasses.replace(stage, limit=60)
    if isinstance(stage, Subset):
        most = size.queries if stage.most is None else min(stage.most, size.queries)
        # A part of the training queries is small as it is; what is judged or scored is capped.
        most_or_none = None if stage.split == "train" and stage.most is None else most
        return dataclasses.replace(
            stage,
            most=most_or_none,
            include=_sets(stage.include, size),
            exclude=_sets(stage.exclude, size),
        )
    if isinstance(stage, Mine):
        changed = {setting.partition("=")[0] for setting in size.mining}
        kept = [one for one in stage.settings if one.partition("=")[0] not in changed]
        return dataclasses.replace(stage, settings=(*kept, *size.mining), scann=False)
    if isinstance(stage, Recall):
        return dataclasses.replace(stage, depth=min(stage.depth, size.lists))
    if isinstance(stage, Score):
        return dataclasses.replace(stage, top=min(stage.top, size.lists), dtype="float32")
    if isinstance(stage, Evaluate):
        return dataclasses.replace(stage, scann=False)
    return stage


def _train(config: TrainConfig, size: Size, *, again: bool) -> TrainConfig:
    """A training at a size; `again` if the model it starts from was trained by contrast before."""
    kind = _kind(config, again=again)
    batch, steps = size.batch, size.steps[kind]
    if size.scaled:
        batch = max(size.least, size.batch * config.data.global_batch // _FULL_BATCH)
    if kind == "contrast":  # one pass over as many pairs, whatever the batch
        steps = steps * size.batch // batch
    if kind == "distillation":  # as many lists, whatever else is in the batch
        steps = math.ceil(steps / _share_of_lists(config.data))
    model = dataclasses.replace(
        config.model,
        scratch=None if config.model.source is not None else size.architecture,
        dtype="float32",
        remat="none",
        kernel="auto",
        # Few weights are trained best as a whole; made up ones show that adapters work.
        adapters=None
        if size.scaled or config.model.adapters is None
        else dataclasses.replace(config.model.adapters, rank=4, alpha=8.0),
    )
    optimizer = config.optimizer
    if size.rate is not None:
        scaled = optimizer.learning_rate * size.rate / _FULL_RATE
        optimizer = dataclasses.replace(
            optimizer,
            learning_rate=1e-3 if kind == "rerank" else scaled,
            b2=0.98,
            temperature_min=min(0.02, optimizer.temperature_min),
        )
    sub_batch = config.data.sub_batch
    data = dataclasses.replace(
        _source(config.data, size),
        mixture=tuple(_source(part, size) for part in config.data.mixture),
        global_batch=batch,
        sub_batch=None if sub_batch is None else batch // 4,
        hard_negatives=min(config.data.hard_negatives, size.hard_negatives),
        row=size.pair_row if kind == "rerank" else size.row,
    )
    if isinstance(size.corpus, Emoji) and kind in ("contrast", "hard"):
        data = _weighted(data)
    distillation, rerank = config.distillation, config.rerank
    if distillation is not None:
        # The emoji corpus has none of the tasks that M-BEIR's weights are for.
        of_tasks = None if isinstance(size.corpus, Emoji) else distillation.fused_task_weights
        distillation = dataclasses.replace(
            distillation,
            depth=min(distillation.depth, size.lists),
            fused_task_weights=of_tasks,
        )
    if rerank is not None:
        tokens = min(rerank.max_text_tokens, size.text_tokens)
        rerank = dataclasses.replace(rerank, max_text_tokens=tokens)
    return dataclasses.replace(
        config,
        data=data,
        model=model,
        optimizer=optimizer,
        embedding=dataclasses.replace(
            config.embedding,
            min_pixels=size.side**2 // 4,
            max_pixels=size.side**2,
            max_text_tokens=min(config.embedding.max_text_tokens, size.text_tokens),
        ),
        mesh=MeshConfig(),
        sharding=ShardingRules(),
        checkpoint=CheckpointConfig(every=size.checkpoint_every),
        steps=max(1, steps),
        chunk_rows=None,
        distillation=distillation,
        rerank=rerank,
    )


def _kind(config: TrainConfig, *, again: bool) -> str:
    """Of what sort a training is, for its number of steps."""
    if config.objective != "contrastive":
        return config.objective
    if all(part.reader not in ("mbeir", "tfds") for part in config.data.sources):
        return "pairs"
    return "hard" if again else "contrast"


def _share_of_lists(data: DataConfig) -> float:
    """How much of a batch are queries with a teacher's list."""
    weights = [part.weight for part in data.mixture]
    taught = [part.weight for part in data.mixture if part.teacher]
    if not taught or None in weights:  # by their numbers of queries, which are not known here
        return 1.0
    return sum(filter(None, taught)) / sum(filter(None, weights))


def _source(source: _Config, size: Size) -> _Config:
    """A source on the stand-in corpus; where that has no pairs, a task of it."""
    tasks = {"nli": ("task1",), "captions": ("task0",)}
    if source.reader in tasks and source.reader not in size.corpus.outputs:
        return dataclasses.replace(
            source, reader="mbeir", images=None, include=tasks[source.reader]
        )
    return dataclasses.replace(
        source, include=_sets(source.include, size), exclude=_sets(source.exclude, size)
    )


def _weighted(data: DataConfig) -> DataConfig:
    """The corpus's own shares of its tasks: by their sizes, texts would be half of a batch."""
    if data.mixture or data.reader != "mbeir" or data.task_weights is not None:
        return data
    weights = {
        task: weight
        for task, weight in emoji.TASK_WEIGHTS.items()
        if (not data.include or f"task{task}" in data.include) and f"task{task}" not in data.exclude
    }
    return dataclasses.replace(data, task_weights=weights)


def _sets(names: Sequence[str], size: Size) -> tuple[str, ...]:
    """M-BEIR's sets as the stand-in knows them: the emoji corpus has tasks and one data set."""
    if not isinstance(size.corpus, Emoji):
        return tuple(names)
    found: list[str] = []
    for name in names:
        _, task, number = name.rpartition("task")
        numbers = [number] if task else [str(one.task) for one in SETS if one.name == name]
        found += [f"task{one}" for one in numbers]
    return tuple(dict.fromkeys(found))
