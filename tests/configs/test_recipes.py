"""The recipes of configs/: every field as it was written down, and every row of the paper's table.

After a change that is meant, `python -m tests.configs.test_recipes` writes the golden files anew.
"""

import json
import math
from pathlib import Path

import pytest

from marvel_jax.data.mbeir_sets import DATASETS, SETS, parse_choice
from marvel_jax.recipes.dry_run import describe_run, recipe_json
from marvel_jax.recipes.recipe import Recipe, load_recipe
from marvel_jax.recipes.run_command import sized
from marvel_jax.recipes.stages import (
    Emoji,
    Evaluate,
    Fuse,
    Mine,
    Recall,
    Report,
    Score,
    Subset,
    Synthetic,
    Train,
    inputs,
)

CONFIGS = Path(__file__).parents[2] / "configs"
GOLDEN = Path(__file__).with_name("golden")
MAIN = ("umarvel_qwen2_vl_7b", "umarvel_qwen2_vl_2b", "emoji_full", "mm_embed_qwen2_vl_7b")
ABLATIONS = (
    "attention_pooling",
    "embedding",
    "instruction",
    "progressive",
    "batch",
    "negatives",
    "distillation",
)
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


SPLITS = {Emoji: {"train", "test"}, Synthetic: {"train", "val", "test"}}
TASKS = {
    Emoji: {f"10:{task}" for task in (0, 1, 2, 3, 4, 6, 7, 8)},
    Synthetic: {f"{one.dataset}:{one.task}" for one in SETS},
}


def reads(stage):
    """(M-BEIR folder, split) of everything in a stage that reads one."""
    if isinstance(stage, Train):
        for part in stage.config.data.sources:
            if part.reader in ("mbeir", "tfds"):
                yield part.path, part.split
    elif isinstance(stage, Fuse):
        for one in (*stage.validation.values(), *stage.test.values()):
            yield one.data, one.split
    elif isinstance(stage, Evaluate):
        yield stage.data, "test"
    elif hasattr(stage, "split"):
        yield stage.data, stage.split


@pytest.mark.parametrize("size", ["small", "tiny"])
@pytest.mark.parametrize("name", NAMES)
def test_at_a_smaller_size_a_recipe_asks_for_nothing_that_its_corpus_lacks(name, size):
    """Sets, splits and weights, as the corpus's builder writes them."""
    recipe = sized(recipe_of(name), size)
    splits: dict[str, set[str]] = {}
    tasks: dict[str, set[str]] = {}
    for stage in recipe.stages:
        read = list(reads(stage))
        for folder, split in read:
            assert split in splits[folder], (stage.name, folder, split)
        if isinstance(stage, Emoji | Synthetic):
            folder = f"{stage.name}.mbeir"
            splits[folder], tasks[folder] = SPLITS[type(stage)], TASKS[type(stage)]
        if isinstance(stage, Subset):
            folder = f"{stage.name}.mbeir"
            splits[folder] = {stage.split}
            tasks[folder] = of_sets(stage, tasks[stage.data])
        if isinstance(stage, Train):
            found = {task for folder, _ in read for task in tasks[folder]}
            for part in stage.config.data.sources:
                if part.path in tasks:
                    of_sets(part, tasks[part.path])
                    numbers = {int(task.partition(":")[2]) for task in tasks[part.path]}
                    assert {*(part.task_weights or {})} <= numbers, stage.name
            if stage.config.distillation is not None:
                weights = stage.config.distillation.fused_task_weights or {}
                assert {*weights} <= found, stage.name
        if isinstance(stage, Fuse):
            validation = {one.data for one in stage.validation.values()}
            assert validation.isdisjoint(one.data for one in stage.test.values())
            if stage.scope == "task":
                for pool, one in stage.test.items():
                    assert tasks[one.data] <= tasks[stage.validation[pool].data]


def of_sets(part, tasks: set[str]) -> set[str]:
    """The tasks that `include` and `exclude` leave; each must name one that is there."""
    numbers = {**DATASETS, "emoji": 10}

    def named(text):
        match = parse_choice(text, numbers)
        return {
            task
            for task in tasks
            if match.dataset in (None, int(task.partition(":")[0]))
            and match.task in (None, int(task.partition(":")[2]))
        }

    for text in (*part.include, *part.exclude):
        assert named(text), text
    kept = set().union(*map(named, part.include)) if part.include else tasks
    return kept.difference(*map(named, part.exclude))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_alike_is_trained_alike_at_a_smaller_size(name):
    """Rows of a table with as many steps and as large a batch have so at any size."""
    recipe = recipe_of(name)
    trained = [stage.name for stage in recipe.stages if isinstance(stage, Train)]
    for size in ("small", "tiny"):
        shrunk = sized(recipe, size)
        found: dict[tuple, set[tuple]] = {}
        for stage in trained:
            full, small = recipe.stage(stage).config, shrunk.stage(stage).config
            key = (full.model.source, full.objective, full.data.global_batch, full.steps)
            found.setdefault(key, set()).add((small.data.global_batch, small.steps))
        assert all(len(one) == 1 for one in found.values()), found


def test_with_text_in_the_mixture_a_model_sees_as_many_lists():
    recipe = recipe_of("ablations/distillation")
    for made in (recipe, sized(recipe, "small")):
        with_text = made.stage("with-infonce-and-text").config
        without = made.stage("with-infonce").config
        lists, text = with_text.data.mixture
        share = lists.weight / (lists.weight + text.weight)
        assert with_text.steps * share == pytest.approx(without.steps, abs=1)


def test_validation_of_a_corpus_without_any_is_a_part_of_test_that_nobody_is_judged_on():
    shrunk = sized(recipe_of("held_out"), "small")
    fitted, judged = (shrunk.stage(name) for name in ("stand-in-val", "stand-in-test"))
    assert (fitted.split, judged.split) == ("test", "test") and fitted.data == judged.data
    assert fitted.seed == judged.seed and fitted.first == 0 and fitted.last <= judged.first
    origin = {one.name: one.data for one in shrunk.stages if isinstance(one, Subset)}

    def root(folder):
        name = folder.partition(".")[0]
        return name if name in ("stand-in-val", "stand-in-test") else root(origin[name])

    fuse = shrunk.stage("fuse")
    assert {root(one.data) for one in fuse.validation.values()} == {"stand-in-val"}
    assert {root(one.data) for one in fuse.test.values()} == {"stand-in-test"}
    # Nothing is added where nothing reads validation.
    assert "stand-in-val" not in [one.name for one in sized(recipe_of("held_out"), "tiny").stages]
    ablation = sized(recipe_of("ablations/negatives"), "small")
    assert "stand-in-val" not in [one.name for one in ablation.stages]


def test_a_recipe_that_makes_its_own_data_is_small_as_it_is():
    recipe = recipe_of("emoji_full")
    assert sized(recipe, "small") == recipe != sized(recipe, "tiny")


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
    names = {one.full_name for one in SETS if one.name in ("nights", "oven", "infoseek")}
    parts = {one.name: one for one in recipe.stages if isinstance(one, Subset)}
    seen = {name for name, one in parts.items() if set(one.exclude) == names}
    assert seen == {"seen", "seen-val"} and parts["seen"].candidates == "own"
    assert {name for name, one in parts.items() if set(one.include) == names} == {"unseen"}
    assert (parts["seen-val"].split, parts["unseen"].split) == ("val", "test")
    # A part of a part, and whatever is mined, scored or trained, is of what it is a part of.
    for stage in recipe.stages:
        if isinstance(stage, Subset) and stage.data != "data.mbeir":
            origin = stage.data.partition(".")[0]
            assert origin in seen and stage.split == parts[origin].split
            seen.add(stage.name)
    for stage in recipe.stages:
        if isinstance(stage, Subset) and stage.name in ("seen", "seen-val", "unseen"):
            continue
        read = {text.partition(".")[0] for text in inputs(stage).values()}
        assert "data.mbeir" not in inputs(stage).values(), stage.name
        if "unseen" in read:
            assert isinstance(stage, Evaluate | Recall | Score | Fuse), stage.name
            assert getattr(stage, "split", "test") == "test", stage.name
        if isinstance(stage, Evaluate):
            assert "unseen" in read
    fuse = recipe.stage("fuse")
    assert {one.data for one in fuse.test.values()} == {"unseen.mbeir"}
    assert {one.data for one in fuse.validation.values()} == {"val.mbeir"} and "val" in seen
    assert fuse.scope == "global"


def test_the_emoji_recipe_judges_on_other_queries_than_it_fits_on():
    recipe = recipe_of("emoji_full")
    fitted, judged = recipe.stage("fitted"), recipe.stage("judged")
    assert fitted.seed == judged.seed and fitted.last <= judged.first and judged.most == 200
    (report,) = [stage for stage in recipe.stages if isinstance(stage, Report)]
    labels = [column.label for column in report.columns]
    assert labels == [
        "instruction-tuned",
        "+ mined",
        "+ distilled",
        "+ distilled, no text",
        "+ reranker fused",
    ]


def test_ablations_have_the_rows_of_the_papers_tables():
    rows = {name: len(recipe_of(f"ablations/{name}").stages[-1].columns) for name in ABLATIONS}
    assert rows == {
        "attention_pooling": 4,
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
