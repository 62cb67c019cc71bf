"""Runs the trials of a study; what is done is taken, what was killed goes on, what fails is kept.

WORKDIR/stages/KIND-HASH/    every stage of every trial of every study here, once
WORKDIR/NAME/                a study: see `studies.trial`
"""

import gc
import os
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_json, write_json, write_text
from marvel_jax.parallel import hosts
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.runner import Part, Run, require_inputs, run_recipe
from marvel_jax.recipes.stages import Train
from marvel_jax.studies.axes import label
from marvel_jax.studies.keys import Keyed, Keys
from marvel_jax.studies.locks import locked
from marvel_jax.studies.measured import measure
from marvel_jax.studies.study import Study, Task, numbered
from marvel_jax.studies.trial import (
    RUNS,
    STUDY,
    TRIALS,
    Trial,
    read_trial,
    trial_path,
    write_trial,
)

Say = Callable[[str], None]

STAGES = "stages"

EXIT_FAILED_TRIALS = 3
"""All went as it should, and some trials are written down as failed: a scheduler has nothing to
begin again. (1 may be the death of a host.)"""


class Planned(NamedTuple):
    """A trial that is to be made. A point that makes no recipe has its refusal instead."""

    task: Task
    keyed: Keyed
    recipe: Recipe | None
    refusal: str | None = None

    @property
    def line(self) -> str:
        """Who it is, for a person."""
        return f"{label(self.task.point)}, seed {self.task.seed}"


def planned(study: Study) -> list[Planned]:
    """All trials with their keys.

    Raises:
      MarvelError: an input from outside is missing, or two trials are the same computation.
    """
    keys, found = Keys(), []
    for task in study.tasks():
        try:
            recipe = study.recipe(task)
        except MarvelError as error:
            key = hash_json(["refused", *study.settings(task)])
            found.append(Planned(task, Keyed(key, {}), None, str(error)))
            continue
        found.append(Planned(task, keys.of(recipe), recipe))
    first: dict[str, Planned] = {}
    for one in found:
        same = first.setdefault(one.keyed.key, one)
        if same is not one:
            raise MarvelError(
                f"trials {same.task.number} ({same.line}) and {one.task.number} ({one.line}) are "
                "the same computation: let every axis and seed change a field that its stages read "
                "(seeded=...), or leave one of them out with only=..."
            )
    return found


def run_study(
    study: Study,
    workdir: Path,
    *,
    name: str,
    number: int | None = None,
    limit: int | None = None,
    retry: bool = False,
    say: Say = lambda line: None,
) -> Outcome:
    """Runs the trials that have not ended; every process of a run of several calls it.

    Args:
      study: what is tried.
      workdir: the folder that studies share.
      name: the study's.
      number: of the one trial to run, counted from 1; None runs all.
      limit: how many trials to run at most; those that have ended do not count.
      retry: whether trials that failed are run again.
      say: gets a line for each trial.

    Raises:
      MarvelError: the study cannot be: what `planned` refuses, or no trial of the number.
    """
    folder, everything = workdir / name, planned(study)
    numbered([one.task for one in everything], number or 1)
    chosen = [one for one in everything if number in (None, one.task.number)]
    with locked(folder / ".study.lock", say=say):
        hosts.from_main(lambda: _write_study(study, folder, name=name, trials=everything))
    ended: list[tuple[Planned, Trial]] = []
    spent: list[float] = []
    # What another process is at comes last: there is other work meanwhile.
    queue = deque((one, False) for one in chosen)
    while queue:
        one, wait = queue.popleft()
        key = one.keyed.key
        full = limit is not None and len(spent) >= limit
        if full and hosts.from_main(partial(_status, folder, key)) is None:
            continue  # nor is it waited for where another process is at it
        with locked(folder / TRIALS / f".{key}.lock", wait=wait, say=say) as held:
            if not held:
                queue.append((one, True))
                continue
            before = hosts.from_main(partial(_status, folder, key))
            if before == "done" or (before == "failed" and not retry):
                ended.append((one, read_trial(trial_path(folder, key))))
                continue
            if full:
                continue
            started = time.perf_counter()
            trial, stopped = _run_trial(one, folder, workdir / STAGES, say)
            if trial is None:
                assert stopped is not None  # a trial that has not ended was stopped
                return Outcome(_facts(folder, ended), stopped.lines, stopped.code)
            hosts.from_main(partial(write_trial, folder, trial))
        spent.append(time.perf_counter() - started)
        ended.append((one, trial))
        say(_progress(one, trial, study, len(everything), spent, len(chosen) - len(ended)))
    ended.sort(key=lambda found: found[0].task.number)
    return _outcome(folder, ended, chosen)


def _run_trial(
    one: Planned, folder: Path, stages: Path, say: Say
) -> tuple[Trial | None, Outcome | None]:
    """The trial; or what stopped it before it ended."""
    key, task = one.keyed.key, one.task
    about: dict[str, Any] = {"key": key, "point": task.point, "seed": task.seed}
    if one.recipe is None:
        return Trial(**about, status="failed", error=one.refusal), None
    about["folder"] = f"{RUNS}/{key}"
    place = folder / about["folder"]
    run = Run(one.recipe, place, {n: stages / made for n, made in one.keyed.folders.items()})
    try:
        hosts.from_main(lambda: _prepare(run))
        stopped = _run_stages(run, say=_logging(place, say))
        if stopped is not None:
            return None, stopped
        return Trial(**about, status="done", metrics=hosts.from_main(lambda: measure(run))), None
    except MarvelError as error:
        reason = str(error)
    except Exception as error:
        if not hosts.is_alone():  # the others do not know of it
            raise
        reason = f"{type(error).__name__}: {error}".strip()
        write_text(place / "error.txt", traceback.format_exc())
    finally:
        if any(isinstance(stage, Train) for stage in one.recipe.stages):
            # The next one's step is another program; this one's would stay in memory.
            jax.clear_caches()
            gc.collect()
    return Trial(**about, status="failed", error=reason), None


def _run_stages(run: Run, *, say: Say) -> Outcome | None:
    """Runs what is not done; returns what stopped it, if something did.

    Of processes that share stages one runs a stage, and the others wait for what it leaves.
    """
    folders = {stage.name: run.folder(stage.name) for stage in run.recipe.stages}
    for stage in run.recipe.stages:
        place = folders[stage.name]
        with locked(place.with_name(f".{place.name}.lock"), say=say):
            part = Part(only=stage.name)
            outcome = run_recipe(run.recipe, run.workdir, part=part, folders=folders, say=say)
        if outcome.code:
            return outcome
    return None


def _prepare(run: Run) -> None:
    """The trial's folder, with links to where its stages are."""
    require_inputs(run, run.recipe.stages)
    run.workdir.mkdir(parents=True, exist_ok=True)
    (run.workdir / "error.txt").unlink(missing_ok=True)
    for stage in run.recipe.stages:
        link = run.workdir / stage.name
        if not link.is_symlink():
            link.symlink_to(os.path.relpath(run.folder(stage.name), run.workdir))


def _logging(place: Path, say: Say) -> Say:
    """Stages talk to the trial's log; who waits, to the person too."""

    def told(line: str) -> None:
        if hosts.is_main():
            with (place / "log.txt").open("a", encoding="utf-8") as log:
                log.write(f"{time.strftime('%H:%M:%S')} {line.removeprefix('[1/1] ')}\n")
            if "waiting" in line:
                say(f"  {line}")

    return told


def _write_study(study: Study, folder: Path, *, name: str, trials: Sequence[Planned]) -> None:
    listed = [
        {"number": t.number, "key": keyed.key, "point": t.point, "seed": t.seed}
        for t, keyed, *_ in trials
    ]
    write_json(folder / STUDY, {"name": name, **study.to_dict(), "trials": listed})


def _status(folder: Path, key: str) -> str | None:
    path = trial_path(folder, key)
    return read_trial(path).status if path.is_file() else None


def _progress(
    one: Planned, trial: Trial, study: Study, count: int, spent: Sequence[float], left: int
) -> str:
    head = f"[{one.task.number}/{count}] {one.line}: "
    if trial.status == "failed":
        head += f"FAILED: {trial.error}"
    else:
        shown = [m.name for m in study.metrics if m.name in trial.metrics][:2]
        head += ", ".join(f"{name} {trial.metrics[name]:.4g}" for name in shown)
    minutes = left * sum(spent) / len(spent) / 60
    return f"{head}; {spent[-1]:.0f} s; {left} left" + (f", {minutes:.0f} min" if left else "")


def _facts(folder: Path, ended: Sequence[tuple[Planned, Trial]]) -> dict[str, Any]:
    failed = [(one, trial) for one, trial in ended if trial.status == "failed"]
    return {
        "study": str(folder),
        "done": len(ended) - len(failed),
        "failed": [
            {"number": one.task.number, "key": trial.key, "error": trial.error}
            for one, trial in failed
        ],
    }


def _outcome(
    folder: Path, ended: Sequence[tuple[Planned, Trial]], chosen: Sequence[Planned]
) -> Outcome:
    facts = {**_facts(folder, ended), "open": len(chosen) - len(ended)}
    failed = [(one, trial) for one, trial in ended if trial.status == "failed"]
    lines = [f"{folder}: {facts['done']} of {len(chosen)} trials done"]
    if facts["open"]:
        lines[0] += f", {facts['open']} not begun; run it again to go on"
    if failed:
        lines.append(f"{len(failed)} failed; --retry runs them again:")
        lines += [f"  {one.task.number}. {one.line}: {trial.error}" for one, trial in failed]
    if facts["done"]:
        lines.append(f"next: marvel study report {folder}")
    return Outcome(facts, lines, EXIT_FAILED_TRIALS if failed else 0)


def describe_study(study: Study, workdir: Path, *, name: str) -> Outcome:
    """What a run would do: the trials, and the work that is left once shared stages count once."""
    folder, trials = workdir / name, planned(study)
    lines, steps, done = [], 0, 0
    stages: dict[str, bool] = {}
    told = []
    for one in trials:
        status = _status(folder, one.keyed.key) or ("refused" if one.refusal else "to run")
        why = f": {one.refusal}" if one.refusal else ""
        lines.append(f"{one.task.number}. {one.line}: {status}{why}")
        told.append({"number": one.task.number, "key": one.keyed.key, "status": status})
        for stage in one.recipe.stages if one.recipe else ():
            made = one.keyed.folders[stage.name]
            if made in stages:
                continue
            stages[made] = (workdir / STAGES / made / "done.json").is_file()
            done += stages[made]
            if isinstance(stage, Train) and not stages[made]:
                steps += stage.config.steps
    lines.append(
        f"{len(trials)} trials of {len(stages)} different stages, {done} of them done; "
        f"{steps:,} steps of training to go"
    )
    facts = {"trials": told, "stages": len(stages), "stages_done": done, "steps": steps}
    return Outcome({"study": str(folder), **facts}, lines)
