"""A study runs what has not ended, shares what is the same, and survives what fails in it."""

import shutil
import textwrap
import threading
import time
from pathlib import Path

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json
from marvel_jax.recipes import stage_runs
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Subset
from marvel_jax.studies.axes import Axis
from marvel_jax.studies.locks import locked
from marvel_jax.studies.run import EXIT_FAILED_TRIALS, describe_study, planned, run_study
from marvel_jax.studies.study import Metric, Study, load_study
from marvel_jax.studies.trial import Trial, read_trials, write_trial


@pytest.fixture
def study(tiny_corpus) -> Study:
    """Parts of a part of a corpus: stages that take no time; a share of 1.5 cannot be."""
    return Study(
        base=Recipe(
            (Subset("half", "data.mbeir", last=0.5), Subset("part", "half.mbeir")),
            {"mbeir": str(tiny_corpus)},
        ),
        axes=(Axis("share", "part.last", (0.25, 1.5, 0.75)),),
        seeds=(0, 1),
        seeded=("part.seed",),
        metrics=(Metric("seconds", better="lower"),),
    )


@pytest.fixture
def ran(monkeypatch) -> list[str]:
    """The stages that do their work, one after the other."""
    found = []
    real = stage_runs.run_stage

    def counted(stage, folder, say):
        found.append(stage.name)
        return real(stage, folder, say)

    monkeypatch.setattr(stage_runs, "run_stage", counted)
    return found


def test_a_failing_point_is_written_down_and_the_others_go_on(study, tmp_path, ran):
    said: list[str] = []
    outcome = run_study(study, tmp_path, name="shares", say=said.append)
    assert outcome.code == EXIT_FAILED_TRIALS
    assert [one["number"] for one in outcome.facts["failed"]] == [2, 5]
    assert any("--retry" in line for line in outcome.lines)
    assert [line.split("]")[0] for line in said] == [f"[{number}/6" for number in range(1, 7)]
    trials = read_trials(tmp_path / "shares")
    assert [trial.status for trial in trials] == ["done", "failed", "done"] * 2
    assert [trial.seed for trial in trials] == [0] * 3 + [1] * 3
    assert "last=1.5" in trials[1].error and not trials[1].metrics
    # What all of them have in common has run once.
    assert ran == ["half"] + ["part"] * 4
    done = trials[0]
    assert done.point == {"share": 0.25} and done.metrics["cpu seconds"] >= 0
    folder = tmp_path / "shares" / done.folder
    assert (folder / "part" / "done.json").is_file()
    assert (folder / "half").resolve() == (
        tmp_path / "shares" / trials[2].folder / "half"
    ).resolve()


def test_what_has_ended_does_not_run_again_and_a_limit_counts_the_others(study, tmp_path, ran):
    first = run_study(study, tmp_path, name="shares", limit=2)
    assert first.facts["open"] == 4 and len(ran) == 2
    second = run_study(study, tmp_path, name="shares", number=3)
    assert second.code == 0 and second.facts["done"] == 1
    run_study(study, tmp_path, name="shares")
    before = list(ran)
    assert run_study(study, tmp_path, name="shares").facts["done"] == 4
    assert ran == before


def test_beyond_its_limit_nothing_is_waited_for(study, tmp_path, ran):
    run_study(study, tmp_path, name="shares", limit=1)
    third = planned(study)[2].keyed.key
    outcome = []

    def one_more():
        outcome.append(run_study(study, tmp_path, name="shares", limit=1))

    with locked(tmp_path / "shares" / "trials" / f".{third}.lock"):  # another process is at it
        thread = threading.Thread(target=one_more, daemon=True)
        thread.start()
        thread.join(60)
        assert not thread.is_alive(), "waits for a trial that it would not run"
    assert outcome[0].facts["open"] == 4  # the second trial, which fails, was the one more


def test_retry_runs_what_failed_and_nothing_else(study, tmp_path, ran, monkeypatch):
    counted = stage_runs.run_stage

    def full(stage, folder, say):
        if stage.name == "part" and stage.last == 0.75:
            raise OSError("no space left on the device")
        return counted(stage, folder, say)

    with monkeypatch.context() as patched:
        patched.setattr(stage_runs, "run_stage", full)
        outcome = run_study(study, tmp_path, name="shares")
    assert [one["number"] for one in outcome.facts["failed"]] == [2, 3, 5, 6]
    failed = read_trials(tmp_path / "shares")[2]
    assert failed.error == "OSError: no space left on the device"
    told = (tmp_path / "shares" / failed.folder / "error.txt").read_text()
    assert "Traceback" in told and "in full" in told
    ran.clear()
    assert run_study(study, tmp_path, name="shares").facts["done"] == 2 and ran == []
    again = run_study(study, tmp_path, name="shares", retry=True)
    assert [one["number"] for one in again.facts["failed"]] == [2, 5]
    assert ran == ["part"] * 2
    assert not (tmp_path / "shares" / failed.folder / "error.txt").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_what_is_interrupted_is_no_failure_and_goes_on(study, tmp_path, ran, monkeypatch, end):
    counted = stage_runs.run_stage

    def stopped(stage, folder, say):
        if len(ran) == 2:
            raise end
        return counted(stage, folder, say)

    with monkeypatch.context() as patched:
        patched.setattr(stage_runs, "run_stage", stopped)
        with pytest.raises(end):
            run_study(study, tmp_path, name="shares")
    assert [trial.status for trial in read_trials(tmp_path / "shares")] == ["done", "failed"]
    assert run_study(study, tmp_path, name="shares").facts["done"] == 4
    assert ran == ["half"] + ["part"] * 4


def test_a_training_that_was_told_to_stop_ends_the_study(study, tmp_path, monkeypatch):
    told = Outcome({}, ["stopped after 3 steps"], 143)
    monkeypatch.setattr(stage_runs, "run_stage", lambda *given: told)
    outcome = run_study(study, tmp_path, name="shares")
    assert outcome.code == 143 and "stopped after 3 steps" in outcome.lines[0]
    assert read_trials(tmp_path / "shares") == []


def test_studies_of_one_folder_share_their_trials(study, tmp_path, ran):
    run_study(study, tmp_path, name="shares")
    ran.clear()
    other = Study(
        base=study.base,
        axes=(Axis("part", "part.last", (0.75, 0.9)),),
        seeded=("part.seed",),
        metrics=study.metrics,
    )
    run_study(other, tmp_path, name="other")
    assert ran == ["part"]  # of 0.9
    first, second = read_trials(tmp_path / "other")
    assert first.key == read_trials(tmp_path / "shares")[2].key != second.key


def test_points_that_a_study_no_longer_has_are_left_out(study, tmp_path):
    run_study(study, tmp_path, name="shares")
    fewer = Study(
        base=study.base,
        axes=(Axis("share", "part.last", (0.75,)),),
        seeded=("part.seed",),
        metrics=study.metrics,
    )
    run_study(fewer, tmp_path, name="shares")
    assert [trial.point for trial in read_trials(tmp_path / "shares")] == [{"share": 0.75}]
    assert len(list((tmp_path / "shares" / "trials").glob("*.json"))) == 6


def test_an_axis_that_changes_nothing_is_refused(study, tmp_path):
    same = Study(base=study.base, axes=study.axes, seeds=(0, 1), seeded=(), metrics=study.metrics)
    with pytest.raises(MarvelError, match=r"trials 1 .*seed 0.* and 4 .*seed 1.*same computation"):
        run_study(same, tmp_path, name="shares")


def test_a_missing_input_stops_the_study_before_anything_runs(study, tmp_path, ran):
    gone = study.base.with_settings([f"data.mbeir={tmp_path / 'nowhere'}"])
    with pytest.raises(MarvelError, match="nowhere"):
        run_study(Study(base=gone, axes=study.axes, metrics=study.metrics), tmp_path, name="shares")
    assert ran == []
    with pytest.raises(MarvelError, match="trials 1 to 6"):
        run_study(study, tmp_path, name="shares", number=7)


def test_a_dry_run_counts_shared_work_once(study, tmp_path):
    before = describe_study(study, tmp_path, name="shares")
    assert before.facts["stages"] == 5 and before.facts["stages_done"] == 0
    run_study(study, tmp_path, name="shares", limit=1)
    after = describe_study(study, tmp_path, name="shares").facts
    assert after["stages_done"] == 2
    assert [one["status"] for one in after["trials"]][:3] == ["done", "refused", "to run"]


def test_one_process_waits_for_what_another_makes(tmp_path):
    order: list[str] = []
    taken = threading.Event()

    def first():
        with locked(tmp_path / ".train.lock"):
            taken.set()
            time.sleep(0.3)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert taken.wait(30)
    said: list[str] = []
    with locked(tmp_path / ".train.lock", say=said.append):
        order.append("second")
    thread.join(30)
    assert order == ["first", "second"] and "waiting" in said[0]


def test_what_another_process_is_at_comes_last(study, tmp_path, ran):
    keys = [one["key"] for one in describe_study(study, tmp_path, name="shares").facts["trials"]]
    taken = threading.Event()
    free = threading.Event()

    def other():
        with locked(tmp_path / "shares" / "trials" / f".{keys[0]}.lock"):
            taken.set()
            free.wait(60)

    said: list[str] = []

    def say(line):
        said.append(line)
        if "waiting" in line:
            free.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert taken.wait(30)
    outcome = run_study(study, tmp_path, name="shares", say=say)
    thread.join(60)
    assert outcome.facts["done"] == 4
    begun = [line for line in said if line.startswith("[")]
    assert begun[0].startswith("[2/6]") and begun[-1].startswith("[1/6]")
    assert [one.status for one in read_trials(tmp_path / "shares")][:2] == ["done", "failed"]


def test_a_folder_that_is_no_study_is_named(tmp_path):
    with pytest.raises(MarvelError, match=r"holds no study\.json"):
        read_trials(tmp_path)
    with pytest.raises(MarvelError, match="a failed trial has an error"):
        Trial("a", {}, 0, "failed")
    (tmp_path / "study.json").write_text("{}")
    write_trial(tmp_path, Trial("a", {"x": 1}, 0, "done", metrics={"loss": 2.0}))
    assert read_trials(tmp_path) == [Trial("a", {"x": 1}, 0, "done", metrics={"loss": 2.0})]
    (tmp_path / "trials/b.json").write_text('{"key": "b", "colour": 3}')
    with pytest.raises(MarvelError, match=r"b\.json is no trial"):
        read_trials(tmp_path)


STUDY = """\
from marvel_jax.recipes.recipe import Recipe
from marvel_jax.recipes.stages import Subset
from marvel_jax.studies.axes import Axis
from marvel_jax.studies.study import Metric, Study

study = Study(
    base=Recipe((Subset("part", {corpus!r}, last=0.5),)),
    axes=(Axis("share", "part.{field}", (0.25, 0.5)),),
    seeded=("part.seed",),
    metrics=(Metric("seconds", better="lower"),),
)
"""


def write_study(path: Path, corpus: Path, *, field: str = "last") -> Path:
    path.write_text(textwrap.dedent(STUDY).format(corpus=str(corpus), field=field))
    return path


def test_the_command(marvel, tiny_corpus, tmp_path):
    file = write_study(tmp_path / "shares.py", tiny_corpus)
    told = marvel("study", "run", file, "--workdir", tmp_path / "w", "--dry-run", "--json")
    assert told.code == 0 and len(told.json["trials"]) == 2 and not (tmp_path / "w").exists()
    ran = marvel("study", "run", file, "--workdir", tmp_path / "w", "--json")
    assert ran.code == 0 and ran.json["done"] == 2
    assert read_json(tmp_path / "w/shares/study.json")["axes"] == [
        {"name": "share", "values": [0.25, 0.5]}
    ]
    shutil.rmtree(tmp_path / "w/stages")
    assert marvel("study", "run", file, "--workdir", tmp_path / "w").code == 0
    wrong = marvel("study", "run", file, "--workdir", tmp_path / "w", "--size", "tiny")
    assert wrong.code == 1 and "must define `tiny`" in wrong.err
    assert marvel("study", "report", tmp_path).code == 1


def test_a_fault_of_the_file_is_not_a_failure_of_each_point(tiny_corpus, tmp_path):
    file = write_study(tmp_path / "shares.py", tiny_corpus, field="lst")
    with pytest.raises(MarvelError, match=r"shares\.py: no point.*lst: no such field"):
        load_study(file)
