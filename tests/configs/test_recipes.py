"""The recipes of configs/: every field as it was written down, and every row of the paper's table.

After a change that is meant, `python -m tests.configs.test_recipes` writes the golden files anew.
"""

import json
import math
from pathlib import Path

import pytest

from marvel_jax.data.mbeir_sets import SETS
from marvel_jax.recipes.dry_run import describe_run, recipe_json
from marvel_jax.recipes.recipe import Recipe, load_recipe
from marvel_jax.recipes.run_command import sized
from marvel_jax.recipes.stages import Evaluate, Fuse, Mine, Report, Score, Train, inputs

CONFIGS = Path(__file__).parents[2] / "configs"
GOLDEN = Path(__file__).with_name("golden")
MAIN = ("umarvel_qwen2_vl_7b", "umarvel_qwen2_vl_2b", "emoji_full", "mm_embed_qwen2_vl_7b")
ABLATIONS = ("embedding", "instruction", "progressive", "batch", "negatives", "distillation")
NAMES = (*MAIN, "held_out", *(f"ablations/{name}" for name in ABLATIONS))


def recipe_of(name: str) -> Recipe:
    return load_recipe(CONFIGS / f"{name}.py")


def golden(name: str) -> Path:
    return GOLDEN / f"{name.replace('/', '_')}.json"


def test_no_recipe_is_forgotten():
    found = {
        path.relative_to(CONFIGS).with_suffix("").as_posix()
        for path in CONFIGS.rglob("*.py")
        if "recipe = " in path.read_text()
    }
    assert found == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_field_is_as_it_was_written_down(name):
    assert recipe_json(recipe_of(name)) == json.loads(golden(name).read_text())


@pytest.mark.parametrize("size", ["full", "small", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_can_be_told_at_any_size_without_data(name, size, tmp_path):
    recipe = sized(recipe_of(name), size)
    outcome = describe_run(recipe, tmp_path / "run")
    assert outcome.code == 0 and len(outcome.facts["stages"]) == len(recipe.stages)
    if size != "full":
        assert not outcome.facts["missing"] and not recipe.data
        trained = [stage for stage in recipe.stages if isinstance(stage, Train)]
        for stage in trained:
            assert stage.config.model.dtype == "float32"
            assert size != "tiny" or stage.config.steps <= 3
    assert not (tmp_path / "run").exists()


# Stage, its model before, batch, learning rate, temperature learned, rank: specification 0.1, 3.2.
ROWS = {
    "text": ("data.base", 576, 2e-4, False, 64),
    "captions": ("text.model", 960, 1e-4, False, 128),
    "instruct": ("captions.model", 3840, 4e-4, True, 128),
    "hard": ("instruct.model", 1088, 1.5e-5, True, 128),
    "reranker": ("data.base", 512, 2e-5, False, 128),
    "distill": ("hard.model", 128, 1e-5, True, 128),
    "reranker-plus": ("data.base", 512, 2e-5, False, 128),
}


@pytest.mark.parametrize("name", ["umarvel_qwen2_vl_7b", "umarvel_qwen2_vl_2b"])
def test_every_row_of_the_published_table_has_its_stage(name):
    trained = {s.name: s for s in recipe_of(name).stages if isinstance(s, Train)}
    assert list(trained) == list(ROWS)
    for stage, (before, batch, rate, learned, rank) in ROWS.items():
        config = trained[stage].config
        found = (config.model.source, config.data.global_batch, config.optimizer.learning_rate)
        assert found == (before, batch, rate), stage
        assert config.optimizer.learn_temperature is learned
        assert (config.model.adapters.rank, config.model.adapters.alpha) == (rank, 2 * rank)
        assert config.optimizer.warmup_fraction == 0.03 and config.optimizer.weight_decay == 0
    steps = {name: stage.config.steps for name, stage in trained.items()}
    assert steps["instruct"] == 348 and steps["hard"] == 1225 and steps["text"] == 957
    assert steps["distill"] == math.ceil(133_279 / 128)
    assert trained["captions"].config.loss.symmetric and trained["hard"].config.data.mined
    assert trained["hard"].config.data.hard_negatives == 5
    assert trained["distill"].config.embedding.max_pixels == 224 * 224
    kinds = {type(stage) for stage in recipe_of(name).stages}
    assert {Evaluate, Mine, Score, Fuse, Report} <= kinds


def test_what_is_held_out_is_in_no_training_and_alone_is_judged():
    recipe = recipe_of("held_out")
    for stage in recipe.stages:
        read = set(inputs(stage).values())
        if isinstance(stage, Train | Mine):
            assert "data.mbeir" not in read, stage.name
        if isinstance(stage, Evaluate):
            assert stage.data == "unseen.mbeir"
    seen, unseen = recipe.stage("seen"), recipe.stage("unseen")
    assert set(seen.exclude) == set(unseen.include)
    names = {one.full_name for one in SETS if one.name in ("nights", "oven", "infoseek")}
    assert set(unseen.include) == names and unseen.split == "test"


def test_the_emoji_recipe_judges_on_other_queries_than_it_fits_on():
    recipe = recipe_of("emoji_full")
    fitted, judged = recipe.stage("fitted"), recipe.stage("judged")
    assert fitted.seed == judged.seed and fitted.last <= judged.first and judged.most == 200
    (report,) = [stage for stage in recipe.stages if isinstance(stage, Report)]
    labels = [column.label for column in report.columns]
    assert labels == ["instruction-tuned", "+ mined", "+ distilled", "+ reranker fused"]


def test_ablations_have_the_rows_of_the_papers_tables():
    rows = {name: len(recipe_of(f"ablations/{name}").stages[-1].columns) for name in ABLATIONS}
    assert rows == {
        "embedding": 5,
        "instruction": 3,
        "progressive": 3,
        "batch": 9,
        "negatives": 7,
        "distillation": 7,
    }


def write_golden() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for name in NAMES:
        text = json.dumps(recipe_json(recipe_of(name)), indent=1, ensure_ascii=False)
        golden(name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_golden()
