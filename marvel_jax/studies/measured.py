"""The figures of a trial, read from what its stages have left."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from marvel_jax.files import read_json_object, read_jsonl
from marvel_jax.models import names
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.recipes import stage_record
from marvel_jax.recipes.runner import Run
from marvel_jax.recipes.score_tables import POOLS
from marvel_jax.recipes.stages import Evaluate, Search, Train

_LAST = 20  # one of so many steps, the last, make the final loss


def measure(run: Run) -> dict[str, float]:
    """What a finished recipe came to.

    Scores are those of the last `Evaluate` or `Search`: "hit@5 t->i local", "... global" (by the
    set's name where several have a task), "mean local", "mean global"; of a search also "recall",
    "bytes per vector", "gigabytes" and "milliseconds per query". "loss" is the mean of the last
    twentieth of the last training's steps, of a batch of that training's size: losses of batches of
    different sizes are not of one scale. "flops", "tokens" and "pairs" are of all trainings that
    are in the recipe, "parameters" of the last one's model; "seconds" and "cpu seconds" of all
    stages, also where another trial had run them before.

    Raises:
      MarvelError: a file of a stage is missing or damaged.
    """
    found: dict[str, float] = {}
    for stage in run.recipe.stages:
        if isinstance(stage, Evaluate | Search):  # of several the last counts
            scores = read_json_object(run.folder(stage.name) / stage.outputs["scores"])
            found = _evaluated(scores) if isinstance(stage, Evaluate) else _searched(scores)
    trained = [stage for stage in run.recipe.stages if isinstance(stage, Train)]
    if trained:
        found |= _trained(run, trained)
    records = [stage_record.read(run.folder(stage.name)) for stage in run.recipe.stages]
    for name, field in (("seconds", "seconds"), ("cpu seconds", "cpu_seconds")):
        found[name] = sum(float(one.get(field, 0.0)) for one in records)
    return found


def _trained(run: Run, stages: list[Train]) -> dict[str, float]:
    total = dict.fromkeys(("flops", "tokens", "pairs"), 0.0)
    rows: list[dict[str, Any]] = []
    for stage in stages:
        rows = [row for _, row in read_jsonl(run.folder(stage.name) / "metrics.jsonl")]
        for name in ("flops", "tokens"):
            total[name] += sum(row[name] for row in rows)
        total["pairs"] += len(rows) * stage.config.data.global_batch
    last = rows[-math.ceil(len(rows) / _LAST) :]
    model = run.folder(stages[-1].name) / stages[-1].outputs["model"]
    return total | {
        "loss": sum(row["loss"] for row in last) / len(last),
        "steps": float(len(rows)),
        "parameters": float(parameters(Qwen2VLConfig.from_folder(Path(model)))),
    }


def parameters(architecture: Qwen2VLConfig) -> int:
    """How many numbers the weights of a model are."""
    return sum(math.prod(row.shape(architecture)) for row in names.table(architecture))


def _evaluated(scores: Mapping[str, Any]) -> dict[str, float]:
    found = {}
    named = _names(scores["sets"])
    for one in scores["sets"]:
        for pool in POOLS:
            hit = one[f"{pool}_pool"]["hit"][str(one["k"])]["mean"]
            found[f"hit@{one['k']} {named[one['name']]} {pool}"] = float(hit)
    return found | {f"mean {pool}": float(scores[f"mean_{pool}"]["mean"]) for pool in POOLS}


def _searched(scores: Mapping[str, Any]) -> dict[str, float]:
    named = _names(scores["sets"])
    found = {
        f"hit@{one['k']} {named[one['name']]} global": float(one["hit"]["mean"])
        for one in scores["sets"]
    }
    found["mean global"] = float(scores["mean"]["mean"])
    if scores["recall"] is not None:
        found["recall"] = float(scores["recall"])
    return found | {
        "bytes per vector": float(scores["bytes_per_vector"]),
        "gigabytes": float(scores["gigabytes"]),
        "milliseconds per query": float(scores["milliseconds"]),
    }


def _names(sets: list[dict[str, Any]]) -> dict[str, str]:
    """A set's task, or its name where another set has the same task."""
    tasks = [one["task"] for one in sets]
    return {
        one["name"]: one["task"] if tasks.count(one["task"]) == 1 else one["name"] for one in sets
    }
