"""The studies of configs/studies/: each can be told at both sizes, and says what it varies."""

from pathlib import Path

import numpy as np
import pytest

from marvel_jax.files import read_json
from marvel_jax.recipes.stages import Emoji, Train
from marvel_jax.studies.frontier import group_by_compute
from marvel_jax.studies.run import planned
from marvel_jax.studies.study import load_study
from marvel_jax.training.flops import Work, step_flops

STUDIES = Path(__file__).parents[2] / "configs" / "studies"
TRIALS = {  # full, tiny
    "batch_negatives": (30, 4),
    "model_data": (30, 4),
    "dimension_type_scann": (70, 12),
    "pool_size": (36, 4),
}
POD = "umarvel_batch_rank"


def test_no_study_is_forgotten():
    assert {path.stem for path in STUDIES.glob("*.py")} == {*TRIALS, POD}


@pytest.mark.parametrize("name", TRIALS)
def test_every_trial_is_a_recipe_and_all_start_from_one_corpus(name):
    for size, count in zip(("full", "tiny"), TRIALS[name], strict=True):
        trials = planned(load_study(STUDIES / f"{name}.py", size=size))
        assert len(trials) == count and not any(one.refusal for one in trials)
        corpora = {one.keyed.folders["corpus"] for one in trials}
        assert len(corpora) == 1
        for one in trials:
            assert isinstance(one.recipe.stages[0], Emoji)
            assert "marvel study run" in (STUDIES / f"{name}.py").read_text()


def test_every_batch_sees_as_many_pairs():
    trials = planned(load_study(STUDIES / "batch_negatives.py"))
    configs = [one.recipe.stage("again").config for one in trials]
    assert len({config.steps * config.data.global_batch for config in configs}) == 1
    assert {config.data.global_batch for config in configs} == {32, 64, 128, 256, 512}
    # The first round and what is mined with it are the same for all.
    assert len({one.keyed.folders["mine"] for one in trials}) == 1


def test_the_widths_of_a_compute_are_one_iso_flop_curve():
    trials = planned(load_study(STUDIES / "model_data.py"))
    spent = []
    for one in trials:
        stage = one.recipe.stage("train")
        assert isinstance(stage, Train)
        # Other work than the study reckons with: longer texts, fewer pictures, as other steps have.
        work = Work(tokens=4200, token_pairs=80_000, patches=1500, patch_pairs=20_000)
        step = step_flops(stage.config.model.scratch, work, queries=128, candidates=128)
        spent.append(step * stage.config.steps)
    groups = group_by_compute(np.asarray(spent))
    assert [len(group) for group in groups] == [10, 10, 10]  # 5 widths, 2 seeds
    for group in groups:
        assert {trials[row].task.point["width"] for row in group} == {16, 32, 64, 128, 192}


def test_the_7b_is_trained_on_every_query_once():
    study = load_study(STUDIES / f"{POD}.py")
    for task in study.tasks():
        stage = study.recipe(task).stage("train")
        assert isinstance(stage, Train)
        config = stage.config
        rest = config.steps * config.data.global_batch - 1_332_790
        assert 0 <= rest < config.data.global_batch
        assert config.model.adapters.alpha == 2 * config.model.adapters.rank


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_a_trial_of_each_runs(marvel, name, tmp_path):
    file = STUDIES / f"{name}.py"
    ran = marvel(
        "study", "run", file, "--workdir", tmp_path, "--size", "tiny", "--limit", "1", "--json"
    )
    assert ran.code == 0 and ran.json["done"] == 1, ran.err
    folder = tmp_path / f"{name}-tiny"
    (trial,) = (folder / "trials").glob("*.json")
    metrics = read_json(trial)["metrics"]
    named = [one["name"] for one in read_json(folder / "study.json")["metrics"]]
    assert set(named) <= set(metrics)
    for figure in ("flops", "tokens", "pairs", "parameters", "seconds", "loss"):
        assert metrics[figure] > 0
