"""A trial's key changes with what decides its result, and with nothing else."""

import dataclasses
import shutil

import pytest

from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Evaluate, Subset, Train
from marvel_jax.studies.keys import Keys


@pytest.fixture
def recipe(tiny_corpus, tiny_config) -> Recipe:
    config = load_config(tiny_config)
    data = dataclasses.replace(config.data, path="half.mbeir")
    return Recipe(
        (
            Subset("half", "data.mbeir", last=0.5),
            Train("train", dataclasses.replace(config, data=data)),
            Evaluate("evaluate", "train.model", "data.mbeir"),
        ),
        {"mbeir": str(tiny_corpus)},
    )


@pytest.mark.parametrize(
    "setting",
    ["half.last=0.25", "train.config.steps=9", "train.config.seed=1", "evaluate.seed=1"],
)
def test_a_field_changes_its_stage_and_what_reads_it(recipe, setting):
    before, after = Keys().of(recipe), Keys().of(recipe.with_settings([setting]))
    names = [stage.name for stage in recipe.stages]
    changed = [name for name in names if before.folders[name] != after.folders[name]]
    assert changed == names[names.index(setting.partition(".")[0]) :]
    assert before.key != after.key


@pytest.mark.parametrize("setting", ["chunk_rows=2", "mesh.fsdp=2", "checkpoint.every=1"])
def test_how_a_stage_is_carried_out_does_not_count(recipe, setting):
    assert Keys().of(recipe) == Keys().of(recipe.with_trainings([setting]))


def test_names_and_places_do_not_count_but_content_does(recipe, tmp_path):
    before = Keys().of(recipe)
    renamed = [
        dataclasses.replace(recipe.stages[0], name="part"),
        dataclasses.replace(
            recipe.stages[1],
            config=dataclasses.replace(
                recipe.stages[1].config,
                data=dataclasses.replace(recipe.stages[1].config.data, path="part.mbeir"),
            ),
        ),
        recipe.stages[2],
    ]
    moved = tmp_path / "moved"
    shutil.copytree(recipe.data["mbeir"], moved)
    other = Recipe(tuple(renamed), {"mbeir": str(moved)})
    assert Keys().of(other).key == before.key
    pool = next(moved.rglob("*union_test*pool.jsonl"))
    pool.write_text("".join(pool.read_text().splitlines(keepends=True)[::-1]))
    assert Keys().of(other).key != before.key
