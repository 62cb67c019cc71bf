"""Every stage of U-MARVEL on real pictures: 38 CPU-minutes, 26 minutes on two cores.

marvel run configs/emoji_full.py --workdir runs/emoji_full
marvel table configs/emoji_full.py --workdir runs/emoji_full

The model is the quickstart's, from scratch: texts ask for texts, then names for pictures, then all
tasks with their instructions; mined negatives; a reranker; distillation from its logits, with text
among the tasks and without; a second reranker on top of what that model finds. Negatives are mined
for a part of the training queries, at most 10,000 of a task. A third of the held-out queries, at
most 100 of a task, fit the weight of the second reranker; of the others at most 200 a task are
reranked and judged. The table shows every stage's held-out scores, by task and pool.
"""

import dataclasses
from typing import Any

from marvel_jax.data.batch import RowShape
from marvel_jax.data.sources import SourceConfig
from marvel_jax.recipes import emoji
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import (
    Column,
    Deepen,
    Emoji,
    Evaluate,
    Fuse,
    Judged,
    Mine,
    Recall,
    Report,
    Score,
    Stage,
    Subset,
    Train,
)
from marvel_jax.training.config import ModelConfig, TrainConfig
from marvel_jax.training.objective_config import DistillationConfig
from marvel_jax.training.rerank_config import RerankConfig

CORPUS = "corpus.mbeir"
ASKED = "asked.mbeir"
TOP = 20  # candidates of a list that the reranker sees
POOLS = ("local", "global")
RATE = emoji.learning_rate(emoji.WIDTH)
PAIR_ROW = RowShape(tokens=192, patches=64, items=4)

start = emoji.train_config(CORPUS)
start = dataclasses.replace(start, data=dataclasses.replace(start.data, reader="mbeir"))


def training(
    model: str, *, steps: int, rate: float, of_data: dict[str, Any], **others: Any
) -> TrainConfig:
    """The quickstart's training from a model before, on other data."""
    return dataclasses.replace(
        start,
        model=ModelConfig(source=model),
        data=dataclasses.replace(start.data, **of_data),
        optimizer=dataclasses.replace(start.optimizer, learning_rate=rate),
        steps=steps,
        **others,
    )


def reranking(
    model: str, *, lists: str, steps: int, rate: float, top: int | None = 100
) -> TrainConfig:
    """A reranker's training on the queries that have lists."""
    return training(
        model,
        steps=steps,
        rate=rate,
        of_data={
            "path": ASKED,
            "mined": f"{lists}.negatives",
            # Few pairs and many steps: a pair says one bit, and comparing is learned late.
            "global_batch": 16,
            "row": PAIR_ROW,
        },
        objective="rerank",
        rerank=RerankConfig(top=top, max_text_tokens=48),
        loss=dataclasses.replace(start.loss, symmetric=False),
    )


def found(name: str, *, by: str, vectors: str | None = None) -> Mine:
    """What a model finds in a query's own pool, for a reranker to tell apart."""
    return Mine(
        name,
        by,
        ASKED,
        pool="local",
        preset="unfiltered",
        settings=("depth=100",),  # an emoji has up to 79 names
        vectors=vectors,
    )


def lists_and_scores(name: str, *, folder: str) -> tuple[Stage, ...]:
    """What the distilled model finds for some held-out queries, and the reranker of it."""
    recall = Recall(
        f"recall-{name}", "distill.model", folder, depth=TOP, vectors="evaluate-distill.vectors"
    )
    scores = [
        Score(
            f"rerank-{name}-{pool}",
            "reranker-plus.model",
            f"recall-{name}.{pool}",
            folder,
            split="test",
            top=TOP,
        )
        for pool in POOLS
    ]
    return recall, *scores


def judged(name: str) -> dict[str, Judged]:
    return {pool: Judged(f"rerank-{name}-{pool}.scores", f"{name}.mbeir") for pool in POOLS}


def distillation(*, text: float) -> TrainConfig:
    """Training by the lists of both pools; `text` is the share of text pairs beside them."""
    lists = SourceConfig(
        path="some.mbeir",
        teacher=("teach-local.scores", "teach-global.scores"),
        name="lists",
        weight=1 - text,
    )
    texts = (
        [SourceConfig(path=CORPUS, include=("task1",), name="text", weight=text)] if text else []
    )
    return training(
        "hard.model",
        steps=round(240 / (1 - text)),  # as many lists with text as without
        rate=3e-4,
        of_data={
            "path": None,
            "global_batch": 32,
            "task_weights": None,
            "tokenizer": None,
            "mixture": (lists, *texts),
        },
        objective="distillation",
        distillation=DistillationConfig(teacher="fused", depth=TOP, contrastive_weight=1.0),
        loss=dataclasses.replace(start.loss, symmetric=False),
    )


recipe = Recipe(
    (
        Emoji("corpus"),
        Train("text", emoji.of_texts(start, width=emoji.WIDTH, steps=400)),
        Train(
            "captions",
            emoji.of_pictures(
                dataclasses.replace(start, model=ModelConfig(source="text.model")),
                width=emoji.WIDTH,
                steps=2000,
            ),
        ),
        Train("instruct", training("captions.model", steps=5000, rate=RATE, of_data={})),
        Evaluate("evaluate-instruct", "instruct.model", CORPUS),
        Subset("asked", CORPUS, most=10_000),
        Mine(
            "mine",
            "instruct.model",
            ASKED,
            preset="unfiltered",
            # Not the very best: names in fourteen languages often fit several pictures.
            settings=("pick=random", "k=3", "first_rank=5", "last_rank=60"),
        ),
        Train(
            "hard",
            training(
                "instruct.model",
                steps=1000,
                rate=RATE / 3,
                of_data={"path": ASKED, "mined": "mine.negatives", "hard_negatives": 2},
                loss=dataclasses.replace(start.loss, symmetric=False),
            ),
        ),
        Evaluate("evaluate-hard", "hard.model", CORPUS),
        # Two layers understand an item; two more compare. Random negatives teach it to compare at
        # all: with what the retriever finds alone it stays at chance.
        Deepen("deeper", "instruct.model", layers=2),
        Mine(
            "random",
            "instruct.model",
            ASKED,
            pool="local",
            preset="unfiltered",
            settings=("pick=pool", "k=16"),
            vectors="mine.vectors",
        ),
        Train(
            "reranker-easy",
            reranking("deeper.model", lists="random", steps=1600, rate=5e-4, top=None),
        ),
        found("reranker-lists", by="instruct.model", vectors="mine.vectors"),
        Train(
            "reranker",
            reranking("reranker-easy.model", lists="reranker-lists", steps=500, rate=3e-4),
        ),
        Subset("some", CORPUS, most=300),
        Mine(
            "some-local",
            "hard.model",
            "some.mbeir",
            pool="local",
            preset="unfiltered",
            settings=("depth=50",),
        ),
        Score("teach-local", "reranker.model", "some-local.negatives", "some.mbeir", top=TOP),
        Mine(
            "some-global",
            "hard.model",
            "some.mbeir",
            pool="global",
            preset="unfiltered",
            settings=("depth=50",),
            vectors="some-local.vectors",
        ),
        Score("teach-global", "reranker.model", "some-global.negatives", "some.mbeir", top=TOP),
        Train("distill", distillation(text=0.2)),
        Evaluate("evaluate-distill", "distill.model", CORPUS),
        Train("distill-no-text", distillation(text=0.0)),
        Evaluate("evaluate-distill-no-text", "distill-no-text.model", CORPUS),
        found("reranker-plus-lists", by="distill.model"),
        Train(
            "reranker-plus",
            reranking("reranker.model", lists="reranker-plus-lists", steps=500, rate=3e-4),
        ),
        Subset("fitted", CORPUS, split="test", last=1 / 3, most=100),
        *lists_and_scores("fitted", folder="fitted.mbeir"),
        Subset("judged", CORPUS, split="test", first=1 / 3, most=200),
        *lists_and_scores("judged", folder="judged.mbeir"),
        Fuse("fuse", validation=judged("fitted"), test=judged("judged"), sure=True),
        Report(
            "report",
            (
                Column("instruction-tuned", "evaluate-instruct.scores"),
                Column("+ mined", "evaluate-hard.scores"),
                Column("+ distilled", "evaluate-distill.scores"),
                Column("+ distilled, no text", "evaluate-distill-no-text.scores"),
                Column("+ reranker fused", "fuse.scores"),
            ),
            title="Held-out emoji: hit@5 after each stage",
        ),
    )
)
