"""Many settings of the other axes: one sentence for all of them, and the few that are drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from marvel_jax.studies.analysis import Bars, Curve
from marvel_jax.studies.choice import Peak
from marvel_jax.studies.extrapolation import Extrapolation
from marvel_jax.studies.series import level_means, short
from marvel_jax.studies.trial import Value

MANY = 4
"""So many settings are told of one by one; of more there is one sentence."""

_Kind = TypeVar("_Kind", Curve, Bars)


def nearest(settings: Sequence[_Kind], first: Mapping[str, Value], number: int) -> list[_Kind]:
    """The settings that differ in the fewest axes from a study's first; of equals, the earlier."""

    def differences(one: _Kind) -> int:
        return sum(value != first[name] for name, value in one.series.others.items())

    return sorted(settings, key=differences)[:number]


def labels(settings: Sequence[Curve] | Sequence[Bars]) -> list[str]:
    """What tells settings apart that are drawn together: without the axes that are alike in all."""
    others = [one.series.others for one in settings]
    varied = [name for name in others[0] if len({repr(one[name]) for one in others}) > 1]
    if not varied:
        return [one.series.label for one in settings]
    return [", ".join(f"{name}={short(one[name])}" for name in varied) for one in others]


def tell_many(settings: Sequence[Curve] | Sequence[Bars]) -> str:
    """One sentence or two of all settings of one metric along one axis."""
    curves = [one for one in settings if isinstance(one, Curve)]
    return (
        _tell_curves(curves)
        if curves
        else _tell_bars([one for one in settings if isinstance(one, Bars)])
    )


def _tell_bars(settings: Sequence[Bars]) -> str:
    """How often each value of the axis is best, and by how much."""
    sign = 1 if settings[0].better == "higher" else -1
    best: Counter[str] = Counter()
    gaps = []
    for one in settings:
        ordered = sorted(level_means(one.series), key=lambda pair: -sign * pair[1])
        equal = [level for level, mean in ordered if mean == ordered[0][1]]
        best["several alike" if len(equal) > 1 else short(ordered[0][0])] += 1
        gaps.append(abs(ordered[0][1] - ordered[-1][1]))
    if not any(gaps):
        return f"{_start(settings)}, all values give the same."
    widest = int(np.argmax(gaps))
    wins = ", ".join(f"{level} in {count}" for level, count in best.most_common())
    return (
        f"{_start(settings)}, best is {wins}. Between best and worst lie "
        f"{short(float(np.median(gaps)))} in the middle, {short(gaps[widest])} at most, with "
        f"{settings[widest].series.label}."
    )


def _tell_curves(settings: Sequence[Curve]) -> str:
    """What comes of the axis from end to end, how many peaks are claimed, how well is predicted."""
    changes, ends = [], []
    for one in settings:
        ordered = sorted(level_means(one.series), key=lambda pair: float(pair[0]))
        changes.append(ordered[-1][1] - ordered[0][1])
        ends += [float(ordered[0][0]), float(ordered[-1][0])]
    low, high = int(np.argmin(changes)), int(np.argmax(changes))
    told = (
        f"{_start(settings)}, from {short(min(ends))} to {short(max(ends))} it changes by "
        f"{_signed(float(np.median(changes)))} in the middle, by {_signed(changes[low])} with "
        f"{settings[low].series.label} and by {_signed(changes[high])} with "
        f"{settings[high].series.label}."
    )
    peaks = sum(isinstance(one.peak, Peak) and one.peak.found for one in settings)
    if peaks:
        told += f" In {peaks} a best value inside the range is claimed."
    off = [
        abs(one.extrapolation.relative)
        for one in settings
        if isinstance(one.extrapolation, Extrapolation) and one.extrapolation.relative is not None
    ]
    if off:
        told += (
            f" The largest is predicted from the others with an error of {np.median(off):.1%} in "
            f"the middle, {max(off):.1%} at most."
        )
    return told


def _start(settings: Sequence[Curve] | Sequence[Bars]) -> str:
    series = settings[0].series
    return f"{series.metric} over {series.axis}, in {len(settings)} settings of the other axes"


def _signed(value: float) -> str:
    sign = "+" if value >= 0 else "\N{MINUS SIGN}"
    return f"{sign}{short(abs(value))}"
