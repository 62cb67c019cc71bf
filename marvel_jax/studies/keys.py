"""What a trial is, as hashes: equal ones are one computation, whichever study asks for it."""

from pathlib import Path
from typing import NamedTuple

from marvel_jax.files import hash_json
from marvel_jax.recipes import stage_record
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.runner import Run
from marvel_jax.recipes.stages import inputs


class Keyed(NamedTuple):
    """A trial's key, and by the name of each stage the name of the folder that it has."""

    key: str
    folders: dict[str, str]


class Keys:
    """Keys of recipes; what comes from outside is read once for all of them."""

    def __init__(self) -> None:
        self._outside: dict[tuple[str, str], str] = {}

    def of(self, recipe: Recipe) -> Keyed:
        """The keys of a recipe before anything of it has run.

        A stage's key is made of its fields, as the runner compares them (what only says how it is
        carried out does not count), of the keys of the stages before it, and of the content of what
        comes from outside. Its name does not count, nor do the stages that it does not read.

        Raises:
          MarvelError: an input is not there.
        """
        run = Run(recipe, Path())
        keys: dict[str, str] = {}
        for stage in recipe.stages:
            found = {}
            for field, text in inputs(stage).items():
                maker = run.maker(text)
                if maker is None:
                    found[field] = self._read(run, field, text)
                else:
                    found[field] = f"{keys[maker]}.{text.partition('.')[2]}"
            described = stage_record.describe(stage, found)
            decides = [described["kind"], described["fields"], found]
            keys[stage.name] = f"{described['kind'].lower()}-{hash_json(decides)}"
        return Keyed(hash_json(sorted(keys.values())), keys)

    def _read(self, run: Run, field: str, text: str) -> str:
        place = (str(run.place(text)), field.rpartition(".")[2])
        if place not in self._outside:
            self._outside[place] = run.outside_hash(field, text)
        return self._outside[place]
