"""Runs a recipe at the size "small" in little: its stages on a corner of the emoji corpus, with a
model of thousands of parameters and a step or two each.

A program of its own, because the test process has eight devices:
`python -m tests.recipes.small_run CONFIG WORKDIR`.
"""

import dataclasses
import json
import sys
from pathlib import Path

from marvel_jax.recipes.recipe import load_recipe
from marvel_jax.recipes.runner import run_recipe
from marvel_jax.recipes.sizes import CORPUS, SIZES, Size, shrink
from marvel_jax.recipes.stages import Emoji

LIMIT = 60  # emoji; of fewer some tasks have a single query


def in_little(size: Size) -> Size:
    """All that makes the size "small" what it is, but for the time it takes."""
    return dataclasses.replace(
        size,
        corpus=Emoji(CORPUS, limit=LIMIT),
        architecture=SIZES["tiny"].architecture,
        batch=16,
        least=8,
        steps=dict.fromkeys(size.steps, 1),
        row=dataclasses.replace(size.row, tokens=160, patches=64, items=16),
        hard_negatives=2,
        lists=10,
        queries=6,
        # Vectors of a model that has hardly learned are all alike.
        mining=SIZES["tiny"].mining,
    )


def main(config: Path, workdir: Path) -> None:
    """Runs every stage and prints the facts."""
    recipe = shrink(load_recipe(config), in_little(SIZES["small"])).with_trainings(["steps=1"])
    outcome = run_recipe(recipe, workdir, say=lambda line: print(line, file=sys.stderr))
    print(json.dumps(outcome.facts))
    raise SystemExit(outcome.code)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
