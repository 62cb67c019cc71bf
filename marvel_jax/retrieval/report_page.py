"""The report's page: one HTML file with its pictures, charts and style inside, and no script."""

from pathlib import Path
from typing import Any

import jinja2

from marvel_jax.files import write_json, write_text
from marvel_jax.retrieval import report_format as form
from marvel_jax.retrieval.protocols import PoolScores, SetScores
from marvel_jax.retrieval.report import Example, Report
from marvel_jax.retrieval.report_analyses import Analyses
from marvel_jax.retrieval.report_charts import chart, scatter
from marvel_jax.retrieval.report_tables import tables
from marvel_jax.retrieval.report_views import published_view

FILTERS = (
    "percent",
    "span",
    "duration",
    "count",
    "milli",
    "points",
    "points_span",
    "probability",
    "modality",
    "size",
    "picture",
    "pictures",
    "texts",
    "alt",
)


def render(report: Report) -> str:
    """The page of a report, as HTML text. A picture that cannot be read is named as such."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names and captions come from a corpus
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update({name: getattr(form, name) for name in FILTERS})
    environment.globals["thumbnail"] = form.THUMBNAIL
    analyses = report.analyses or Analyses()
    rows = [_row(report, scores) for scores in report.evaluation.sets]
    return environment.get_template("report.html.jinja").render(
        report=report,
        rows=rows,
        heroes=_heroes(report),
        charts=[chart(curve) for curve in report.curves if len(curve.points) > 1],
        analyses=analyses,
        published=[published_view(one, report.evaluation) for one in analyses.published],
        approximate_mean=_approximate_mean(report),
        scatter=scatter(analyses.tradeoff) if analyses.tradeoff else None,
    )


def write_report(report: Report, folder: Path | str) -> Path:
    """Writes `report.json`, the tables as CSV and the self-contained `index.html`; returns the
    page's path.
    """
    folder = Path(folder)
    page = render(report)
    write_json(folder / "report.json", report.to_dict())
    for name, text in tables(report).items():
        write_text(folder / name, text)
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _row(report: Report, scores: SetScores) -> dict[str, Any]:
    """One test set as the template reads it."""
    local, union = scores.local_pool, scores.global_pool
    before = {one.name: one for one in report.untrained.sets} if report.untrained else {}
    untrained: PoolScores | None = before[scores.name].local_pool if before else None
    source, target = form.TASK_TITLES.get(scores.task, tuple(scores.task.split("->", 1)))
    main, chance = local.hit[scores.k], local.chance[scores.k]
    return {
        "scores": scores,
        "source": source,
        "target": target,
        "label": _label(report, scores),
        "main": main,
        "union": union.hit[scores.k],
        "untrained": untrained.hit[scores.k] if untrained else None,
        "chance": chance,
        "times_chance": main.mean / chance if chance else None,
        "examples": report.examples.get(scores.name, ()),
    }


def _approximate_mean(report: Report) -> float | None:
    """The mean over sets of the score by ScaNN."""
    found = report.evaluation.approximate
    return sum(found.hit.values()) / len(found.hit) if found and found.hit else None


def _label(report: Report, scores: SetScores) -> str | None:
    """How the set's task stands to training, where that is known."""
    if scores.held_out:
        return "held out"
    if report.trained is None:
        return None
    return "trained" if scores.name in report.trained else "evaluated only"


def _heroes(report: Report) -> list[Example]:
    """Up to two examples for the top of the page: those that went well, and said to be so."""
    tasks = {scores.name: scores.task for scores in report.evaluation.sets}
    order = {"t->i": 0, "(i,t)->i": 1}
    found: dict[str, Example] = {}
    galleries = report.analyses.galleries if report.analyses else ()
    shown = report.examples or {one.name: one.successes for one in galleries}
    for name, examples in shown.items():
        well = sorted(
            (example for example in examples if any(hit.right for hit in example.hits)),
            key=lambda example: [hit.right for hit in example.hits].index(True),
        )
        if well:
            found.setdefault(tasks[name], well[0])
    chosen = sorted(found, key=lambda task: order.get(task, 2 + len(task)))[:2]
    return [found[task] for task in chosen]
