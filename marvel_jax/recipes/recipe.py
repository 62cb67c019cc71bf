"""A recipe: named stages that hand files to one another, checked before anything runs."""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.recipes.config_file import run_file
from marvel_jax.recipes.overrides import override
from marvel_jax.recipes.stages import CACHES, KINDS, Stage, Train, inputs, known_outputs

DATA = "data"
"""Stands where a stage's name would: "data.mbeir" is the recipe's `data["mbeir"]`."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


class Reference(NamedTuple):
    """An output of a stage, or one of the recipe's data."""

    stage: str
    output: str


@dataclass(frozen=True)
class Recipe:
    """Stages in the order in which they run, and the data and models that come from outside.

    Raises:
      MarvelError: two stages of a name, or inputs that no earlier stage and no `data` gives; all
        of them are listed.
    """

    stages: tuple[Stage, ...]
    data: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = []
        names = [stage.name for stage in self.stages]
        for name in dict.fromkeys(names):
            if names.count(name) > 1:
                faults.append(f"{names.count(name)} stages are named {name!r}")
            if not _NAME.fullmatch(name) or name == DATA:
                faults.append(f"{name!r} is no name of a stage: use small letters, digits, - and _")
        if not names:
            faults.append("it has no stage")
        earlier: dict[str, Stage] = {}
        for stage in self.stages:
            for place, text in inputs(stage, caches=True).items():
                fault = self._fault(text, earlier)
                if fault is None and place in CACHES:
                    fault = self._unlike(stage, text, earlier)
                if fault is not None:
                    faults.append(f"{stage.name}: {place}={text!r}: {fault}")
            earlier[stage.name] = stage
        if faults:
            raise MarvelError(f"The recipe cannot run: {'; '.join(faults)}.")

    def reference(self, text: str) -> Reference | None:
        """What a text refers to; None where it is a path or a Hub id."""
        stage, dot, output = text.partition(".")
        if not dot or not stage or "/" in text or "." in output:
            return None
        if stage == DATA or any(one.name == stage for one in self.stages):
            return Reference(stage, output)
        # Nothing is so named: a stage that is misspelled, and not a file.
        return Reference(stage, output) if output in set(known_outputs()) else None

    def stage(self, name: str) -> Stage:
        """A stage by its name.

        Raises:
          MarvelError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise MarvelError(f"There is no stage {name!r}; there are {', '.join(names)}.")

    def with_settings(self, settings: Sequence[str]) -> "Recipe":
        """The recipe with fields changed by name: `data.mbeir=/big/M-BEIR`, or of a stage
        `instruct.config.mesh.fsdp=8`.

        Raises:
          MarvelError: a setting names no data or stage, or no field of it, or does not fit it.
        """
        data = dict(self.data)
        of_stage: dict[str, list[str]] = {}
        for setting in settings:
            name, _, rest = setting.partition(".")
            if name == DATA:
                key, equals, path = rest.partition("=")
                if not equals or key not in data:
                    known = ", ".join(f"{DATA}.{one}" for one in data) or "no data"
                    raise MarvelError(f"--set {setting}: the recipe has {known}.")
                data[key] = path.strip()
            else:
                self.stage(name)
                of_stage.setdefault(name, []).append(rest)
        stages = tuple(
            override(stage, of_stage[stage.name]) if stage.name in of_stage else stage
            for stage in self.stages
        )
        return replace(self, stages=stages, data=data)

    def with_trainings(self, settings: Sequence[str]) -> "Recipe":
        """The recipe with the config of every training changed: `mesh.fsdp=8`, `chunk_rows=4`.

        Raises:
          MarvelError: a setting names no field or does not fit one of them, or nothing is trained.
        """
        if not settings:
            return self
        if not any(isinstance(stage, Train) for stage in self.stages):
            raise MarvelError(f"--training {' '.join(settings)}: the recipe trains nothing.")
        stages = []
        for stage in self.stages:
            if isinstance(stage, Train):
                try:
                    stage = replace(stage, config=override(stage.config, settings))
                except MarvelError as error:
                    raise MarvelError(f"{stage.name}: {error}") from error
            stages.append(stage)
        return replace(self, stages=tuple(stages))

    def _unlike(self, stage: Stage, text: str, earlier: Mapping[str, Stage]) -> str | None:
        """What is wrong with vectors that a stage could not use, and would make again unseen."""
        found = self.reference(text)
        if found is None or found.output not in CACHES:
            return "name the vectors of an earlier stage"
        maker = earlier[found.stage]
        if maker.pool_vectors == stage.pool_vectors:
            return None
        kinds = " or ".join(
            kind.__name__ for kind in KINDS if kind.pool_vectors == stage.pool_vectors
        )
        return f"{found.stage!r} is of the kind {type(maker).__name__}: name one of {kinds}"

    def _fault(self, text: str, earlier: Mapping[str, Stage]) -> str | None:
        found = self.reference(text)
        if found is None:
            return None
        if found.stage == DATA:
            return (
                None if found.output in self.data else f"the recipe's data has {_list(self.data)}"
            )
        if found.stage not in earlier:
            close = difflib.get_close_matches(found.stage, earlier, n=1)
            meant = f" (is {close[0]!r} meant?)" if close else ""
            return f"no stage before it is named {found.stage!r}{meant}"
        outputs = earlier[found.stage].outputs
        return None if found.output in outputs else f"{found.stage!r} leaves {_list(outputs)}"


def load_recipe(path: Path) -> Recipe:
    """The `recipe` that a Python file defines.

    Raises:
      MarvelError: the file is missing, fails, or defines no Recipe.
    """
    found = getattr(run_file(path, defines="recipe"), "recipe", None)
    if not isinstance(found, Recipe):
        raise MarvelError(
            f"{path} must define `recipe`, a Recipe; found {type(found).__name__}. (A file that "
            "defines a single run, `config`, is for `marvel train`.)"
        )
    return found


def _list(names: Mapping[str, str]) -> str:
    return ", ".join(names) or "nothing"
