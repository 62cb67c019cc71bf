"""The report's charts, laid out for SVG: lines over steps, and points of score over size."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from marvel_jax.retrieval.analysis_tradeoff import Tradeoff, TradeoffPoint
from marvel_jax.retrieval.report import Curve
from marvel_jax.retrieval.report_format import count, percent

_CURVE_POINTS = 240
_CHART = (560, 210)
_PLOT = (52, 12, 548, 168)  # left, top, right, bottom of the plotting area


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
        x_ticks=[(x(tick), count(tick)) for tick in x_ticks],
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


class Mark(NamedTuple):
    """One point of a scatter: its place, its shape as an SVG path, what it says when pointed at."""

    x: float
    y: float
    shape: str
    tip: str
    hollow: bool


class Series(NamedTuple):
    """The points of one type of number, joined by a line; `number` chooses the colour."""

    name: str
    number: int
    line: str
    marks: list[Mark]
    key: str


class Scatter(NamedTuple):
    """Score over bytes a vector, in SVG user units: ticks are (position, label)."""

    summary: str
    width: int
    height: int
    plot: tuple[int, int, int, int]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    series: list[Series]


# A shape and a colour for each type, so that neither is needed to tell them apart.
_SHAPES = (
    "M-5 0A5 5 0 1 0 5 0A5 5 0 1 0-5 0Z",
    "M-4.5-4.5H4.5V4.5H-4.5Z",
    "M0-6L5.5 4.5H-5.5Z",
    "M0-6L6 0L0 6L-6 0Z",
)


def scatter(tradeoff: Tradeoff) -> Scatter:
    """Lays out a trade-off: bytes a vector on a logarithmic axis, exact search joined by lines."""
    width, height = 720, 340
    left, top, right, bottom = plot = (56, 14, 700, 288)
    sizes = [math.log2(one.bytes_per_vector) for one in tradeoff.points]
    scores = [one.score.mean for one in tradeoff.points]
    y_ticks = _ticks(min(scores), max(scores))
    first, last = math.floor(min(sizes)), math.ceil(max(sizes))
    last = max(last, first + 1)

    def x(size: float) -> float:
        return round(left + 14 + (right - left - 28) * (size - first) / (last - first), 1)

    def y(score: float) -> float:
        low, high = y_ticks[0], y_ticks[-1]
        return round(bottom - (bottom - top) * (score - low) / (high - low), 1)

    by_type: dict[str, list[TradeoffPoint]] = {}
    for one in tradeoff.points:
        by_type.setdefault(one.dtype, []).append(one)
    series = []
    for number, (dtype, points) in enumerate(by_type.items()):
        shape = _SHAPES[number % len(_SHAPES)]
        ordered = sorted(points, key=lambda one: one.bytes_per_vector)
        places = {one: (x(math.log2(one.bytes_per_vector)), y(one.score.mean)) for one in ordered}
        exact = [places[one] for one in ordered if one.search == "exact"]
        series.append(
            Series(
                name=dtype,
                number=number,
                line="M" + "L".join(f"{px} {py}" for px, py in exact) if len(exact) > 1 else "",
                marks=[
                    Mark(*places[one], shape, _tip(one), one.search != "exact") for one in ordered
                ],
                key=shape,
            )
        )
    digits = max(0, _digits(y_ticks) - 2)
    step = 1 + (last - first) // 10
    return Scatter(
        summary=f"score over bytes a vector: from {percent(min(scores))} to {percent(max(scores))}",
        width=width,
        height=height,
        plot=plot,
        x_ticks=[(x(size), count(2.0**size)) for size in range(first, last + 1, step)],
        y_ticks=[(y(tick), f"{100 * tick:.{digits}f}%") for tick in y_ticks],
        series=series,
    )


def _tip(one: TradeoffPoint) -> str:
    return (
        f"{one.dtype}, {one.dimension} numbers, {one.search}: {percent(one.score.mean)}, "
        f"{one.milliseconds:.3g} ms a question"
    )
