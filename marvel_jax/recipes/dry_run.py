"""What a recipe would do, told without its data: stages, what each reads and leaves, its steps."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from marvel_jax.errors import MarvelError
from marvel_jax.recipes import stage_record
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.runner import Part, Run, hub_ids, is_there
from marvel_jax.recipes.stages import CACHES, Mine, Recall, Score, Stage, Subset, Train, inputs


def describe_run(recipe: Recipe, workdir: Path, *, part: Part | None = None) -> Outcome:
    """The stages as lines and as facts; nothing is read but the records of what has run.

    What comes from outside is not compared with what it was: a run does that.
    """
    run, chosen = Run(recipe, workdir), (part or Part()).of(recipe)
    made = [stage.name for stage in chosen]
    lines: list[str] = []
    told: list[dict[str, Any]] = []
    missing: list[str] = []
    redone: set[str] = set()  # stages that will leave something new
    for number, stage in enumerate(chosen, start=1):
        lacks = run.missing(stage, made=made)
        state = _state(run, stage, lacks, redone)
        if state != "done":
            redone.add(stage.name)
        reads = {field: _place(run, stage, field, text) for field, text in inputs(stage).items()}
        writes = [
            str(run.folder(stage.name) / path)
            for name, path in stage.outputs.items()
            if name not in CACHES
        ]
        lines.append(f"{number}. {stage.name} ({type(stage).__name__.lower()}, {state})")
        work = does(stage)
        lines += [f"     {line}" for line in work]
        lines += [f"     reads {field}: {place}" for field, place in reads.items()]
        lines += [f"     writes {path}" for path in writes]
        lines += [f"     MISSING {fault}" for fault in lacks]
        missing += [f"{stage.name}: {fault}" for fault in lacks]
        told.append(
            {
                "name": stage.name,
                "kind": type(stage).__name__,
                "state": state,
                "does": work,
                "reads": reads,
                "writes": writes,
                "missing": lacks,
                **({"steps": stage.config.steps} if isinstance(stage, Train) else {}),
            }
        )
    steps = sum(one.get("steps", 0) for one in told)
    count = f"{len(missing)} inputs are missing" if missing else "no input is missing"
    lines.append(f"{len(chosen)} stages, {steps:,} steps of training in all; {count}")
    facts = {"workdir": str(workdir), "stages": told, "steps": steps, "missing": missing}
    return Outcome(facts, lines)


def does(stage: Stage) -> list[str]:
    """The figures of a stage that a person asks for first."""
    if isinstance(stage, Train):
        return _training(stage)
    if isinstance(stage, Mine):
        changed = f", {' '.join(stage.settings)}" if stage.settings else ""
        return [f"{stage.preset} negatives of the {stage.pool} pool, {stage.split} split{changed}"]
    if isinstance(stage, Recall):
        return [f"the best {stage.depth} of both pools, {stage.split} split"]
    if isinstance(stage, Score):
        return [f"the first {stage.top} of each list, {stage.split} split"]
    if isinstance(stage, Subset):
        most = f", at most {stage.most} of a set" if stage.most else ""
        without = f", without {', '.join(stage.exclude)}" if stage.exclude else ""
        only = f", only {', '.join(stage.include)}" if stage.include else ""
        part = f"{stage.first:.0%} to {stage.last:.0%} of the {stage.split} queries"
        own = ", candidates of these data sets alone" if stage.candidates == "own" else ""
        return [f"{part}{most}{only}{without}{own}"]
    return []


def _training(stage: Train) -> list[str]:
    config = stage.config
    optimizer, adapters, data = config.optimizer, config.model.adapters, config.data
    negatives = f" + {data.hard_negatives} hard negatives each" if data.hard_negatives else ""
    learned = "learned" if optimizer.learn_temperature else "fixed"
    start = "" if optimizer.temperature is None else f" {optimizer.temperature:g}"
    trained = "all weights"
    if adapters is not None:
        trained = f"adapters of rank {adapters.rank}, alpha {adapters.alpha:g}"
    both = ", both directions" if config.loss.symmetric else ""
    how = f"{config.objective}{both}, learning rate {optimizer.learning_rate:g}"
    return [
        f"{config.steps:,} steps of {data.global_batch:,} queries{negatives}, seed {config.seed}",
        f"{how}, temperature {learned}{start}, {trained}",
    ]


def _place(run: Run, stage: Stage, field: str, text: str) -> str:
    place = str(run.place(text))
    maker = run.maker(text)
    if maker is not None:
        return f"{place} (of {maker})"
    if is_there(place):
        return f"{place} (is there)"
    return f"{place} (from the Hub)" if text in hub_ids(run, stage) else f"{place} (MISSING)"


def _state(run: Run, stage: Stage, lacks: Sequence[str], redone: set[str]) -> str:
    """What would become of the stage, as far as can be told without reading data."""
    folder = run.folder(stage.name)
    if not folder.exists():
        return "to run"
    if not run.is_done(stage.name):
        return "to go on"
    makers = {run.maker(text) for text in inputs(stage).values()}
    if makers & redone or lacks:
        return "done, for what was there then"
    then = {field: one["hash"] for field, one in stage_record.read(folder)["inputs"].items()}
    try:
        now = {f: run.made_hash(text) or then.get(f, "") for f, text in inputs(stage).items()}
    except MarvelError:
        return "done, for what was there then"
    found = stage_record.examine(folder, stage_record.describe(stage, now), stage)
    if found.state == "changed":
        return f"to run again: changed {', '.join(found.differing[:3])}"
    return "done" if found.state == "done" else "to go on"


def recipe_json(recipe: Recipe) -> dict[str, Any]:
    """Every field of a recipe as JSON has it."""
    stages = [
        {"kind": type(stage).__name__, **dataclasses.asdict(stage)} for stage in recipe.stages
    ]
    found: dict[str, Any] = json.loads(json.dumps({"data": dict(recipe.data), "stages": stages}))
    return found
