"""U-MARVEL's recipe: the stages of its table, put together."""

from typing import Any, Literal

from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Column, Evaluate, Report, Stage
from marvel_jax.recipes.umarvel_stages import (
    MBEIR,
    QUERIES,
    data,
    distilled,
    fused,
    hard_negatives,
    progressive,
    reranker,
)


def umarvel(
    base: str,
    *,
    rank: int = 128,
    before: tuple[Stage, ...] = (),
    folder: str = MBEIR,
    queries: int = QUERIES,
    test: str = MBEIR,
    validation: str = MBEIR,
    scope: Literal["task", "global"] = "task",
    title: str = "M-BEIR",
) -> Recipe:
    """The whole recipe for a Qwen2-VL, a Hub id or a folder.

    Args:
      base: the instruct model.
      rank: of the adapters (of the text stage half as many), with an alpha of twice as much.
      before: stages that make what the others read.
      folder: the M-BEIR folder that is trained on.
      queries: of its union file.
      test: the folder whose test queries judge.
      validation: the folder whose validation queries fit the fusion.
      scope: a fusion weight for each task, or one for all.
      title: of the table.
    """
    given: dict[str, Any] = {"rank": rank, "folder": folder, "queries": queries}
    stages: tuple[Stage, ...] = (
        *before,
        *progressive(rank=rank, folder=folder, queries=queries),
        Evaluate("evaluate-instruct", "instruct.model", test, scann=True),
        *hard_negatives(**given),
        Evaluate("evaluate-hard", "hard.model", test, scann=True),
        *reranker("reranker", lists_of="instruct", vectors="mine.vectors", **given),
        *distilled(**given),
        Evaluate("evaluate-distill", "distill.model", test, scann=True),
        *reranker("reranker-plus", lists_of="distill", **given),
        *fused(
            "reranker-plus.model",
            "distill.model",
            vectors="evaluate-distill.vectors",
            validation=validation,
            test=test,
            scope=scope,
        ),
        Report(
            "report",
            (
                Column("instruction-tuned", "evaluate-instruct.scores"),
                Column("+ mined", "evaluate-hard.scores"),
                Column("+ distilled", "evaluate-distill.scores"),
                Column("+ reranker", "fuse.scores"),
            ),
            title=f"{title}: hit@5 (hit@10 on Fashion200K and FashionIQ) after each stage",
        ),
    )
    return Recipe(stages, data(base))
