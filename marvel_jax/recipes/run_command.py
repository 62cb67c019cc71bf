"""What `marvel run` and `marvel table` do; `cli_run.py` parses."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rich.console import Console

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.recipe import Recipe, load_recipe

Size = Literal["full", "small", "tiny"]


def run_config(
    config: Path,
    workdir: Path,
    *,
    start: str | None,
    only: str | None,
    size: Size,
    dry_run: bool,
    trainings: tuple[str, ...],
    settings: tuple[str, ...],
) -> Outcome:
    """Runs a recipe's file, or tells what it would do."""
    from marvel_jax.recipes.dry_run import describe_run
    from marvel_jax.recipes.runner import Part, run_recipe

    sizeable = sized(load_recipe(config), size)
    recipe = sizeable.with_trainings(trainings).with_settings(settings)
    part = Part(start, only)
    if dry_run:
        return describe_run(recipe, workdir, part=part)
    with joined() as say:
        return run_recipe(recipe, workdir, part=part, say=say)


@contextmanager
def joined() -> Iterator[Callable[[str], None]]:
    """This process among those of its run, as a scheduler tells; yields how to talk to a person."""
    from marvel_jax.parallel import hosts
    from marvel_jax.parallel.chips import GPU_MEMORY_SHARE

    # As `marvel train` does, before anything asks for the devices.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_SHARE))
    console = Console(stderr=True)

    def say(line: str) -> None:
        if hosts.is_main():
            console.print(line, highlight=False, soft_wrap=True, markup=False)

    with hosts.start(say=say):
        yield say


def sized(recipe: Recipe, size: Size) -> Recipe:
    """The recipe at another size."""
    if size == "full":
        return recipe
    from marvel_jax.recipes import sizes

    return sizes.shrink(recipe, sizes.SIZES[size])


def print_table(config: Path, workdir: Path) -> Outcome:
    """The columns of a recipe's reports that are there already.

    Raises:
      MarvelError: the recipe has no report, or nothing of it has been evaluated.
    """
    from marvel_jax.recipes import score_tables
    from marvel_jax.recipes.runner import Run
    from marvel_jax.recipes.stages import Report

    recipe = load_recipe(config)
    run = Run(recipe, workdir)
    reports = [stage for stage in recipe.stages if isinstance(stage, Report)]
    if not reports:
        raise MarvelError(f"{config} has no stage of the kind Report: there is no table to print.")
    lines: list[str] = []
    facts = {}
    for report in reports:
        there = [(one.label, Path(run.place(one.scores))) for one in report.columns]
        found = [(label, path) for label, path in there if path.is_file()]
        if not found:
            continue
        table = score_tables.read_columns(found)
        shown = table.averages() if report.averages else table.lines()
        lines += [*([report.title] if report.title else []), *shown]
        absent = [label for label, path in there if not path.is_file()]
        if absent:
            lines.append(f"not there yet: {', '.join(absent)}")
        facts[report.name] = table.to_dict()
    if not lines:
        raise MarvelError(
            f"{workdir} holds no scores of {config} yet: `marvel run {config} --workdir {workdir}`."
        )
    return Outcome(facts, lines)
