"""The plots of a study: curves and bars along its axes, what compute buys, loss against score."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.studies.analysis import (
    FLOPS,
    LOSS,
    SIZE,
    Analysis,
    Bars,
    Compute,
    Curve,
    LossAgainst,
)
from marvel_jax.studies.canvas import (
    AT_ONCE,
    COLOURS,
    HATCHES,
    INK,
    LINES,
    MARKERS,
    log_x,
    log_y,
    plot,
    scatter,
)
from marvel_jax.studies.choice import Better, Peak
from marvel_jax.studies.extrapolation import Extrapolation, held_out
from marvel_jax.studies.findings import COMPUTE, LOSS_AND_SCORE
from marvel_jax.studies.fit import Fit
from marvel_jax.studies.frontier import Frontier
from marvel_jax.studies.series import Series, is_number, short
from marvel_jax.studies.settings import labels, nearest
from marvel_jax.studies.trial import Trial

_STEPS = 120
_BARS_AT_ONCE = 4
_LEGEND_ROWS = 8
_LEGEND_LETTERS = 34  # of a label in two columns; a longer one has a row of its own


class Plot(NamedTuple):
    """A plot that was saved as NAME.png and NAME.svg.

    about: as in `findings.Finding`. caption: what it shows, for its foot and for ears.
    """

    name: str
    about: str
    caption: str


def draw_all(analysis: Analysis, folder: Path) -> list[Plot]:
    """Draws every plot of a study into `folder`.

    Raises:
      MarvelError: matplotlib is not installed.
    """
    plots: list[Plot] = []
    first = {axis["name"]: axis["values"][0] for axis in analysis.study["axes"] if axis["values"]}
    for axis in analysis.axes:
        for metric in analysis.metrics:
            curves, bars = analysis.along(axis, metric)
            if curves:
                drawn = nearest(curves, first, AT_ONCE)
                plots.append(_draw_curves(drawn, folder, number=len(plots), of=len(curves)))
            if bars:
                part = nearest(bars, first, _BARS_AT_ONCE)
                plots.append(_draw_bars(part, folder, number=len(plots), of=len(bars)))
    for one in analysis.compute:
        plots.append(_draw_front(one, folder, number=len(plots)))
        if one.frontier and any(isinstance(g.fit, Fit) for g in one.frontier.groups):
            plots.append(_draw_iso_flops(one, one.frontier, folder, number=len(plots)))
        if one.frontier and one.frontier.exponent is not None:
            plots.append(_draw_frontier(one, one.frontier, folder, number=len(plots)))
    for loss in analysis.losses:
        plots.append(_draw_loss(loss, analysis.axes, folder, number=len(plots)))
    return plots


def better_label(metric: str, better: Better) -> str:
    """A metric for an axis: "recall (higher is better)"."""
    return f"{metric} ({better} is better)"


def _draw_curves(curves: Sequence[Curve], folder: Path, *, number: int, of: int) -> Plot:
    series = curves[0].series
    name = _name(number, series.axis, series.metric)
    every = [float(x) for c in curves for x in _places(c.series)]
    with plot(folder, name) as axes:
        if min(every) > 0:
            log_x(axes, every, series.axis)
        else:
            axes.set_xlabel(series.axis)
            axes.set_xticks(sorted(set(every)), [short(x) for x in sorted(set(every))])
        axes.set_ylabel(better_label(series.metric, curves[0].better))
        for place, (curve, label) in enumerate(zip(curves, labels(curves), strict=True)):
            _draw_curve(axes, curve, place, label)
        if any(isinstance(c.extrapolation, Extrapolation) for c in curves):
            axes.scatter([], [], s=110, facecolors="none", edgecolors=INK, label="held out")
            axes.scatter([], [], s=50, marker="x", color=INK, label="predicted without it")
        _legend(axes)
    return Plot(
        name,
        series.axis,
        f"{series.metric} over {series.axis}{_held(curves)}: means of the seeds with bars of one "
        "standard deviation, the chosen curve with its 90% band (a dotted line at a peak that is "
        "claimed), and in a ring the largest, which a cross predicts from the others."
        f"{_left_away(len(curves), of)}",
    )


def _draw_curve(axes: Any, curve: Curve, place: int, label: str) -> None:
    series, colour = curve.series, COLOURS[place]
    x, y = np.asarray(_places(series)), np.asarray(series.values)
    levels = np.unique(x)
    means = np.asarray([y[x == level].mean() for level in levels])
    spreads = [y[x == level].std(ddof=1) if (x == level).sum() > 1 else np.nan for level in levels]
    axes.errorbar(levels, means, yerr=spreads, fmt="none", ecolor=colour, capsize=3, elinewidth=1.2)
    scatter(axes, x, y, series.trials, s=12, color=colour, alpha=0.45, linewidths=0)
    label = label or ("all trials" if series.mixed else "mean of the seeds")
    axes.plot(levels, means, linestyle="none", marker=MARKERS[place], color=colour, label=label)
    if curve.choice and curve.points is not None:
        smooth = np.geomspace(curve.points.levels[0], curve.points.levels[-1], _STEPS)
        low, high = curve.choice.fit.band(smooth)
        axes.fill_between(smooth, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(smooth, curve.choice.fit.predict(smooth), color=colour, linestyle=LINES[place])
        if isinstance(curve.peak, Peak) and curve.peak.found and curve.peak.x:
            axes.axvline(curve.peak.x.value, color=colour, linewidth=0.9, linestyle=":")
            axes.axvspan(curve.peak.x.low, curve.peak.x.high, color=colour, alpha=0.06)
    if isinstance(curve.extrapolation, Extrapolation) and curve.points is not None:
        found = curve.extrapolation
        left = curve.points.means[-1:] if held_out(curve.points).any() else np.empty(0)
        axes.scatter([found.x], left, s=110, facecolors="none", edgecolors=colour, linewidths=1.4)
        axes.scatter([found.x], [found.predicted.value], s=50, marker="x", color=colour, zorder=3)


def _draw_bars(bars: Sequence[Bars], folder: Path, *, number: int, of: int) -> Plot:
    series = bars[0].series
    name = _name(number, series.axis, series.metric)
    words = list(dict.fromkeys(repr(level) for b in bars for level in b.series.levels))
    ticks = {repr(level): short(level) for b in bars for level in b.series.levels}
    width = 0.8 / len(bars)
    with plot(folder, name) as axes:
        for place, (one, label) in enumerate(zip(bars, labels(bars), strict=True)):
            groups = [
                [
                    t.metrics[series.metric]
                    for t in one.series.trials
                    if repr(t.point[series.axis]) == w
                ]
                for w in words
            ]
            shown = [n for n, group in enumerate(groups) if group]
            center = np.asarray(shown) + (place - (len(bars) - 1) / 2) * width
            axes.bar(
                center,
                [float(np.mean(groups[n])) for n in shown],
                0.92 * width,
                yerr=[
                    float(np.std(groups[n], ddof=1)) if len(groups[n]) > 1 else np.nan
                    for n in shown
                ],
                color=COLOURS[place],
                edgecolor="white",
                hatch=HATCHES[place],
                capsize=3,
                error_kw={"ecolor": INK, "elinewidth": 1.2},
                label=label or None,
            )
            offset = (place - (len(bars) - 1) / 2) * width
            at = [words.index(repr(t.point[series.axis])) + offset for t in one.series.trials]
            scatter(
                axes, at, one.series.values, one.series.trials, s=14, color="white",
                edgecolors=INK, linewidths=0.8, zorder=3,
            )  # fmt: skip
        axes.set_xticks(range(len(words)), [ticks[word] for word in words])
        axes.grid(False, axis="x")
        axes.set_xlabel(series.axis)
        axes.set_ylabel(better_label(series.metric, bars[0].better))
        _legend(axes)
    return Plot(
        name,
        series.axis,
        f"{series.metric} by {series.axis}{_held(bars)}: means of the seeds with bars of one "
        f"standard deviation, and every trial as a dot.{_left_away(len(bars), of)}",
    )


def _draw_front(one: Compute, folder: Path, *, number: int) -> Plot:
    name = _name(number, "compute", one.metric)
    flops = [trial.metrics[FLOPS] for trial in one.trials]
    values = [trial.metrics[one.metric] for trial in one.trials]
    with plot(folder, name) as axes:
        log_x(axes, flops, "compute of training, FLOP")
        axes.set_ylabel(better_label(one.metric, one.better))
        scatter(
            axes, flops, values, one.trials, s=26, color="#8d8a96", label="trials", linewidths=0
        )
        front = [(flops[row], values[row]) for row in one.front]
        axes.step(
            [x for x, _ in front], [y for _, y in front], where="post", color=COLOURS[0],
            marker="o", label="best for its compute",
        )  # fmt: skip
        _legend(axes)
    return Plot(
        name,
        COMPUTE,
        f"{one.metric} over the FLOPs of training; the line joins the trials that none of as "
        "little compute equals.",
    )


def _draw_iso_flops(one: Compute, frontier: Frontier, folder: Path, *, number: int) -> Plot:
    name = _name(number, "iso-flop", one.metric)
    groups = [group for group in frontier.groups if isinstance(group.fit, Fit)]
    # Of many, those spread evenly over compute, both ends among them.
    chosen = [
        groups[n] for n in np.unique(np.linspace(0, len(groups) - 1, AT_ONCE).round().astype(int))
    ]
    with plot(folder, name) as axes:
        log_x(axes, [x for group in chosen for x in group.points.x], SIZE)
        axes.set_ylabel(better_label(one.metric, one.better))
        for place, group in enumerate(chosen):
            colour = COLOURS[place]
            trials = [one.trials[row] for row in group.rows]
            scatter(
                axes,
                [trial.metrics[SIZE] for trial in trials],
                [trial.metrics[one.metric] for trial in trials],
                trials,
                s=34,
                color=colour,
                marker=MARKERS[place],
                label=f"{short(float(f'{group.flops:.2g}'))} FLOP",
            )
            assert isinstance(group.fit, Fit)
            smooth = np.geomspace(group.points.levels[0], group.points.levels[-1], _STEPS)
            low, high = group.fit.band(smooth)
            axes.fill_between(smooth, low, high, color=colour, alpha=0.12, linewidth=0)
            axes.plot(smooth, group.fit.predict(smooth), color=colour, linestyle=LINES[place])
            if group.best is not None:
                best = group.fit.predict(group.best.value)
                axes.scatter([group.best.value], [best], s=150, marker="*", color=INK, zorder=3)
        if any(group.best is not None for group in chosen):
            axes.scatter([], [], s=110, marker="*", color=INK, label="best size")
        _legend(axes)
    return Plot(
        name,
        COMPUTE,
        f"Iso-FLOP curves: {one.metric} over the number of parameters among trials of one compute, "
        "with parabolas over ln size and a star where each is best.",
    )


def _draw_frontier(one: Compute, frontier: Frontier, folder: Path, *, number: int) -> Plot:
    name = _name(number, "frontier", one.metric)
    placed = [(group.flops, group.best) for group in frontier.groups if group.best is not None]
    flops = [compute for compute, _ in placed]
    sizes = [best.value for _, best in placed]
    assert frontier.exponent is not None
    with plot(folder, name) as axes:
        axes.errorbar(
            flops, sizes, fmt="o", color=COLOURS[0], capsize=3, label="best size, 90% interval",
            yerr=[[max(b.value - b.low, 0) for _, b in placed],
                  [max(b.high - b.value, 0) for _, b in placed]],
        )  # fmt: skip
        ends = np.asarray([min(flops), max(flops)])
        span = frontier.exponent
        label = f"C^{span.value:.2f} [{span.low:.2f}, {span.high:.2f}]"
        axes.plot(ends, frontier.size_at(ends), "--", color=COLOURS[1], label=label)
        log_x(axes, flops, "compute of training C, FLOP")
        log_y(axes, sizes, f"best {SIZE}")
        _legend(axes)
    return Plot(
        name,
        COMPUTE,
        f"The compute-optimal frontier by {one.metric}: the best number of {SIZE} over compute.",
    )


def _draw_loss(
    one: LossAgainst, axes_of_study: Sequence[str], folder: Path, *, number: int
) -> Plot:
    name = _name(number, "loss", one.metric)
    axis = _telling_axis(one, axes_of_study)
    groups: dict[str, list[Trial]] = {}
    for trial in one.trials:
        groups.setdefault(short(trial.point[axis]), []).append(trial)
    words = list(groups)
    if is_number([trial.point[axis] for trial in one.trials]):
        words.sort(key=lambda word: groups[word][0].point[axis])
    many = len(words) > AT_ONCE
    with plot(folder, name) as axes:
        for place, word in enumerate(words):
            scatter(
                axes,
                [trial.metrics[LOSS] for trial in groups[word]],
                [trial.metrics[one.metric] for trial in groups[word]],
                groups[word],
                s=36,
                color=COLOURS[0 if many else place],
                marker=MARKERS[0 if many else place],
                label=None if many else f"{axis}={word}",
            )
        axes.set_xlabel("loss of training, at its end")
        axes.set_ylabel(better_label(one.metric, "higher"))
        _legend(axes)
    by = "" if many else f", told apart by {axis}"
    return Plot(name, LOSS_AND_SCORE, f"{one.metric} over the last loss, a point a trial{by}.")


def _telling_axis(one: LossAgainst, axes: Sequence[str]) -> str:
    """The axis that turns the sign around, else the first with few values, else the first."""
    turned = [within.axis for within in one.within if within.opposite]
    few = [w.axis for w in one.within if len(w.levels) <= AT_ONCE]
    return (turned + few + list(axes))[0]


def _places(series: Series) -> list[float]:
    return [float(trial.point[series.axis]) for trial in series.trials]


def _held(parts: Sequence[Curve] | Sequence[Bars]) -> str:
    held = [one.series.label for one in parts if one.series.label]
    return f" with {held[0]}" if len(held) == 1 else ""


def _left_away(drawn: int, of: int) -> str:
    if drawn == of:
        return ""
    return f" Of {of} settings of the other axes the {drawn} nearest to the study's first."


def _legend(axes: Any) -> None:
    handles, told = axes.get_legend_handles_labels()
    if len(handles) > 1:
        columns = max(2, 1 + (len(handles) - 1) // _LEGEND_ROWS)
        if max(map(len, told)) > _LEGEND_LETTERS:
            columns = 1
        axes.figure.legend(loc="outside lower center", ncols=columns)


def _name(number: int, about: str, metric: str) -> str:
    letters = "".join(letter if letter.isalnum() else "-" for letter in f"{about}-{metric}")
    return f"{number + 1:02d}-{'-'.join(part for part in letters.lower().split('-') if part)}"
