"""The quickstart, in very small: everything is made once, and goes on where it stopped."""

import dataclasses
import json
from pathlib import Path

import pytest

from marvel_jax.collection.collection import Collection
from marvel_jax.collection.entry import KINDS
from marvel_jax.collection.judge import read_labelled
from marvel_jax.data import emoji
from marvel_jax.data.items import TASKS
from marvel_jax.errors import MarvelError
from marvel_jax.recipes import quickstart
from marvel_jax.recipes.emoji import train_config
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.training import loop
from marvel_jax.training.config import ModelConfig
from tests import tiny


def small_config(corpus: str, *, seed: int = 0):
    """The recipe with a model and a batch that compile in seconds."""
    config = train_config(corpus, seed=seed)
    architecture = tiny.architecture()
    vision = dataclasses.replace(architecture.vision, patch_size=14)
    return dataclasses.replace(
        config,
        model=ModelConfig(scratch=dataclasses.replace(architecture, vision=vision)),
        data=dataclasses.replace(config.data, global_batch=16),
    )


@pytest.fixture(scope="module")
def patched():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quickstart, "_SHORT_EMOJI", 60)
        patch.setattr(quickstart, "_SHORT_STEPS", 2)
        patch.setattr(quickstart, "train_config", small_config)
        yield patch


@pytest.fixture(scope="module")
def ran(patched, tmp_path_factory):
    """(folder, outcome) of a first run."""
    workdir = tmp_path_factory.mktemp("runs") / "quickstart"
    return workdir, quickstart.run_quickstart(workdir, seed=1, short=True)


def test_it_leaves_a_report_and_all_that_it_was_made_from(ran):
    workdir, outcome = ran
    for name in ("corpus", "train", "model", "store", "index", "untrained/store", "collection"):
        assert (workdir / name).is_dir(), name
    page = (workdir / "report/index.html").read_text()
    assert outcome.facts["report"] == str(workdir / "report/index.html")
    assert "<img" in page and "http://" not in page and "https://" not in page
    report = json.loads((workdir / "report/report.json").read_text(), parse_constant=pytest.fail)
    tasks = {one["task"] for one in report["evaluation"]["sets"]}
    assert tasks == {task.name for task in TASKS.values()}
    assert report["untrained"]["mean_local"]["mean"] >= 0
    assert [step for step, _ in report["curves"]["loss"]] == [0, 1]
    # By brute force, so exact, but vectors of an untrained model are nearly equal.
    assert report["evaluation"]["approximate"]["recall"] > 0.99
    collection = Collection.open(workdir / "collection")
    assert set(collection.manifest.counts) == set(KINDS) and collection.manifest.failures == 0
    queries = read_labelled(workdir / "labelled.jsonl", collection)
    assert {query.kind for query in queries} == set(KINDS)
    assert collection.labelled is not None
    for query in queries:
        assert (collection.rows_of(query.relevant) >= 0).all()
    assert outcome.lines[-1] == f"search it: marvel serve {workdir / 'collection'}"
    assert outcome.code == 0 and any("mean hit" in line for line in outcome.lines)
    json.dumps(dict(outcome.facts), allow_nan=False)


def test_a_second_run_makes_nothing_again(ran, monkeypatch):
    workdir, first = ran

    def files() -> dict[Path, int]:
        kept = ("corpus", "train/checkpoints", "model", "store", "index", "queries")
        kept += ("untrained/store", "untrained/queries", "collection")
        found = [path for name in kept for path in (workdir / name).rglob("*") if path.is_file()]
        return {path: path.stat().st_mtime_ns for path in found}

    def fail(*args, **options):
        pytest.fail("something is made again")

    before = files()
    assert len(before) > 100
    monkeypatch.setattr(emoji, "build", fail)
    monkeypatch.setattr(loop.MetricsFile, "write", fail)
    monkeypatch.setattr(Embedder, "encode", fail)
    second = quickstart.run_quickstart(workdir, seed=1, short=True)
    assert files() == before
    assert second.facts["scores"]["sets"] == first.facts["scores"]["sets"]
    assert (workdir / "report/index.html").is_file()


@pytest.mark.parametrize(("seed", "short"), [(2, True), (1, False)])
def test_a_folder_of_another_quickstart_is_refused(ran, seed, short):
    with pytest.raises(MarvelError, match=r"holds a quickstart with .*'seed': 1.*--workdir"):
        quickstart.run_quickstart(ran[0], seed=seed, short=short)


def test_a_negative_seed_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(MarvelError, match="seed -1 is negative"):
        quickstart.run_quickstart(tmp_path / "run", seed=-1, short=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("stage", ["train", "evaluate_embedder"])
def test_an_interrupted_one_goes_on_to_the_same_scores(ran, tmp_path, monkeypatch, stage):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setattr(quickstart, stage, interrupt)
        with pytest.raises(KeyboardInterrupt):
            quickstart.run_quickstart(tmp_path, seed=1, short=True)
    assert (tmp_path / "corpus").is_dir()
    assert (tmp_path / "model").is_dir() == (stage == "evaluate_embedder")
    monkeypatch.setattr(emoji, "build", lambda *args, **options: pytest.fail("built again"))
    outcome = quickstart.run_quickstart(tmp_path, seed=1, short=True)
    assert outcome.facts["scores"]["sets"] == ran[1].facts["scores"]["sets"]
    assert set(json.loads((tmp_path / "stages.json").read_text())) >= {"corpus", "train"}
