"""All that a study's trials say: curves along its axes, what compute buys, loss against score."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object
from marvel_jax.studies.choice import Better, Choice, Peak, choose, find_peak
from marvel_jax.studies.correlation import (
    Correlation,
    NotCorrelated,
    Within,
    correlate,
    correlate_within,
)
from marvel_jax.studies.extrapolation import Extrapolation, extrapolate
from marvel_jax.studies.fit import ANYTHING, PARAMETERS, Fit, NotFitted, fit_curve
from marvel_jax.studies.frontier import Frontier, compute_frontier, pareto_front
from marvel_jax.studies.points import Points, points_of
from marvel_jax.studies.series import Series, finite, is_number, series_of
from marvel_jax.studies.trial import STUDY, Trial, read_trials

LOSS, FLOPS, SIZE = "loss", "flops", "parameters"


@dataclass(frozen=True)
class Curve:
    """What is known of one metric along one axis of numbers.

    points: the trials at positive x; left_out: how many others there are, since the curves are
    over ln x. fits: every shape, or why not. asymptote: what the power law's offset was held to.
    """

    series: Series
    better: Better
    points: Points | None
    left_out: int
    asymptote: tuple[float, float]
    fits: tuple[Fit | NotFitted, ...]
    choice: Choice | None
    peak: Peak | NotFitted
    extrapolation: Extrapolation | NotFitted


@dataclass(frozen=True)
class Bars:
    """One metric along an axis of words: a curve of all else being equal has no x to be over."""

    series: Series
    better: Better


@dataclass(frozen=True)
class Compute:
    """What compute buys of one metric. rows of `frontier` and `front` are places in `trials`."""

    metric: str
    better: Better
    trials: tuple[Trial, ...]
    front: np.ndarray
    frontier: Frontier | None


@dataclass(frozen=True)
class LossAgainst:
    """How the loss goes with one metric."""

    metric: str
    trials: tuple[Trial, ...]
    over_all: Correlation | NotCorrelated
    within: tuple[Within, ...]


@dataclass(frozen=True)
class Analysis:
    """A study with what its trials say. `study` is its study.json."""

    study: Mapping[str, Any]
    done: tuple[Trial, ...]
    failed: tuple[Trial, ...]
    curves: tuple[Curve, ...]
    bars: tuple[Bars, ...]
    compute: tuple[Compute, ...]
    losses: tuple[LossAgainst, ...]

    @property
    def axes(self) -> list[str]:
        """The names of the axes."""
        return [axis["name"] for axis in self.study["axes"]]

    @property
    def metrics(self) -> dict[str, Better]:
        """The study's metrics, and whether more of each is better."""
        return {metric["name"]: metric["better"] for metric in self.study["metrics"]}

    def along(self, axis: str, metric: str) -> tuple[list[Curve], list[Bars]]:
        """The curves, or the bars, of a metric along an axis: one a setting of the other axes."""
        asked = (axis, metric)
        return (
            [one for one in self.curves if (one.series.axis, one.series.metric) == asked],
            [one for one in self.bars if (one.series.axis, one.series.metric) == asked],
        )

    @property
    def absent(self) -> list[str]:
        """The metrics that no trial has."""
        return [
            metric
            for metric in self.metrics
            if not any(finite(trial, metric) for trial in self.done)
        ]

    @property
    def pending(self) -> int:
        """How many trials of the study have not ended."""
        listed = self.study.get("trials")
        return max(0, len(listed) - len(self.done) - len(self.failed)) if listed else 0


def analyse(folder: Path) -> Analysis:
    """Reads a study's folder and works out what its trials say.

    Raises:
      MarvelError: the folder holds no study, or none of its trials is done.
    """
    folder = Path(folder)
    trials = read_trials(folder)
    study = read_json_object(folder / STUDY)
    if bad := [name for name in ("name", "axes", "metrics", "seeds") if name not in study]:
        raise MarvelError(f"{folder / STUDY}: {bad} are missing. Run the study again.")
    done = tuple(trial for trial in trials if trial.status == "done")
    failed = tuple(trial for trial in trials if trial.status == "failed")
    if not done:
        told = f", {len(failed)} failed: {failed[0].error}" if failed else ""
        raise MarvelError(
            f"{folder}: no trial is done{told}. Run the study before its report is written."
        )
    axes = [axis["name"] for axis in study["axes"]]
    metrics: dict[str, Better] = {one["name"]: one["better"] for one in study["metrics"]}
    curves: list[Curve] = []
    bars: list[Bars] = []
    for axis in axes:
        numbers = is_number([trial.point[axis] for trial in done if axis in trial.point])
        for metric, better in metrics.items():
            for series in series_of(done, axis=axis, metric=metric, axes=axes):
                if len(series.levels) < 2:
                    continue
                if numbers:
                    curves.append(_curve(series, better))
                else:
                    bars.append(Bars(series, better))
    compute = [_compute(done, metric, better) for metric, better in metrics.items()]
    losses = [
        _losses(done, metric, axes)
        for metric, better in metrics.items()
        if metric != LOSS and better == "higher"
    ]
    return Analysis(
        study=study,
        done=done,
        failed=failed,
        curves=tuple(curves),
        bars=tuple(bars),
        compute=tuple(one for one in compute if one),
        losses=tuple(one for one in losses if one),
    )


def asymptote_of(values: Sequence[float], better: Better) -> tuple[float, float]:
    """What a power law's offset is held to: a share stays from 0 to 1, a cost or loss above 0."""
    if min(values) < 0:
        return ANYTHING
    if better == "lower":
        return (0.0, np.inf)
    return (0.0, 1.0) if max(values) <= 1 else ANYTHING


def _curve(series: Series, better: Better) -> Curve:
    x = np.asarray([trial.point[series.axis] for trial in series.trials], np.float64)
    y = np.asarray(series.values)
    positive = x > 0
    asymptote = asymptote_of(series.values, better)
    # One seed a curve, by its name: the same whatever else the study has.
    seed = zlib.crc32(f"{series.axis} {series.metric} {series.label}".encode())
    if not positive.any():
        nothing = NotFitted("constant", "no value of the axis is positive")
        return Curve(series, better, None, len(x), asymptote, (), None, nothing, nothing)
    points = points_of(x[positive], y[positive])
    fits = tuple(fit_curve(points, shape, seed=seed, asymptote=asymptote) for shape in PARAMETERS)
    return Curve(
        series=series,
        better=better,
        points=points,
        left_out=int((~positive).sum()),
        asymptote=asymptote,
        fits=fits,
        choice=choose(fits),
        peak=find_peak(points, fits, better=better),
        extrapolation=extrapolate(points, seed=seed, asymptote=asymptote),
    )


def _compute(done: Sequence[Trial], metric: str, better: Better) -> Compute | None:
    """None where no two trials differ in compute."""
    kept = tuple(
        trial for trial in done if finite(trial, metric) and trial.metrics.get(FLOPS, 0) > 0
    )
    flops = np.asarray([trial.metrics[FLOPS] for trial in kept])
    if metric == FLOPS or len(kept) < 2 or np.ptp(flops) <= 1e-6 * flops.max():
        return None
    values = np.asarray([trial.metrics[metric] for trial in kept])
    sizes = np.asarray([trial.metrics.get(SIZE, np.nan) for trial in kept])
    frontier = None
    if metric != SIZE and np.all(sizes > 0) and len(np.unique(sizes)) > 1:
        frontier = compute_frontier(flops, sizes, values, better=better)
    return Compute(metric, better, kept, pareto_front(flops, values, better=better), frontier)


def _losses(done: Sequence[Trial], metric: str, axes: Sequence[str]) -> LossAgainst | None:
    """None where the trials have no loss, as where a study trains nothing."""
    kept = tuple(trial for trial in done if finite(trial, metric) and finite(trial, LOSS))
    if not kept:
        return None
    loss = np.asarray([trial.metrics[LOSS] for trial in kept])
    score = np.asarray([trial.metrics[metric] for trial in kept])
    within = [
        correlate_within(loss, score, axis=axis, values=[trial.point[axis] for trial in kept])
        for axis in axes
        if len({repr(trial.point[axis]) for trial in kept}) > 1
    ]
    return LossAgainst(metric, kept, correlate(loss, score), tuple(within))
