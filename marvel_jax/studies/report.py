"""The report of a study: a page, its plots, a table and the figures behind them."""

import csv
import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
import numpy as np

import marvel_jax.retrieval
from marvel_jax.files import atomic_folder, write_json, write_text
from marvel_jax.studies.analysis import Analysis, Curve, analyse
from marvel_jax.studies.canvas import run_url
from marvel_jax.studies.findings import COMPUTE, LOSS_AND_SCORE, Finding, findings, of
from marvel_jax.studies.fit import FORMULAS, PARAMETERS, Fit, NotFitted
from marvel_jax.studies.plots import Plot, draw_all
from marvel_jax.studies.points import Estimate
from marvel_jax.studies.series import is_number, short
from marvel_jax.studies.trial import REPORT

# What a trial took, beside the study's metrics.
COSTS = ("loss", "flops", "tokens", "pairs", "parameters", "seconds")


def write_report(folder: Path) -> Path:
    """Writes `report/` of a study's folder: index.html, table.csv, analysis.json and the plots.

    A report that is there already is replaced, once the new one is whole.

    Returns:
      The page.

    Raises:
      MarvelError: the folder holds no study, none of its trials is done, or matplotlib is not
        installed.
    """
    folder = Path(folder)
    analysis = analyse(folder)
    fresh = folder / f"{REPORT}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    with atomic_folder(fresh) as inside:
        plots = draw_all(analysis, inside)
        found = findings(analysis)
        write_json(inside / "analysis.json", to_dict(analysis, found))
        write_text(inside / "table.csv", table(analysis))
        write_text(inside / "index.html", render(analysis, found, plots, inside))
    shutil.rmtree(folder / REPORT, ignore_errors=True)
    fresh.rename(folder / REPORT)
    return folder / REPORT / "index.html"


def render(analysis: Analysis, found: list[Finding], plots: list[Plot], folder: Path) -> str:
    """The page, as HTML text; `folder` has the plots."""
    shared = Path(marvel_jax.retrieval.__file__).parent  # the style of the other reports
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent, shared]),
        autoescape=True,  # names and errors come from files
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["short"] = short
    drawings = {plot.name: _inline(folder / f"{plot.name}.svg", plot) for plot in plots}
    sections = [
        {
            "title": about,
            "findings": of(found, about),
            "plots": [plot for plot in plots if plot.about == about],
            "curves": [curve for curve in analysis.curves if curve.series.axis == about],
        }
        for about in (*analysis.axes, COMPUTE, LOSS_AND_SCORE)
    ]
    return environment.get_template("study.html.jinja").render(
        analysis=analysis,
        study=analysis.study,
        question=analysis.study.get("question", ""),
        values={axis["name"]: _values(axis["values"]) for axis in analysis.study["axes"]},
        sections=[one for one in sections if one["findings"] or one["plots"]],
        drawings=drawings,
        columns=_columns(analysis),
        run_url=run_url,
        formulas=FORMULAS,
        chosen=_chosen,
        parameters=_parameters,
    )


def table(analysis: Analysis) -> str:
    """Every trial as CSV: its point, seed, how it ended, its figures and where it ran."""
    columns = _columns(analysis)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow([*analysis.axes, "seed", "status", *columns, "error", "key", "folder"])
    for trial in (*analysis.done, *analysis.failed):
        writer.writerow(
            [
                *(trial.point.get(axis, "") for axis in analysis.axes),
                trial.seed,
                trial.status,
                *(trial.metrics.get(column, "") for column in columns),
                trial.error or "",
                trial.key,
                trial.folder,
            ]
        )
    return stream.getvalue()


def to_dict(analysis: Analysis, found: list[Finding]) -> dict[str, Any]:
    """What the report says, as JSON has it: no NaN, no infinity."""
    return {
        "name": analysis.study["name"],
        "trials": {
            "done": len(analysis.done),
            "failed": len(analysis.failed),
            "pending": analysis.pending,
        },
        "findings": [one._asdict() for one in found],
        "curves": [_curve(curve) for curve in analysis.curves],
        "compute": [
            {
                "metric": one.metric,
                "front": [one.trials[row].key for row in one.front],
                "frontier": None
                if one.frontier is None
                else {
                    "exponent": _plain(one.frontier.exponent),
                    "factor": one.frontier.factor,
                    "dropped": one.frontier.dropped,
                    "reason": one.frontier.reason,
                    "groups": [
                        {
                            "flops": group.flops,
                            "trials": [one.trials[row].key for row in group.rows],
                            "best": _plain(group.best),
                            "reason": group.reason,
                        }
                        for group in one.frontier.groups
                    ],
                },
            }
            for one in analysis.compute
        ],
        "loss": [
            {
                "metric": one.metric,
                "over all": _plain(one.over_all),
                "within": [_plain(within) for within in one.within],
            }
            for one in analysis.losses
        ],
        "failed": [
            {"key": trial.key, "point": trial.point, "seed": trial.seed, "error": trial.error}
            for trial in analysis.failed
        ],
    }


def _curve(curve: Curve) -> dict[str, Any]:
    extrapolation = curve.extrapolation
    return {
        "axis": curve.series.axis,
        "metric": curve.series.metric,
        "better": curve.better,
        "others": dict(curve.series.others),
        "mixed": curve.series.mixed,
        "trials": [trial.key for trial in curve.series.trials],
        "without the metric": [trial.key for trial in curve.series.missing],
        "not positive": curve.left_out,
        "asymptote": _plain(curve.asymptote),
        "chosen": None
        if curve.choice is None
        else {"shape": curve.choice.fit.shape, "rule": curve.choice.rule},
        "fits": [_fit(fit) for fit in curve.fits],
        "peak": _plain(curve.peak) if not isinstance(curve.peak, NotFitted) else _fit(curve.peak),
        "extrapolation": {"reason": extrapolation.reason}
        if isinstance(extrapolation, NotFitted)
        else _plain(vars(extrapolation)) | {"beats the last": extrapolation.beats_last},
    }


def _fit(fit: Fit | NotFitted) -> dict[str, Any]:
    if isinstance(fit, NotFitted):
        return {"shape": fit.shape, "not fitted": fit.reason}
    return {
        "shape": fit.shape,
        "formula": FORMULAS[fit.shape],
        "parameters": {name: _plain(fit.interval(name)) for name in PARAMETERS[fit.shape]},
        "level": fit.level,
        "root mean squared error": fit.error,
        "error at left-out levels": fit.held_out,
        "AICc": fit.aicc,
        "levels": fit.levels,
        "trials": fit.trials,
        "drawn anew": fit.how,
        "exponent at its bound": fit.at_bound,
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it; what is not finite is null."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    if hasattr(value, "_asdict"):
        return {name: _plain(field) for name, field in value._asdict().items()}
    if isinstance(value, Mapping):
        return {str(name): _plain(field) for name, field in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value


def _columns(analysis: Analysis) -> list[str]:
    """The study's metrics, then what the trials took, as far as any trial has it."""
    names = [*analysis.metrics, *COSTS]
    return [
        name
        for name in dict.fromkeys(names)
        if name in analysis.metrics or any(name in trial.metrics for trial in analysis.done)
    ]


def _values(values: Any) -> str:
    if isinstance(values, Mapping):
        scale = ", evenly in the logarithm" if values.get("log") else ""
        return f"drawn from {short(values['low'])} to {short(values['high'])}{scale}"
    if is_number(values):
        return ", ".join(short(value) for value in values)
    return ", ".join(str(value) for value in values)


def _chosen(curve: Curve, fit: Fit) -> bool:
    return curve.choice is not None and curve.choice.fit is fit


def _parameters(fit: Fit) -> list[tuple[str, Estimate]]:
    return [(name, fit.interval(name)) for name in PARAMETERS[fit.shape]]


def _inline(path: Path, plot: Plot) -> str:
    """An SVG file as a part of the page, where its points' links work and readers hear what it is.

    Its own names are made the plot's, since two plots of a page may use the same ones.
    """
    text = path.read_text(encoding="utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{plot.name}-", text)
    label = markupsafe.escape(plot.caption)
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
