"""Runs a recipe stage by stage: what is done is skipped, what was killed goes on.

Each stage has a folder of its name in the run's folder: its files, `begun.json` and, when whole,
`done.json`. A stage whose fields or inputs have changed since is run again, and its old folder is
kept beside as `NAME.before-1`. What stands behind it has another input then, and follows.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from marvel_jax.errors import MarvelError
from marvel_jax.files import write_json
from marvel_jax.models import hub
from marvel_jax.parallel import hosts
from marvel_jax.recipes import stage_record, stage_runs
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.recipe import DATA, Recipe
from marvel_jax.recipes.stages import Stage, Train, inputs, with_inputs

Say = Callable[[str], None]

_MODELS = ("model", "source")  # inputs that may be Hub ids
_PICTURES = "images"  # an input that is a folder of pictures


@dataclass(frozen=True)
class Part:
    """Which stages of a recipe to run: all, those from one on, or one alone.

    What stands before them is taken as it is, if it is finished: its inputs need not be there.
    """

    start: str | None = None
    only: str | None = None

    def of(self, recipe: Recipe) -> tuple[Stage, ...]:
        """The stages.

        Raises:
          MarvelError: both ways are given, or a stage that there is not.
        """
        if self.start and self.only:
            raise MarvelError("--from and --only contradict each other: give one of them.")
        if self.only:
            return (recipe.stage(self.only),)
        first = recipe.stages.index(recipe.stage(self.start)) if self.start else 0
        return recipe.stages[first:]


class Run:
    """A recipe in a folder; `folders` names those of stages that lie elsewhere."""

    def __init__(
        self, recipe: Recipe, workdir: Path, folders: Mapping[str, Path] | None = None
    ) -> None:
        self.recipe, self.workdir = recipe, workdir
        self._folders = folders or {}
        self._hashes: dict[tuple[Path, bool], str] = {}

    def folder(self, name: str) -> Path:
        """Where a stage is."""
        return self._folders.get(name, self.workdir / name)

    def place(self, text: str) -> Path | str:
        """Where an input is: a path, or what may be a Hub id."""
        found = self.recipe.reference(text)
        if found is None or found.stage == DATA:
            given = text if found is None else self.recipe.data[found.output]
            # No shell expands what stands behind `--set data.mbeir=`, and no stage does.
            return Path(given).expanduser() if given.startswith("~") else given
        stage = self.recipe.stage(found.stage)
        return self.folder(stage.name) / stage.outputs[found.output]

    def maker(self, text: str) -> str | None:
        """The stage that makes an input, if one does."""
        found = self.recipe.reference(text)
        return None if found is None or found.stage == DATA else found.stage

    def is_done(self, name: str) -> bool:
        """Whether a stage has finished, whatever it was then."""
        return (self.folder(name) / stage_record.DONE).is_file()

    def resolved(self, stage: Stage) -> Any:
        """The stage with paths for inputs."""
        return with_inputs(stage, lambda text: str(self.place(text)))

    def described(self, stage: Stage) -> dict[str, Any]:
        """What decides the stage's result; the stages before it must have finished."""
        read = inputs(stage).items()
        found = {
            field: self.made_hash(text) or self.outside_hash(field, text) for field, text in read
        }
        return stage_record.describe(stage, found)

    def missing(self, stage: Stage, *, made: Sequence[str]) -> list[str]:
        """Each input that is not there and that no stage of `made` will make."""
        faults = []
        for field, text in inputs(stage).items():
            maker, place = self.maker(text), self.place(text)
            if maker is not None:
                if maker not in made and not self.is_done(maker):
                    faults.append(f"{field}={text!r}: the stage {maker} has not run")
            elif not is_there(place) and not on_hub(field, place):
                hint = f" (give --set {text}=PATH)" if self.recipe.reference(text) else ""
                faults.append(f"{field}: {place} does not exist{hint}")
        return faults

    def made_hash(self, text: str) -> str | None:
        """The content of a stage's output, as it was written down; None of what no stage makes."""
        maker = self.maker(text)
        if maker is None:
            return None
        output = text.partition(".")[2]
        return stage_record.output_hashes(self.folder(maker)).get(output)

    def outside_hash(self, field: str, text: str) -> str:
        """The content of what comes from outside, read once."""
        pictures = field.rpartition(".")[2] == _PICTURES
        key = (Path(self.place(text)), pictures)
        if key not in self._hashes:
            read = stage_record.listed_hash if pictures else stage_record.content_hash
            self._hashes[key] = read(key[0])
        return self._hashes[key]


def is_there(place: Path | str) -> bool:
    """Whether an input lies here: a file, a folder, or shards that a pattern finds."""
    return Path(place).exists() or stage_record.holds_shards(Path(place))


def on_hub(field: str, place: Path | str) -> bool:
    """Whether an input is a model that is not here, but has the form of a Hub id."""
    text = str(place)
    named = field.rpartition(".")[2] in _MODELS and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text)
    return bool(named) and not Path(text).exists()


def run_recipe(
    recipe: Recipe,
    workdir: Path,
    *,
    part: Part | None = None,
    folders: Mapping[str, Path] | None = None,
    say: Say = lambda line: None,
) -> Outcome:
    """Runs what is not done yet; every process of a run of several calls it.

    A stage's folder is that of its name in `workdir`, or the one that `folders` says.

    Raises:
      MarvelError: an input is missing (all of them are listed, before anything runs), or what a
        stage refuses.
    """
    run, chosen = Run(recipe, workdir, folders), (part or Part()).of(recipe)
    hosts.from_main(lambda: require_inputs(run, chosen))
    facts: dict[str, Any] = {"workdir": str(workdir), "stages": {}}
    lines: list[str] = []
    for number, stage in enumerate(chosen, start=1):
        head = f"[{number}/{len(chosen)}] {stage.name}"
        table = isinstance(stage, stage_runs.TABLES)
        if hosts.from_main(partial(_prepare, run, stage, head, say)) == "done":
            record = stage_record.read(run.folder(stage.name))
            facts["stages"][stage.name] = {"ran": False, **record["facts"]}
            lines += record["lines"] if table else []
            continue
        started, cpu = time.perf_counter(), time.process_time()
        outcome = _carry_out(run, stage, say)
        if outcome.code:
            left = {**facts, "stopped_in": stage.name, "interrupted": True}
            told = [f"{stage.name}: {line}" for line in outcome.lines]
            return Outcome(left, [*lines, *told], outcome.code)
        spent = {
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
        }
        hosts.from_main(partial(_finish, run, stage, spent, outcome))
        facts["stages"][stage.name] = {"ran": True, **spent, **outcome.facts}
        if table:
            lines += outcome.lines
        else:
            for line in outcome.lines:
                say(f"  {line}")
    ran = sum(one["ran"] for one in facts["stages"].values())
    before = ", the others were done" if ran < len(chosen) else ""
    lines.append(f"{workdir}: {ran} of {len(chosen)} stages run{before}")
    return Outcome(facts, lines)


def require_inputs(run: Run, chosen: Sequence[Stage]) -> None:
    """Refuses a run that would stop in the middle.

    Raises:
      MarvelError: naming every input that is missing.
    """
    made = [stage.name for stage in chosen]
    faults = [f"{s.name}: {fault}" for s in chosen for fault in run.missing(s, made=made)]
    fetched = {str(run.place(text)) for s in chosen for text in hub_ids(run, s)}
    for name in sorted(fetched):
        try:
            hub.resolve(name)
        except MarvelError as error:
            faults.append(str(error).rstrip("."))
    if faults:
        raise MarvelError(
            f"Nothing was run; {len(faults)} inputs are missing: {'; '.join(faults)}."
        )


def hub_ids(run: Run, stage: Stage) -> list[str]:
    """The inputs of a stage that are Hub ids."""
    read = inputs(stage).items()
    return [t for f, t in read if run.maker(t) is None and on_hub(f, run.place(t))]


def _prepare(run: Run, stage: Stage, head: str, say: Say) -> str:
    """On the first process: what is to be done with the stage's folder, and does it."""
    folder, described = run.folder(stage.name), run.described(stage)
    found = stage_record.examine(folder, described, stage)
    if found.state == "done":
        say(f"{head}: done before")
        return "done"
    if found.state == "changed":
        aside = stage_record.set_aside(folder)
        shown = ", ".join(found.differing[:5]) + (", ..." if len(found.differing) > 5 else "")
        say(f"{head}: changed ({shown}): its folder is kept as {aside.name}")
    say(f"{head}: {'goes on' if found.state == 'unfinished' else 'begins'}")
    stage_record.begin(folder, described)
    return found.state


def _carry_out(run: Run, stage: Stage, say: Say) -> Outcome:
    """Training is the work of all processes, everything else that of the first."""
    resolved, folder = run.resolved(stage), run.folder(stage.name)
    if isinstance(stage, Train):
        return stage_runs.run_stage(resolved, folder, say)
    kept: list[Outcome] = []

    def alone() -> None:
        kept.append(stage_runs.run_stage(resolved, folder, say))

    hosts.from_main(alone)
    return kept[0] if kept else Outcome({}, [])


def _finish(run: Run, stage: Stage, spent: dict[str, float], outcome: Outcome) -> None:
    told = {**spent, "facts": dict(outcome.facts), "lines": list(outcome.lines)}
    stage_record.finish(run.folder(stage.name), run.described(stage), stage, told=told)
    write_json(
        run.workdir / "recipe.json",
        {"data": dict(run.recipe.data), "stages": [one.name for one in run.recipe.stages]},
    )
