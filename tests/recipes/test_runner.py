"""A recipe runs what is not done, takes what is, and loses nothing of what it sets aside."""

import json
import shutil
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from marvel_jax import cli
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json
from marvel_jax.recipes import runner, stage_record, stage_runs
from marvel_jax.recipes.dry_run import describe_run
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.runner import Part, run_recipe
from marvel_jax.recipes.stages import (
    Evaluate,
    Mine,
    Recall,
    Stage,
    Subset,
    Train,
)
from marvel_jax.training.config import DataConfig, ModelConfig, TrainConfig
from tests import tiny


@pytest.fixture
def recipe(tiny_corpus) -> Recipe:
    """Parts of parts of a corpus: three stages that take no time."""
    return Recipe(
        (
            Subset("half", "data.mbeir", last=0.5),
            Subset("quarter", "half.mbeir", last=0.5),
            Subset("eighth", "quarter.mbeir", last=0.5),
        ),
        {"mbeir": str(tiny_corpus)},
    )


def with_stage(recipe: Recipe, name: str, **changes: object) -> Recipe:
    stages = [replace(one, **changes) if one.name == name else one for one in recipe.stages]
    return replace(recipe, stages=tuple(stages))


def ran(outcome: Outcome) -> list[str]:
    return [name for name, one in outcome.facts["stages"].items() if one["ran"]]


def count(workdir: Path, name: str) -> int:
    return len(MbeirFolder(workdir / name / "corpus").source("train").queries)


def test_stages_run_in_order_and_leave_their_records(recipe, tmp_path):
    outcome = run_recipe(recipe, tmp_path)
    assert outcome.code == 0 and ran(outcome) == ["half", "quarter", "eighth"]
    assert [count(tmp_path, name) for name in ("half", "quarter", "eighth")] == [72, 36, 18]
    record = read_json(tmp_path / "quarter" / "done.json")
    before = read_json(tmp_path / "half" / "done.json")
    assert record["inputs"]["data"] == {
        "from": "half.mbeir",
        "hash": before["outputs"]["mbeir"]["hash"],
    }
    assert record["fields"]["last"] == 0.5 and record["fields"]["seed"] == 42
    assert record["versions"]["jax"] and record["seconds"] >= 0 and record["finished"]
    assert record["facts"] == {"queries": 36}


def test_a_second_run_runs_nothing(recipe, tmp_path, monkeypatch):
    run_recipe(recipe, tmp_path)
    monkeypatch.setattr(stage_runs, "run_stage", lambda *given: pytest.fail("a stage runs again"))
    assert ran(run_recipe(recipe, tmp_path)) == []


def test_a_changed_stage_runs_again_with_all_behind_it_and_the_old_ones_are_kept(recipe, tmp_path):
    run_recipe(recipe, tmp_path)
    said: list[str] = []
    outcome = run_recipe(with_stage(recipe, "quarter", last=0.25), tmp_path, say=said.append)
    assert ran(outcome) == ["quarter", "eighth"]
    assert count(tmp_path, "quarter") == 18 and count(tmp_path, "quarter.before-1") == 36
    assert any("quarter: changed (last)" in line and "quarter.before-1" in line for line in said)
    assert any("eighth: changed (the content of data)" in line for line in said)
    # And back: nothing was lost, but neither is it guessed that the first ones fit again.
    assert ran(run_recipe(recipe, tmp_path)) == ["quarter", "eighth"]
    assert count(tmp_path, "quarter.before-2") == 18


def test_input_data_that_changed_is_noticed_and_a_folder_that_moved_is_not(recipe, tmp_path):
    corpus = tmp_path / "corpus"
    shutil.copytree(recipe.data["mbeir"], corpus)
    run_recipe(replace(recipe, data={"mbeir": str(corpus)}), tmp_path / "run")
    moved = corpus.rename(tmp_path / "moved")
    there = replace(recipe, data={"mbeir": str(moved)})
    assert ran(run_recipe(there, tmp_path / "run")) == []
    instructions = moved / "instructions" / "query_instructions.tsv"
    instructions.write_text(instructions.read_text().replace("find the picture", "find it"))
    assert ran(run_recipe(there, tmp_path / "run"))[:1] == ["half"]


def test_a_home_folder_is_found_whoever_reads_the_place(recipe, tmp_path, monkeypatch):
    """No shell expands it in `--set data.mbeir=~/M-BEIR`."""
    shutil.copytree(recipe.data["mbeir"], tmp_path / "M-BEIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = recipe.with_settings(["data.mbeir=~/M-BEIR", "quarter.data=~/M-BEIR"])
    assert ran(run_recipe(at_home, tmp_path / "run")) == ["half", "quarter", "eighth"]
    assert [count(tmp_path / "run", name) for name in ("half", "quarter")] == [72, 72]


def test_what_was_removed_is_made_again(recipe, tmp_path):
    run_recipe(recipe, tmp_path)
    shutil.rmtree(tmp_path / "quarter" / "corpus")
    assert ran(run_recipe(recipe, tmp_path)) == ["quarter"]


def test_from_and_only_take_what_stands_before_as_it_is(recipe, tmp_path):
    run_recipe(recipe, tmp_path)
    # The corpus is gone, and the first stage would be another.
    gone = with_stage(replace(recipe, data={"mbeir": "nowhere"}), "half", last=0.3)
    changed = with_stage(gone, "eighth", last=0.25)
    assert ran(run_recipe(changed, tmp_path, part=Part(start="quarter"))) == ["eighth"]
    assert ran(run_recipe(gone, tmp_path, part=Part(only="eighth"))) == ["eighth"]
    assert not (tmp_path / "half.before-1").exists()


def test_parts_that_cannot_be_are_told(recipe, tmp_path):
    for part, message in (
        (Part(start="quarter", only="half"), "contradict"),
        (Part(start="quartre"), "no stage 'quartre'; there are half, quarter, eighth"),
        (Part(start="quarter"), "quarter: data='half.mbeir': the stage half has not run"),
        (Part(only="eighth"), "the stage quarter has not run"),
    ):
        with pytest.raises(MarvelError, match=message):
            run_recipe(recipe, tmp_path / "run", part=part)
    assert not (tmp_path / "run").exists()


def test_all_that_is_missing_is_told_before_anything_runs(tmp_path):
    stages = (
        Subset("a", "data.mbeir"),
        Subset("b", str(tmp_path / "nothing")),
        Mine("c", "data.base", "a.mbeir"),
        Mine("d", str(tmp_path / "model"), "a.mbeir"),
    )
    recipe = Recipe(stages, {"mbeir": "no/corpus/here", "base": "owner/model"})
    with pytest.raises(MarvelError) as refused:
        run_recipe(recipe, tmp_path / "run")
    message = str(refused.value)
    assert "4 inputs are missing" in message
    for told in (
        "a: data: no/corpus/here does not exist (give --set data.mbeir=PATH)",
        "nothing does not exist",
        "owner/model is not a folder here, and could not be had",
        f"d: model: {tmp_path / 'model'} does not exist",
    ):
        assert told in message
    assert not (tmp_path / "run").exists()


def test_a_stage_that_fails_leaves_those_before_it_done(recipe, tmp_path, monkeypatch):
    true_run = stage_runs.run_stage

    def fail_in_the_second(stage: Stage, folder: Path, say: object) -> Outcome:
        if stage.name == "quarter":
            raise MarvelError("the disk is full")
        return true_run(stage, folder, say)

    with monkeypatch.context() as broken:
        broken.setattr(stage_runs, "run_stage", fail_in_the_second)
        with pytest.raises(MarvelError, match="the disk is full"):
            run_recipe(recipe, tmp_path)
    assert not (tmp_path / "quarter" / "done.json").exists()
    assert ran(run_recipe(recipe, tmp_path)) == ["quarter", "eighth"]


def test_an_interrupted_training_ends_the_run_with_its_code(recipe, tmp_path, monkeypatch):
    def stop(stage: Stage, folder: Path, say: object) -> Outcome:
        return Outcome({}, ["stopped after 3 of 8 steps"], 143)

    monkeypatch.setattr(stage_runs, "run_stage", stop)
    monkeypatch.setattr(runner, "Train", Subset)
    outcome = run_recipe(recipe, tmp_path)
    assert outcome.code == 143 and outcome.facts["stopped_in"] == "half"
    assert not (tmp_path / "half" / "done.json").exists()


def test_a_dry_run_needs_nothing_and_tells_everything(recipe, tmp_path):
    config = TrainConfig(
        data=DataConfig(path="eighth.mbeir", row=tiny.ROW),
        model=ModelConfig(source="owner/model"),
        steps=30,
    )
    nowhere = replace(
        recipe, data={"mbeir": "nowhere"}, stages=(*recipe.stages, Train("t", config))
    )
    outcome = describe_run(nowhere, tmp_path / "run")
    assert outcome.code == 0 and not (tmp_path / "run").exists()
    half, quarter, _, trained = outcome.facts["stages"]
    assert half["missing"] == ["data: nowhere does not exist (give --set data.mbeir=PATH)"]
    assert half["reads"] == {"data": "nowhere (MISSING)"} and not quarter["missing"]
    assert quarter["reads"] == {"data": f"{tmp_path}/run/half/corpus (of half)"}
    assert quarter["writes"] == [f"{tmp_path}/run/quarter/corpus"]
    assert trained["reads"]["config.model.source"] == "owner/model (from the Hub)"
    assert trained["steps"] == outcome.facts["steps"] == 30
    assert outcome.facts["missing"] == [f"half: {half['missing'][0]}"]


def test_a_dry_run_tells_what_is_done_and_what_would_run_again(recipe, tmp_path):
    def states(recipe: Recipe) -> list[str]:
        return [one["state"] for one in describe_run(recipe, tmp_path).facts["stages"]]

    assert states(recipe) == ["to run"] * 3
    run_recipe(recipe, tmp_path, part=Part(only="half"))
    assert states(recipe) == ["done", "to run", "to run"]
    run_recipe(recipe, tmp_path)
    assert states(recipe) == ["done"] * 3
    first, second, _ = states(with_stage(recipe, "quarter", last=0.25))
    assert first == "done" and second == "to run again: changed last"


def test_a_dry_run_reads_no_data(recipe, tmp_path, monkeypatch):
    run_recipe(recipe, tmp_path)
    monkeypatch.setattr(stage_record, "hash_files", lambda *paths: pytest.fail("data is read"))
    assert {one["state"] for one in describe_run(recipe, tmp_path).facts["stages"]} == {"done"}


def test_the_command(tmp_path, tiny_corpus, capsys):
    path = tmp_path / "recipe.py"
    path.write_text(
        textwrap.dedent("""\
        from marvel_jax.recipes.recipe import Recipe
        from marvel_jax.recipes.stages import Subset

        recipe = Recipe((Subset("part", "data.mbeir", most=2),), {"mbeir": "nowhere"})
        """)
    )

    def marvel(*given: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main([*map(str, given), "--json"])
        return (int(stop.value.code or 0), *capsys.readouterr())

    asked = ("run", path, "--workdir", tmp_path / "run")
    code, out, _ = marvel(*asked, "--dry-run")
    assert code == 0 and "MISSING data: nowhere" in out
    code, _, err = marvel(*asked, "--dry-run", "--training", "chunk_rows=4")
    assert code == 1 and "--training chunk_rows=4: the recipe trains nothing" in err
    code, _, err = marvel(*asked)
    assert code == 1 and "Nothing was run; 1 inputs are missing" in err
    assert not (tmp_path / "run").exists()
    here = (*asked, "--set", f"data.mbeir={tiny_corpus}")
    code, out, err = marvel(*here)
    assert code == 0 and json.loads(out.splitlines()[-1])["stages"]["part"]["queries"] == 6
    assert "[1/1] part: begins" in err
    assert "[1/1] part: done before" in marvel(*here)[2]
    assert marvel("table", path, "--workdir", tmp_path / "run")[0] == 1


def test_vectors_of_a_mining_serve_another_of_the_same_model(
    tiny_model, tiny_corpus, tmp_path, monkeypatch
):
    from marvel_jax.retrieval.embedder import Embedder

    loose = ("threshold=None", "k=2")
    again = Mine("again", "data.base", "data.mbeir", settings=loose, vectors="mine.vectors")
    stages = (Mine("mine", "data.base", "data.mbeir", settings=loose), again)
    recipe = Recipe(stages, {"mbeir": str(tiny_corpus), "base": str(tiny_model)})
    run_recipe(recipe, tmp_path, part=Part(only="mine"))
    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "encode", lambda *given, **more: pytest.fail("encoded again"))
        run_recipe(recipe, tmp_path)
    name = "negatives.jsonl"
    assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()
    # Killed behind its file, or without the manifest that tells what the file is.
    told = read_json(tmp_path / "again" / "done.json")["facts"]
    assert told["queries"] == 144 and told["negatives"] == 288
    for lost in ("done.json", "negatives.manifest.json"):
        (tmp_path / "again" / lost).unlink()
        assert ran(run_recipe(recipe, tmp_path)) == ["again"]
        assert read_json(tmp_path / "again" / "done.json")["facts"] == told
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "mine" / name).read_bytes()
    # Of other queries only the pool's vectors serve.
    part = Subset("part", "data.mbeir", last=0.5)
    third = replace(again, name="third", data="part.mbeir")
    run_recipe(replace(recipe, stages=(*stages, part, third)), tmp_path)
    made = tmp_path / "third" / "vectors"
    assert (made / "pool").is_symlink() and not (made / "queries-seed-0").is_symlink()


def test_a_recall_of_what_was_evaluated_embeds_nothing(
    tiny_model, tiny_corpus, tmp_path, monkeypatch
):
    from marvel_jax.retrieval.embedder import Embedder

    found = Recall("recall", "data.base", "data.mbeir", depth=5, vectors="evaluate.vectors")
    stages = (Evaluate("evaluate", "data.base", "data.mbeir"), found)
    recipe = Recipe(stages, {"mbeir": str(tiny_corpus), "base": str(tiny_model)})
    run_recipe(recipe, tmp_path, part=Part(only="evaluate"))
    monkeypatch.setattr(Embedder, "encode", lambda *given, **more: pytest.fail("encoded again"))
    assert ran(run_recipe(recipe, tmp_path)) == ["recall"]
