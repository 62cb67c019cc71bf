"""Trials sorted into curves: one metric along one axis, all else being equal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.studies.trial import Trial, Value

LEAST_LEVELS = 2  # of an axis, for a curve of all else being equal


@dataclass(frozen=True)
class Series:
    """Trials of one metric along one axis.

    others: what the other axes are; empty where the trials differ in them too, or where there is
    no other axis. mixed: the other axes are not held fast. missing: trials of the series that
    have no finite figure of the metric, and are in none of its curves and tables.
    """

    axis: str
    metric: str
    others: Mapping[str, Value]
    trials: tuple[Trial, ...]
    missing: tuple[Trial, ...]
    mixed: bool = False

    @property
    def label(self) -> str:
        """What is held fast: "negatives=1, type=int8"."""
        return ", ".join(f"{name}={short(value)}" for name, value in self.others.items())

    @property
    def values(self) -> list[float]:
        """The metric of each trial."""
        return [trial.metrics[self.metric] for trial in self.trials]

    @property
    def levels(self) -> list[Value]:
        """The values of the axis, in the order of the study."""
        return list(dict.fromkeys(trial.point[self.axis] for trial in self.trials))


def series_of(
    trials: Sequence[Trial], *, axis: str, metric: str, axes: Sequence[str]
) -> list[Series]:
    """The curves of a metric along an axis: one for each point of the other axes.

    Where that leaves out more than half of the trials, for few share all else (a random design),
    there is one curve of all trials, `mixed`.

    Args:
      trials: those that are done.
      axis: along which.
      metric: which figure.
      axes: the names of all axes, in order.

    Raises:
      MarvelError: a trial has no value of an axis.
    """
    for trial in trials:
        if absent := [name for name in axes if name not in trial.point]:
            raise MarvelError(f"trial {trial.key} has no value of {absent}: run the study again.")
    names = [name for name in axes if name != axis]
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(repr([trial.point[name] for name in names]), []).append(trial)
    found = []
    for group in groups.values():
        others = {name: group[0].point[name] for name in names}
        one = _series(group, axis=axis, metric=metric, others=others)
        if len(one.levels) >= LEAST_LEVELS:
            found.append(one)
    if 2 * sum(len(one.trials) + len(one.missing) for one in found) >= len(trials):
        return found
    mixed = _series(trials, axis=axis, metric=metric, others={}, mixed=len(names) > 0)
    return [mixed] if mixed.trials else []


def level_means(series: Series) -> list[tuple[Value, float]]:
    """Each value of the axis with the mean of its trials."""
    values: dict[str, list[float]] = {}
    for trial in series.trials:
        values.setdefault(repr(trial.point[series.axis]), []).append(trial.metrics[series.metric])
    return [(level, float(np.mean(values[repr(level)]))) for level in series.levels]


def is_number(values: Sequence[Any]) -> bool:
    """Whether an axis or its values are numbers; True and False are words here."""
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def finite(trial: Trial, metric: str) -> bool:
    """Whether a trial has a figure of the metric that can be drawn."""
    return math.isfinite(trial.metrics.get(metric, math.nan))


def short(value: Value | None) -> str:
    """A value for reading: 0.0312, 1.2M, 38,400, int8."""
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, bool | str):
        return str(value)
    size = abs(value)
    for name, unit in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if size >= unit:
            if size >= 1e18:
                return f"{value:.3g}"
            return (
                f"{value / unit:.3g}{name}" if size < 999.5 * unit else f"{value / unit:,.0f}{name}"
            )
    if float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:,.1f}" if size >= 1000 else f"{value:.3g}"


def _series(
    trials: Sequence[Trial],
    *,
    axis: str,
    metric: str,
    others: Mapping[str, Value],
    mixed: bool = False,
) -> Series:
    return Series(
        axis=axis,
        metric=metric,
        others=others,
        trials=tuple(trial for trial in trials if finite(trial, metric)),
        missing=tuple(trial for trial in trials if not finite(trial, metric)),
        mixed=mixed,
    )
