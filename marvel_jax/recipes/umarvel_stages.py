"""U-MARVEL's stages with the published hyper-parameters, row by row of its table.

Figures of the paper (arXiv 2507.14902) and its launch scripts; where the two disagree the reading
is said beside.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from marvel_jax.data.batch import RowShape
from marvel_jax.data.sources import SourceConfig
from marvel_jax.models.lora import LoraConfig
from marvel_jax.recipes.stages import (
    Fuse,
    Judged,
    Mine,
    Recall,
    Score,
    Stage,
    Subset,
    Train,
)
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from marvel_jax.training.objective_config import DistillationConfig
from marvel_jax.training.rerank_config import RerankConfig

MBEIR, NLI, CAPTIONS, BASE = "data.mbeir", "data.nli", "data.captions", "data.base"

# The longest item, 480 tokens of text beside 300 visual ones, fits with room for others.
ROW = RowShape(tokens=1280, patches=3072, items=64)
# A pair has two texts of at most 256 tokens, two pictures of at most 300, and the prompt.
PAIR_ROW = RowShape(tokens=1536, patches=3072, items=16)

QUERIES = 1_332_790  # of the union file, copies of small sets counted
SEED = 42
POOLS = ("local", "global")


def data(base: str) -> dict[str, str]:
    """What the recipe reads from outside, where `--set data.mbeir=PATH` names no other place."""
    return {
        "base": base,
        "mbeir": "data/mbeir",
        "nli": "data/nli_for_simcse.csv",
        "captions": "data/cc3m-595k/train_anno.json",
    }


def progressive(
    *, rank: int = 128, folder: str = MBEIR, queries: int = QUERIES
) -> tuple[Train, ...]:
    """Rows 1 to 3: text, then captions, then instructions, each from the merged result before."""
    return (
        text(rank=rank // 2),
        captions(rank=rank),
        instruct("captions.model", rank=rank, folder=folder, queries=queries),
    )


def text(*, rank: int) -> Train:
    """Row 1: sentence pairs (the third column, a hard negative, is read by no published stage)."""
    return Train(
        "text",
        contrastive(
            BASE,
            DataConfig(path=NLI, reader="nli", global_batch=576, row=ROW),
            rank=rank,
            rate=2e-4,
            steps=957,  # 275,601 triplets, twice
            optimizer={"temperature": 0.05, "learn_temperature": False},
        ),
    )


def captions(model: str = "text.model", *, rank: int) -> Train:
    """Row 2: captions ask for pictures and pictures for captions."""
    return Train(
        "captions",
        contrastive(
            model,
            # 60 a device; the run's name tells of 16 devices.
            DataConfig(path=CAPTIONS, reader="captions", global_batch=960, row=ROW),
            rank=rank,
            rate=1e-4,
            steps=620,  # 595,375 captions, once
            optimizer={"temperature": 0.05, "learn_temperature": False},
            loss=LossConfig(symmetric=True),
        ),
    )


def instruct(
    model: str,
    *,
    name: str = "instruct",
    rank: int = 128,
    folder: str = MBEIR,
    queries: int = QUERIES,
    batch: int = 3840,
    rate: float = 4e-4,
    learn_temperature: bool = True,
    **of_embedding: Any,
) -> Train:
    """Row 3: M-BEIR's sixteen tasks mixed, 3,840 queries a batch, a learned temperature.

    `of_embedding` changes how items are embedded, for ablations.
    """
    # Learned from here on: from 0.05, where the model before has left none of its own.
    fixed = {} if learn_temperature else {"temperature": 0.05, "learn_temperature": False}
    config = contrastive(
        model,
        DataConfig(path=folder, global_batch=batch, row=ROW),
        rank=rank,
        rate=rate,
        steps=-(-queries // batch),
        optimizer=fixed,
    )
    embedding = dataclasses.replace(config.embedding, **of_embedding)
    return Train(name, dataclasses.replace(config, embedding=embedding))


def hard_negatives(
    *, rank: int = 128, folder: str = MBEIR, queries: int = QUERIES
) -> tuple[Stage, ...]:
    """Row 4: five mined negatives a query, no more similar to it than 0.7, and all of the batch.

    The paper's filter; the released code has none, and draws at random for nine tasks (preset
    "umarvel_two_strategy").
    """
    return (
        Mine("mine", "instruct.model", folder, pool="global", preset="filtered"),
        Train("hard", mined("mine.negatives", rank=rank, folder=folder, queries=queries)),
    )


def mined(
    negatives: str | None,
    *,
    model: str = "instruct.model",
    rank: int = 128,
    folder: str = MBEIR,
    queries: int = QUERIES,
    each: int = 5,
    **others: Any,
) -> TrainConfig:
    """The training of row 4; with no negatives, on the batch's other queries alone."""
    return contrastive(
        model,
        DataConfig(
            path=folder,
            mined=negatives,
            global_batch=1088,
            hard_negatives=0 if negatives is None else each,
            row=ROW,
        ),
        rank=rank,
        rate=1.5e-5,
        steps=-(-queries // 1088),
        optimizer={},
        **others,
    )


def reranker(
    name: str,
    *,
    lists_of: str,
    rank: int = 128,
    folder: str = MBEIR,
    queries: int = QUERIES,
    vectors: str | None = None,
) -> tuple[Stage, ...]:
    """Rows 5 and 7: from the base model, one positive and one negative a query, drawn from the
    hundred best of the query's own pool.

    `lists_of` is the stage whose model finds them. (The paper draws from the best fifty.)
    """
    lists = f"{name}-lists"
    return (
        Mine(
            lists, f"{lists_of}.model", folder, pool="local", preset="unfiltered", vectors=vectors
        ),
        Train(
            name,
            TrainConfig(
                objective="rerank",
                rerank=RerankConfig(top=100),
                data=DataConfig(
                    path=folder,
                    mined=f"{lists}.negatives",
                    global_batch=512,  # 2 a device, 4 accumulated, on 64 devices
                    row=PAIR_ROW,
                ),
                model=_model(BASE, rank),
                embedding=EmbeddingSettings(max_pixels=300 * 28 * 28),
                optimizer=OptimizerConfig(learning_rate=2e-5, learn_temperature=False),
                steps=-(-queries // 512),
                seed=SEED,
            ),
        ),
    )


def distilled(*, rank: int = 128, folder: str = MBEIR, queries: int = QUERIES) -> tuple[Stage, ...]:
    """Row 6: a tenth of the queries, fifty candidates each, the reranker as teacher.

    Half of the lists are of the query's own pool, half of all candidates: with the published lists,
    of its own pool alone, candidates of a wrong modality are never seen, and MSCOCO's text to image
    loses seven points in the global pool.
    """
    student = distillation(
        ("teach-local.scores", "teach-global.scores"), rank=rank, queries=queries // 10
    )
    return (*teacher(folder=folder), Train("distill", student))


def teacher(
    *, folder: str = MBEIR, retriever: str = "hard.model", scorer: str = "reranker.model"
) -> tuple[Stage, ...]:
    """A tenth of the queries, their lists in both pools, and the reranker's scores of them."""
    stages: list[Stage] = [Subset("tenth", folder, last=0.1)]
    pools: tuple[Literal["local", "global"], ...] = ("local", "global")
    for pool in pools:
        lists = Mine(
            f"tenth-{pool}",
            retriever,
            "tenth.mbeir",
            pool=pool,
            preset="unfiltered",
            vectors=None if pool == "local" else "tenth-local.vectors",
        )
        found = f"tenth-{pool}.negatives"
        stages += [lists, Score(f"teach-{pool}", scorer, found, "tenth.mbeir", dtype="bfloat16")]
    return tuple(stages)


def distillation(
    scores: tuple[str, ...],
    *,
    rank: int = 128,
    queries: int = QUERIES // 10,
    text: bool = False,
    **of_distillation: Any,
) -> TrainConfig:
    """The student's training: fused scores, half the cosine and half P(Yes), as in the paper.

    With `text` a fifth of each batch are sentence pairs, so that text retrieval does not decay;
    there are as many more steps, so that every list is seen once all the same.
    """
    form: dict[str, Any] = {
        "teacher": "fused",
        "depth": 50,
        "fused_weight": 1.0,
        "fused_task_weights": {"9:0": 0.5, "9:3": 0.1},  # MSCOCO, where the reranker is weak
        **({"contrastive_weight": 1.0} if text else {}),
        **of_distillation,
    }
    share = 0.8 if text else 1.0
    lists = SourceConfig(path="tenth.mbeir", teacher=scores, name="lists", weight=0.8)
    pairs = SourceConfig(path=NLI, reader="nli", name="text", weight=0.2)
    one: dict[str, Any] = {"path": "tenth.mbeir", "teacher": scores}
    data = {"mixture": (lists, pairs)} if text else one
    return TrainConfig(
        objective="distillation",
        distillation=DistillationConfig(**form),
        data=DataConfig(global_batch=128, row=ROW, **data),
        model=_model("hard.model", rank),
        # The released run shows pictures at 224 x 224 here.
        embedding=EmbeddingSettings(max_pixels=224 * 224, max_text_tokens=480),
        optimizer=OptimizerConfig(learning_rate=1e-5),
        steps=math.ceil(queries / (128 * share)),
        seed=SEED,
    )


def fused(
    scorer: str,
    retriever: str,
    *,
    prompt: str | None = None,
    vectors: str | None = None,
    test: str = MBEIR,
    validation: str = MBEIR,
    most: int | None = 500,
    top: int = 50,
    scope: Literal["task", "global"] = "task",
) -> tuple[Stage, ...]:
    """The reranker on top: its weight fitted on validation queries, judged on test queries.

    Of the validation queries at most `most` of a set. `vectors` are the retriever's of the test
    pool, in which validation is judged too (`MbeirFolder.judged_pool`).
    """
    stages: list[Stage] = []
    judged: dict[str, dict[str, Judged]] = {}
    for split, folder in (("val", validation), ("test", test)):
        if split == "val" and most is not None:
            stages.append(Subset("val", folder, split=split, most=most))
            folder = "val.mbeir"
        lists = f"recall-{split}"
        stages.append(Recall(lists, retriever, folder, split=split, depth=top, vectors=vectors))
        vectors = vectors or f"{lists}.vectors"
        stages += [
            Score(
                f"rerank-{split}-{pool}",
                scorer,
                f"{lists}.{pool}",
                folder,
                split=split,
                top=top,
                prompt=prompt,
                dtype="bfloat16",
            )
            for pool in POOLS
        ]
        judged[split] = {
            pool: Judged(f"rerank-{split}-{pool}.scores", folder, split) for pool in POOLS
        }
    return (*stages, Fuse("fuse", validation=judged["val"], test=judged["test"], scope=scope))


def contrastive(
    model: str,
    data: DataConfig,
    *,
    rank: int,
    rate: float,
    steps: int,
    optimizer: Mapping[str, Any],
    **others: Any,
) -> TrainConfig:
    """A training of the embedder: bidirectional, mean pooled, no prompt, adapters over bfloat16."""
    return TrainConfig(
        data=data,
        model=_model(model, rank),
        embedding=EmbeddingSettings(max_pixels=300 * 28 * 28, max_text_tokens=480),
        # AdamW without decay, 3% warm-up, a cosine to zero, clipped at 1: the defaults.
        optimizer=OptimizerConfig(learning_rate=rate, **optimizer),
        steps=steps,
        seed=SEED,
        **others,
    )


def _model(source: str, rank: int) -> ModelConfig:
    return ModelConfig(
        source=source,
        dtype="bfloat16",
        remat="full",
        adapters=LoraConfig(rank=rank, alpha=2.0 * rank),
    )
