"""How a preset of mining becomes another by settings: `threshold=0.6`, `9:0.pick=pool`."""

import re
from collections.abc import Sequence

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.overrides import override
from marvel_jax.retrieval.mining_rules import PRESETS, Strategies

_TASK_SETTING = re.compile(r"(?P<dataset>\d+):(?P<task>\d+)\.(?P<setting>.+)")


def strategies_of(preset: str, settings: Sequence[str]) -> Strategies:
    """A preset with fields changed: of every strategy (`threshold=0.6`), or of one kind of query
    (`9:0.pick=pool`, data set 9, task 0).

    Raises:
      MarvelError: an unknown preset or field, or a strategy that cannot be.
    """
    if preset not in PRESETS:
        raise MarvelError(f"--preset {preset}: choose one of {', '.join(PRESETS)}.")
    start = PRESETS[preset]
    everywhere: list[str] = []
    of_task: dict[tuple[int, int], list[str]] = {}
    for setting in settings:
        match = _TASK_SETTING.fullmatch(setting)
        if match is None:
            everywhere.append(setting)
        else:
            key = (int(match["dataset"]), int(match["task"]))
            of_task.setdefault(key, []).append(match["setting"])
    default = override(start.default, everywhere)
    by_task = {key: override(one, everywhere) for key, one in start.by_task.items()}
    for key, changes in of_task.items():
        by_task[key] = override(by_task.get(key, default), changes)
    return Strategies(default, by_task)
