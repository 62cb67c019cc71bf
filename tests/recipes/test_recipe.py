"""A recipe is refused before it runs if a stage reads what no stage before it makes."""

import pytest

from marvel_jax.data.batch import RowShape
from marvel_jax.data.sources import SourceConfig
from marvel_jax.errors import MarvelError
from marvel_jax.recipes import run_command, stages
from marvel_jax.recipes.recipe import Recipe, Reference, load_recipe
from marvel_jax.recipes.stages import (
    Column,
    Evaluate,
    Fuse,
    Judged,
    Mine,
    Recall,
    Report,
    Score,
    Stage,
    Subset,
    Train,
    inputs,
    with_inputs,
)
from marvel_jax.training.config import DataConfig, ModelConfig, TrainConfig

ROW = RowShape(tokens=64, patches=64, items=4)


def training(source: str = "data.base", **data: object) -> TrainConfig:
    given = {"path": "data.mbeir", "row": ROW, **data}
    return TrainConfig(data=DataConfig(**given), model=ModelConfig(source=source), steps=3)


def chain() -> tuple[Stage, ...]:
    return (
        Train("instruct", training()),
        Mine("mine", "instruct.model", "data.mbeir"),
        Train("hard", training("instruct.model", mined="mine.negatives", hard_negatives=2)),
        Evaluate("scores", "hard.model", "data.mbeir"),
        Report("table", (Column("hard", "scores.scores"),)),
    )


DATA = {"mbeir": "m", "base": "b"}


def test_what_a_stage_reads_is_found_wherever_it_stands():
    assert inputs(chain()[2]) == {
        "config.data.path": "data.mbeir",
        "config.data.mined": "mine.negatives",
        "config.model.source": "instruct.model",
    }
    parts = (SourceConfig(path="a", name="x"), SourceConfig(path="b", mined="c", name="y"))
    mixed = Train("t", training(path=None, mixture=parts, hard_negatives=1))
    assert inputs(mixed) == {
        "config.data.mixture[0].path": "a",
        "config.data.mixture[1].path": "b",
        "config.data.mixture[1].mined": "c",
        "config.model.source": "data.base",
    }
    fuse = Fuse("f", {"local": Judged("v", "d")}, {"local": Judged("t", "d", "test")})
    assert inputs(fuse) == {
        "validation[local].scores": "v",
        "validation[local].data": "d",
        "test[local].scores": "t",
        "test[local].data": "d",
    }


def test_inputs_are_replaced_and_nothing_else_is():
    for stage in (*chain(), Fuse("f", {"local": Judged("v", "d")}, {"local": Judged("t", "d")})):
        changed = with_inputs(stage, lambda text: f"<{text}>")
        assert inputs(changed) == {field: f"<{text}>" for field, text in inputs(stage).items()}
        back = with_inputs(changed, lambda text: text[1:-1])
        assert back == stage and type(back) is type(stage)


def test_vectors_are_shared_but_are_no_input():
    stage = Mine("again", "m", "d", vectors="mine.vectors")
    assert "vectors" not in inputs(stage)
    assert inputs(stage, caches=True)["vectors"] == "mine.vectors"
    assert with_inputs(stage, lambda text: "x").vectors == "x"


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ("scores.vectors", "'scores' is of the kind Evaluate: name one of Mine"),
        ("mine.negatives", "name the vectors of an earlier stage"),
        ("runs/old/vectors", "name the vectors of an earlier stage"),
    ],
)
def test_vectors_that_a_stage_could_not_use_are_refused(vectors, message):
    """Unnoticed, millions of candidates would be embedded again."""
    again = Mine("again", "hard.model", "data.mbeir", vectors=vectors)
    with pytest.raises(MarvelError, match=message):
        Recipe((*chain(), again), DATA)
    for maker in ("scores", "mine"):
        recall = Recall("recall", "hard.model", "data.mbeir", vectors=f"{maker}.vectors")
        if maker == "scores":
            Recipe((*chain(), recall), DATA)
            continue
        with pytest.raises(MarvelError, match="name one of Recall or Evaluate"):
            Recipe((*chain(), recall), DATA)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Subset("s", "d", first=0.5, last=0.5), "s: first=0.5, last=0.5: give 0 <= first"),
        (lambda: Subset("s", "d", last=1.5), "last=1.5: give 0 <= first < last <= 1"),
        (lambda: Subset("s", "d", most=0), "s: most=0: give 1 or more, or None"),
        (lambda: Mine("m", "b", "d", preset="best"), "m: preset and settings: .*choose one of"),
        (lambda: Mine("m", "b", "d", settings=("kk=3",)), "m: preset .*kk: no such field"),
        (lambda: Mine("m", "b", "d", settings=("9:0.k=0",)), "m: preset .*give 1 or more"),
        (lambda: Mine("m", "b", "d", pool="both"), "m: pool='both': choose one of local, global"),
        (lambda: Mine("m", "b", "d", pool="local", scann=True), "m: scann=True searches the whole"),
        (
            lambda: Mine("m", "b", "d", settings=("teacher_above=0.5",)),
            "m: settings: teacher_above needs a reranker's scores",
        ),
        (lambda: Recall("r", "b", "d", depth=0), "r: depth=0: give 1 or more"),
        (lambda: Score("s", "b", "l", "d", top=0), "s: top=0: give 1 or more"),
        (
            lambda: Score("s", "b", "l", "d", prompt="what"),
            "s: prompt='what': choose one of marvel",
        ),
        (lambda: Fuse("f", {}, {}), "f: validation has the pools none, test none: give both"),
        (
            lambda: Fuse("f", {"local": Judged("a", "b")}, {"global": Judged("a", "b")}),
            "f: validation has the pools local, test global: give both the same",
        ),
        (
            lambda: Fuse("f", {"wide": Judged("a", "b")}, {"wide": Judged("a", "b")}),
            "f: validation has the pools wide",
        ),
        (lambda: Report("t", ()), r"t: columns=\[\]: give one or more"),
        (lambda: Report("t", (Column("a", "x"), Column("a", "y"))), "each a label of its own"),
    ],
)
def test_what_a_stage_could_not_do_is_refused_before_any_stage_runs(make, message):
    with pytest.raises(MarvelError, match=message):
        make()


def test_changes_to_every_training_reach_all_of_them_and_nothing_else():
    recipe = Recipe(chain(), DATA).with_trainings(["mesh.fsdp=8", "chunk_rows=4"])
    for stage, before in zip(recipe.stages, chain(), strict=True):
        if not isinstance(stage, Train):
            assert stage == before
            continue
        assert stage.config.mesh.fsdp == 8 and stage.config.chunk_rows == 4
        assert stage.config.data == before.config.data
    with pytest.raises(MarvelError, match=r"instruct: --set chunk_row: no such field"):
        Recipe(chain(), DATA).with_trainings(["chunk_row=4"])
    with pytest.raises(MarvelError, match="the recipe trains nothing"):
        Recipe((Subset("a", "m"),)).with_trainings(["chunk_rows=4"])


def test_a_text_is_a_reference_or_a_path():
    recipe = Recipe(chain(), DATA)
    assert recipe.reference("mine.negatives") == Reference("mine", "negatives")
    assert recipe.reference("data.mbeir") == Reference("data", "mbeir")
    # What looks like an output is one, of a stage that is misspelled.
    assert recipe.reference("mien.negatives") == Reference("mien", "negatives")
    for path in ("data/mbeir", "./mine.negatives", "nli_for_simcse.csv", "Qwen/Qwen2-VL-2B", "x"):
        assert recipe.reference(path) is None


def test_every_input_that_nothing_makes_is_listed_at_once():
    broken = (
        Train("instruct", training("data.bass")),
        Mine("mine", "instruct.modle", "data.mbeir"),
        Train("hard", training("instruct.model", mined="mien.negatives", hard_negatives=2)),
        Evaluate("scores", "later.model", "data.mbeir"),
        Train("later", training()),
        Mine("other", "instruct.model", "data.mbeir", vectors="nowhere.vectors"),
    )
    with pytest.raises(MarvelError) as refused:
        Recipe(broken, DATA)
    message = str(refused.value)
    for told in (
        "instruct: config.model.source='data.bass': the recipe's data has mbeir, base",
        "mine: model='instruct.modle': 'instruct' leaves model",
        "hard: config.data.mined='mien.negatives': no stage before it is named 'mien' (is 'mine'",
        "scores: model='later.model': no stage before it is named 'later'",
        "other: vectors='nowhere.vectors'",
    ):
        assert told in message


@pytest.mark.parametrize("name", ["data", "A b", "", "a/b", "a.b"])
def test_names_that_cannot_be_folders_or_references_are_refused(name):
    with pytest.raises(MarvelError, match="no name of a stage"):
        Recipe((Subset(name, "m"),))


def test_two_stages_of_a_name_are_refused():
    with pytest.raises(MarvelError, match="2 stages are named 'a'"):
        Recipe((Subset("a", "m"), Subset("a", "m")))


def test_settings_reach_data_and_fields_deep_in_a_stage():
    recipe = Recipe(chain(), DATA).with_settings(
        ["data.mbeir=/big/M-BEIR", "hard.config.optimizer.learning_rate=1e-5", "mine.seed=3"]
    )
    assert recipe.data["mbeir"] == "/big/M-BEIR"
    assert recipe.stage("hard").config.optimizer.learning_rate == 1e-5
    assert recipe.stage("mine").seed == 3
    assert recipe.stage("instruct") == chain()[0]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.nli=x", "the recipe has data.mbeir, data.base"),
        ("data.mbeir", "the recipe has"),
        ("nothing.seed=1", "no stage 'nothing'; there are instruct, mine"),
        ("mine.sed=1", "no such field"),
        ("mine.model=gone.model", "no stage before it is named 'gone'"),
    ],
)
def test_settings_that_fit_nothing_are_refused(setting, message):
    with pytest.raises(MarvelError, match=message):
        Recipe(chain(), DATA).with_settings([setting])


def test_every_kind_of_stage_has_its_work_and_leaves_something():
    from marvel_jax.recipes import stage_runs

    kinds = set(Stage.__subclasses__())
    assert kinds == set(stages.KINDS) == set(stage_runs._RUNS)
    assert all(kind.outputs for kind in kinds)


def test_a_file_that_defines_no_recipe_is_told(tmp_path, tiny_config):
    with pytest.raises(MarvelError, match=r"must define `recipe`.*marvel train"):
        load_recipe(tiny_config)
    broken = tmp_path / "broken.py"
    broken.write_text("from marvel_jax.recipes.recipe import Recipe\nrecipe = Recipe(())\n")
    with pytest.raises(MarvelError, match=r"broken.py: .*it has no stage"):
        load_recipe(broken)


def test_a_size_cannot_make_data_up_that_it_does_not_know():
    recipe = Recipe((Subset("a", "data.video"),), {"video": "v"})
    with pytest.raises(
        MarvelError, match=r"reads data.video, for which a smaller size has nothing"
    ):
        run_command.sized(recipe, "tiny")
