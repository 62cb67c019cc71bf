"""`marvel run`: a whole recipe as one command that can be killed and goes on."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg

from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome


def run(
    config: Annotated[Positional[Path], arg(help="A Python file that defines `recipe`.")],
    *,
    workdir: Annotated[Path, arg(help="Folder of the run: one folder a stage.")],
    start: Annotated[
        str | None, arg(name="from", help="The first stage to look at; those before it are taken.")
    ] = None,
    only: Annotated[str | None, arg(help="The one stage to run.")] = None,
    size: Annotated[
        Literal["full", "small", "tiny"],
        arg(
            help="small: the emoji corpus and a model of millions of parameters; tiny: made-up "
            "data and a model of thousands, to see every stage work."
        ),
    ] = "full",
    dry_run: Annotated[
        bool, arg(help="Tell the stages, what each reads and writes, steps and what is missing.")
    ] = False,
    training: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(help="Changes to every training, as: --training mesh.fsdp=8 chunk_rows=4"),
    ] = (),
    overrides: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(name="set", help="Changes, as: --set data.mbeir=/big/M-BEIR mine.settings=('k=3',)"),
    ] = (),
    json: Json = False,
) -> Outcome:
    """Runs every stage of a recipe that is not done: training, mining, scoring, evaluation.

    What is unchanged is skipped, a killed run goes on where it stopped, and a stage whose settings
    or inputs have changed is run again, its old folder kept beside.
    """
    from marvel_jax.recipes.run_command import run_config

    return run_config(
        config,
        workdir,
        start=start,
        only=only,
        size=size,
        dry_run=dry_run,
        trainings=tuple(itertools.chain.from_iterable(training)),
        settings=tuple(itertools.chain.from_iterable(overrides)),
    )


def table(
    config: Annotated[Positional[Path], arg(help="A Python file that defines `recipe`.")],
    *,
    workdir: Annotated[Path, arg(help="The folder in which it ran, wholly or in part.")],
    json: Json = False,
) -> Outcome:
    """Prints the table of a recipe from what has been evaluated so far."""
    from marvel_jax.recipes.run_command import print_table

    return print_table(config, workdir)
