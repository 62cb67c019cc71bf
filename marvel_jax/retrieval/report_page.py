"""The report's page: one HTML file with its pictures, charts and style inside, and no script."""

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import PIL.Image

from marvel_jax.data.images import load_image
from marvel_jax.data.items import Image, Item
from marvel_jax.files import write_json, write_text
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.protocols import PoolScores, SetScores
from marvel_jax.retrieval.report import Curve, Example, Report

THUMBNAIL = 96  # pixels: eight tasks of four examples stay far below 3 MB
_CURVE_POINTS = 240
_CHART = (560, 210)
_PLOT = (52, 12, 548, 168)  # left, top, right, bottom of the plotting area

TASK_TITLES = {
    "t->i": ("Words", "picture"),
    "t->t": ("Words", "words"),
    "t->(i,t)": ("Words", "picture with words"),
    "i->t": ("Picture", "words"),
    "i->i": ("Picture", "picture"),
    "(i,t)->t": ("Picture + words", "words"),
    "(i,t)->i": ("Picture + words", "picture"),
    "(i,t)->(i,t)": ("Picture + words", "picture with words"),
}


class Chart(NamedTuple):
    """A line chart in SVG user units: ticks are (position, label)."""

    name: str
    summary: str
    width: int
    height: int
    plot: tuple[int, int, int, int]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    line: str
    smooth: str
    end: tuple[float, float]
    last: str


def render(report: Report) -> str:
    """The page of a report, as HTML text.

    Raises:
      MarvelError: a picture of an example cannot be read; it is named.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # names and captions come from a corpus
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=_percent, span=_span, duration=_duration, count=_count, milli=_milli
    )
    environment.filters.update(picture=_picture, pictures=_pictures, texts=_texts, alt=_alt)
    rows = [_row(report, scores) for scores in report.evaluation.sets]
    return environment.get_template("report.html.jinja").render(
        report=report,
        rows=rows,
        heroes=_heroes(report),
        charts=[chart(curve) for curve in report.curves if len(curve.points) > 1],
        thumbnail=THUMBNAIL,
    )


def write_report(report: Report, folder: Path | str) -> Path:
    """Writes `report.json` and the self-contained `index.html`; returns the page's path.

    Raises:
      MarvelError: a picture of an example cannot be read; it is named.
    """
    folder = Path(folder)
    page = render(report)
    write_json(folder / "report.json", report.to_dict())
    write_text(folder / "index.html", page)
    return folder / "index.html"


def _row(report: Report, scores: SetScores) -> dict[str, Any]:
    """One test set as the template reads it."""
    local, union = scores.local_pool, scores.global_pool
    before = {one.name: one for one in report.untrained.sets} if report.untrained else {}
    untrained: PoolScores | None = before[scores.name].local_pool if before else None
    source, target = TASK_TITLES.get(scores.task, tuple(scores.task.split("->", 1)))
    main, chance = local.hit[scores.k], local.chance[scores.k]
    return {
        "scores": scores,
        "source": source,
        "target": target,
        "trained": scores.name in report.trained,
        "main": main,
        "union": union.hit[scores.k],
        "untrained": untrained.hit[scores.k] if untrained else None,
        "chance": chance,
        "times_chance": main.mean / chance,
        "examples": report.examples.get(scores.name, ()),
    }


def _heroes(report: Report) -> list[Example]:
    """Up to two examples for the top of the page: those that went well, and said to be so."""
    tasks = {scores.name: scores.task for scores in report.evaluation.sets}
    order = {"t->i": 0, "(i,t)->i": 1}
    found: dict[str, Example] = {}
    for name, examples in report.examples.items():
        well = sorted(
            (example for example in examples if any(hit.right for hit in example.hits)),
            key=lambda example: [hit.right for hit in example.hits].index(True),
        )
        if well:
            found.setdefault(tasks[name], well[0])
    chosen = sorted(found, key=lambda task: order.get(task, 2 + len(task)))[:2]
    return [found[task] for task in chosen]


def chart(curve: Curve) -> Chart:
    """Lays out a curve: its points joined, and a running mean where there are many."""
    left, top, right, bottom = _PLOT
    points = [(step, value) for step, value in curve.points if math.isfinite(value)]
    steps = [step for step, _ in points]
    values = [value for _, value in points]
    y_ticks = _ticks(min(values), max(values))
    x_ticks = [tick for tick in _ticks(min(steps), max(steps)) if tick <= max(steps)]
    first, last = min(steps[0], x_ticks[0]), max(steps[-1], x_ticks[-1])

    def x(step: float) -> float:
        return round(left + (right - left) * (step - first) / max(last - first, 1e-9), 1)

    def y(value: float) -> float:
        low, high = y_ticks[0], y_ticks[-1]
        return round(bottom - (bottom - top) * (value - low) / max(high - low, 1e-9), 1)

    def path(series: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{x(step)} {y(value)}" for step, value in series)

    window = max(1, len(points) // 40)
    means = [
        (steps[end], sum(values[max(0, end - window + 1) : end + 1]) / min(window, end + 1))
        for end in range(len(points))
    ]
    thin = max(1, len(points) // _CURVE_POINTS)
    smooth = [*means[::thin], means[-1]]
    digits = _digits(y_ticks)
    return Chart(
        name=curve.name,
        summary=f"{curve.name}: {values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step "
        f"{steps[-1]}, lowest {min(values):.4g}",
        width=_CHART[0],
        height=_CHART[1],
        plot=_PLOT,
        x_ticks=[(x(tick), _count(tick)) for tick in x_ticks],
        y_ticks=[(y(tick), f"{tick:.{digits}f}") for tick in y_ticks],
        line=path([*points[::thin], points[-1]]),
        smooth=path(smooth),
        end=(x(smooth[-1][0]), y(smooth[-1][1])),
        last=f"{values[-1]:.3g}",
    )


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers, about five, that enclose low and high."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    step = 10.0 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 5)
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(start, max(stop, start + 1) + 1)]


def _digits(ticks: Sequence[float]) -> int:
    return max(0, -math.floor(math.log10(ticks[1] - ticks[0]) + 1e-9))


def _picture(image: Image) -> str:
    """A picture as a data: URI, at most THUMBNAIL pixels a side."""
    thumbnail = load_image(image).copy()
    thumbnail.thumbnail((THUMBNAIL, THUMBNAIL), PIL.Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    thumbnail.save(stream, "WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _pictures(item: Item) -> list[Image]:
    return [part for part in item.parts if isinstance(part, Image)]


def _texts(item: Item) -> list[str]:
    return [part for part in item.parts if isinstance(part, str)]


def _alt(image: Image) -> str:
    if isinstance(image.source, str | Path):
        return Path(image.source).stem
    return Path(image.name).stem if image.name else "picture"


def _percent(value: float) -> str:
    """A share for reading: 61.3%, 0.04%, 100%."""
    share = 100 * value
    if share >= 99.95:
        return "100%"
    if share == 0:
        return "0%"
    return f"{share:.1f}%" if share >= 1 else f"{share:.2g}%"


def _span(interval: Interval) -> str:
    low, high = _percent(interval.low), _percent(interval.high)
    return f"{low.removesuffix('%')}\N{EN DASH}{high}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _count(number: float) -> str:
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:g}"


def _milli(value: float) -> str:
    return f"{value:.3g} ms"
