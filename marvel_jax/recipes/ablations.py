"""Ablations: variants of one training, each evaluated, and their averages in one table."""

import re
from collections.abc import Mapping, Sequence

from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Column, Evaluate, Report, Stage, Train, inputs
from marvel_jax.recipes.umarvel_stages import MBEIR
from marvel_jax.training.config import TrainConfig


def ablation(
    title: str,
    rows: Mapping[str, TrainConfig | str],
    *,
    data: Mapping[str, str],
    before: Sequence[Stage] = (),
) -> Recipe:
    """A recipe that trains and evaluates each variant and reports their averages.

    Args:
      title: of the table.
      rows: what each variant is, in words, and how it is trained; a text is a model that an
        earlier stage makes.
      data: what comes from outside.
      before: stages that the variants have in common.
    """
    stages: list[Stage] = list(before)
    columns = []
    for label, trained in rows.items():
        name = slug(label)
        model = trained if isinstance(trained, str) else f"{name}.model"
        if not isinstance(trained, str):
            stages.append(Train(name, trained))
        stages.append(Evaluate(f"evaluate-{name}", model, MBEIR))
        columns.append(Column(label, f"evaluate-{name}.scores"))
    stages.append(Report("table", tuple(columns), title=title, averages=True))
    read = {name: place for name, place in data.items() if _is_read(f"data.{name}", stages)}
    return Recipe(tuple(stages), read)


def slug(label: str) -> str:
    """A label as the name of a stage: "causal, last" is `causal-last`."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def _is_read(text: str, stages: Sequence[Stage]) -> bool:
    return any(text in inputs(stage).values() for stage in stages)
