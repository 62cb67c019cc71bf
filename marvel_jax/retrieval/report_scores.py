"""The scores of an evaluation, read back from its scores.json; and its sets, ready to analyse."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marvel_jax.data.items import TASKS
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.analysis import JudgedSet
from marvel_jax.retrieval.evaluation_folder import EvaluationFolder
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.protocols import (
    ApproximateScores,
    Evaluation,
    GroupScores,
    PoolScores,
    SetScores,
)
from marvel_jax.retrieval.scann_index import Speed

_WANTED = {task.name: task.candidate_modality for task in TASKS.values()}


def read_scores(scores: Mapping[str, Any], *, where: Path | str) -> Evaluation:
    """The `Evaluation` that was written as `scores`, without its rankings.

    Raises:
      MarvelError: a field is missing; `where` names the file.
    """
    try:
        return Evaluation(
            sets=tuple(_set(one) for one in scores["sets"]),
            mean_local=Interval(**scores["mean_local"]),
            mean_global=Interval(**scores["mean_global"]),
            instruction_choice=scores["instruction_choice"],
            approximate=read_approximate(scores["approximate"]) if scores["approximate"] else None,
            rankings={},
            by_task=tuple(_group(one) for one in scores["by_task"]),
            by_protocol=tuple(_group(one) for one in scores["by_protocol"]),
        )
    except (KeyError, TypeError) as error:
        raise MarvelError(
            f"{where} does not hold the scores that this marvel-jax writes ({error}). Run `marvel "
            "evaluate` again: vectors that are there are kept."
        ) from error


def judged_sets(
    folder: EvaluationFolder, evaluation: Evaluation, *, order: str | None = None
) -> list[JudgedSet]:
    """The sets with what was retrieved for them, in the order of the scores.

    `order` takes a reranker's lists instead ("reranked" or "fused"), of the sets that have them.

    Raises:
      MarvelError: rankings are missing or damaged, or a set's task is none of M-BEIR's.
    """
    found = []
    for scores in evaluation.sets:
        ranked = folder.rankings(scores.name)
        lists = ranked.retrieved if order is None else ranked.reranked.get(order)
        if lists is None:
            continue
        if scores.task not in _WANTED:
            raise MarvelError(
                f"{folder.path}: {scores.name} has task {scores.task!r}; expected one of "
                f"{', '.join(_WANTED)}."
            )
        found.append(
            JudgedSet(
                name=scores.name,
                task=scores.task,
                k=scores.k,
                wanted=_WANTED[scores.task],
                query_ids=ranked.query_ids,
                relevant=ranked.relevant,
                relevant_local=ranked.relevant_local,
                local=lists.local_pool,
                union=lists.global_pool,
                pool=scores.local_pool.size,
            )
        )
    return found


def _set(one: Mapping[str, Any]) -> SetScores:
    pools = {name: _pool(one[name]) for name in ("local_pool", "global_pool")}
    return SetScores(**{**one, **pools})


def _pool(one: Mapping[str, Any]) -> PoolScores:
    intervals = {name: Interval(**one[name]) for name in ("mrr", "ndcg", "average_precision")}
    cuts = {
        name: {int(cut): Interval(**value) for cut, value in one[name].items()}
        for name in ("hit", "recall")
    }
    chance = {int(cut): float(value) for cut, value in one["chance"].items()}
    return PoolScores(**{**one, **intervals, **cuts, "chance": chance})


def _group(one: Mapping[str, Any]) -> GroupScores:
    return GroupScores(
        name=one["name"],
        sets=tuple(one["sets"]),
        local_pool=Interval(**one["local_pool"]),
        global_pool=Interval(**one["global_pool"]),
    )


def read_approximate(one: Mapping[str, Any]) -> ApproximateScores:
    """What was written of ScaNN's scores; KeyError or TypeError where a field is missing."""
    speeds = {name: Speed(**one[name]) for name in ("speed", "exact_speed")}
    return ApproximateScores(**{**one, **speeds})
