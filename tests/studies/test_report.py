"""A study's report: every trial is there and linked, every finding is the trials' own."""

import csv
import json
import re
import xml.etree.ElementTree as ET
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.studies import canvas
from marvel_jax.studies.analysis import analyse
from marvel_jax.studies.findings import COMPUTE, LOSS_AND_SCORE, findings, of
from marvel_jax.studies.series import series_of, short
from marvel_jax.studies.settings import nearest
from marvel_jax.studies.trial import Trial
from tests.studies.invented_study import batch_study, model_data_study, write_study

needs_matplotlib = pytest.mark.skipif(
    find_spec("matplotlib") is None,
    reason="matplotlib is not installed (the studies extra)",
)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    return batch_study(tmp_path_factory.mktemp("studies") / "batch")


@pytest.fixture(scope="module")
def report(study) -> Path:
    pytest.importorskip("matplotlib")
    from marvel_jax.studies.report import write_report

    (study / "report").mkdir()
    (study / "report" / "stale.png").write_bytes(b"")
    page = write_report(study)
    assert page == study / "report" / "index.html"
    return page.parent


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_all_files_are_there_and_nothing_of_an_earlier_report(report):
    names = {path.name for path in report.iterdir()}
    assert {"index.html", "table.csv", "analysis.json"} <= names and "stale.png" not in names
    plots = {path.stem for path in report.glob("*.svg")}
    assert plots == {path.stem for path in report.glob("*.png")} and len(plots) >= 5
    for path in report.glob("*.svg"):
        ET.parse(path)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in report.glob("*.png"))


def test_every_trial_links_to_its_run_from_the_plots_and_the_table(report, study):
    page = (report / "index.html").read_text()
    drawn = (report / "01-batch-mean-local.svg").read_text()
    for trial in analyse(study).done:
        assert f'<a href="../runs/{trial.key}/">' in page
        assert f'xlink:href="../runs/{trial.key}/"' in drawn
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (report / link).exists(), link
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page)
    assert {one or other for one, other in used} <= set(ids)


def test_what_trials_say_is_shown_and_never_run(report):
    page = (report / "index.html").read_text()
    assert "<script" not in page and "<b>bold</b>" not in page
    assert "out of memory: &lt;script&gt;" in page and "2 failed" in page


def test_the_table_has_every_trial(report):
    with (report / "table.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 36
    assert [row["status"] for row in rows].count("failed") == 2
    assert float(rows[0]["mean local"]) > 0 and rows[0]["folder"] == "runs/0000"


def test_the_findings_are_in_the_page_and_in_strict_json(report):
    found = json.loads((report / "analysis.json").read_text(), parse_constant=refuse)
    page = (report / "index.html").read_text()
    for one in found["findings"]:
        assert one["sentence"].split("[")[0].split("<")[0] in page
    assert found["trials"] == {"done": 34, "failed": 2, "pending": 0}
    peaks = [one["peak"] for one in found["curves"] if one["metric"] == "mean local"]
    assert peaks[0]["found"] and peaks[0]["x"]["low"] < 256 < peaks[0]["x"]["high"]


def test_a_peak_and_simpsons_trap_are_told_in_words(study):
    found = findings(analyse(study))
    first = of(found, "batch")[0].sentence
    assert "best near" in first and "more is not better" in first
    assert "Beware" in of(found, LOSS_AND_SCORE)[0].sentence
    (negatives, *_) = of(found, "negatives")
    assert any("in <b>bold</b> is best" in detail for detail in negatives.details)


def test_compute_and_size_make_a_frontier(tmp_path):
    analysis = analyse(model_data_study(tmp_path / "model_data"))
    by_metric = {one.metric: one for one in analysis.compute}
    exponent = by_metric["loss"].frontier.exponent
    assert exponent.value == pytest.approx(0.35 / 0.65, abs=0.05)
    assert "C^0.5" in " ".join([one.sentence for one in of(findings(analysis), COMPUTE)])
    errors = [
        curve.extrapolation.relative for curve in analysis.curves if curve.series.metric == "loss"
    ]
    assert max(map(abs, errors)) < 0.05


@needs_matplotlib
def test_iso_flop_curves_and_the_frontier_are_drawn(tmp_path):
    from marvel_jax.studies.plots import draw_all

    analysis = analyse(model_data_study(tmp_path / "model_data", metrics=("loss",)))
    names = [plot.name for plot in draw_all(analysis, tmp_path)]
    assert [name[3:] for name in names[2:]] == ["compute-loss", "iso-flop-loss", "frontier-loss"]
    assert all(
        (tmp_path / f"{name}.{kind}").stat().st_size for name in names for kind in ("png", "svg")
    )


def test_what_a_curve_cannot_hold_is_told(tmp_path):
    def measure(point, noise):
        score = float("nan") if point["negatives"] == 9 else 0.4 + 0.01 * noise
        return {"score": score}

    levels = [0, 1, 3, 9]
    folder = write_study(
        tmp_path / "few",
        axes={"negatives": levels},
        metrics={"score": "higher", "speed": "higher"},
        points=[{"negatives": level} for level in levels],
        measure=measure,
    )
    analysis = analyse(folder)
    ((_, told, _),) = of(findings(analysis), "negatives")
    assert "No curve was fitted: 2 different x" in told
    assert "2 trials at 0 or below" in told and "2 trials have no finite score" in told
    assert analysis.absent == ["speed"]


@needs_matplotlib
def test_of_many_settings_there_is_one_sentence_and_one_plot(tmp_path):
    levels, gains = (350, 700, 1400), {100: 0.2, 200: 0.1, 300: 0.0, 400: -0.1}
    kinds = ("mean", "last")
    folder = write_study(
        tmp_path / "many",
        axes={"kind": list(kinds), "steps": list(levels), "pool": list(gains)},
        metrics={"score": "higher"},
        points=[
            {"kind": kind, "steps": steps, "pool": pool}
            for kind in kinds
            for steps in levels
            for pool in gains
        ],
        measure=lambda point, noise: {
            "score": 0.5
            + gains[point["pool"]] * np.log2(point["steps"] / 350) / 2
            + 0.05 * (point["kind"] == "mean" and point["pool"] > 100)
            - 0.05 * (point["kind"] == "mean" and point["pool"] == 100)
            + 1e-5 * noise
        },
    )
    analysis = analyse(folder)
    found = findings(analysis)
    (steps,) = of(found, "steps")
    assert (
        "in 8 settings of the other axes, from 350 to 1,400 it changes by +0.05" in steps.sentence
    )
    assert "by \N{MINUS SIGN}0.1 with kind=" in steps.sentence and len(steps.details) == 8
    assert all(detail.startswith("score over steps with kind=") for detail in steps.details)
    (kind,) = of(found, "kind")
    assert "in 12 settings of the other axes, best is mean in 9, last in 3." in kind.sentence
    assert "lie 0.05 in the middle" in kind.sentence
    from marvel_jax.studies.plots import draw_all

    drawn = [plot for plot in draw_all(analysis, tmp_path) if plot.about in ("kind", "steps")]
    assert [plot.about for plot in drawn] == ["kind", "steps"]
    assert "Of 12 settings of the other axes the 4 nearest" in drawn[0].caption
    curves = [curve for curve in analysis.curves if curve.series.axis == "steps"]
    first = {"kind": "mean", "steps": 350, "pool": 100}
    assert [one.series.label for one in nearest(curves, first, 5)] == [
        *("kind=mean, pool=100", "kind=mean, pool=200", "kind=mean, pool=300"),
        *("kind=mean, pool=400", "kind=last, pool=100"),
    ]


def test_a_random_design_is_one_curve_over_all_trials():
    rng = np.random.default_rng(0)
    trials = [
        Trial(f"{n}", {"a": float(a), "b": float(b)}, 0, "done", None, {"score": 0.5}, "runs/x")
        for n, (a, b) in enumerate(rng.random((8, 2)))
    ]
    (one,) = series_of(trials, axis="a", metric="score", axes=["a", "b"])
    assert one.mixed and len(one.trials) == 8 and not one.others


def test_without_matplotlib_the_extra_is_named(study, monkeypatch):
    def missing(name: str):
        raise ImportError(name)

    monkeypatch.setattr(canvas.importlib, "import_module", missing)
    with pytest.raises(MarvelError, match=r"marvel-jax\[studies\]"):
        canvas.load()


def test_a_study_without_a_finished_trial_is_refused_with_its_first_error(tmp_path):
    folder = write_study(
        tmp_path / "none",
        axes={"batch": [1]},
        metrics={"score": "higher"},
        points=[{"batch": 1}],
        measure=lambda point, noise: "no such recipe",
    )
    with pytest.raises(MarvelError, match=r"no trial is done.*no such recipe"):
        analyse(folder)


@pytest.mark.parametrize("folder", ["", "/etc", "../elsewhere", "runs/../../elsewhere"])
def test_a_run_outside_of_the_study_is_not_linked_to(folder):
    trial = Trial("k", {}, 0, "done", None, {}, folder)
    assert canvas.run_url(trial) is None


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.03125, "0.0312"), (38400, "38,400"), (1_200_000, "1.2M"), (3e13, "30T"), (True, "True"),
     ("int8", "int8"), (0, "0"), (-0.5, "-0.5"), (3e20, "3e+20")],
)  # fmt: skip
def test_numbers_are_written_for_reading(value, words):
    assert short(value) == words
