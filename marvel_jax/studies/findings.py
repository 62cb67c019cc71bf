"""What came out of a study, a computed sentence a finding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marvel_jax.studies.analysis import Analysis, Bars, Compute, Curve, LossAgainst
from marvel_jax.studies.choice import Peak
from marvel_jax.studies.correlation import Correlation
from marvel_jax.studies.extrapolation import Extrapolation
from marvel_jax.studies.fit import Fit
from marvel_jax.studies.points import Estimate, pooled_spread
from marvel_jax.studies.series import Series, level_means, short
from marvel_jax.studies.settings import MANY, tell_many

_TOLD_APART = 2.0  # standard deviations between seeds; less is luck often enough
_MINUS = "\N{MINUS SIGN}"


# Headings, which no axis has for a name as it may have "loss".
COMPUTE, LOSS_AND_SCORE = "What compute buys", "Loss against score"


class Finding(NamedTuple):
    """A sentence, and what it is about: an axis, COMPUTE or LOSS_AND_SCORE.

    details: a sentence for each setting of the other axes, where `sentence` is of many.
    """

    about: str
    sentence: str
    details: tuple[str, ...] = ()


def findings(analysis: Analysis) -> list[Finding]:
    """The findings, in the order of the study's axes, then compute, then loss."""
    found = []
    for axis in analysis.axes:
        for metric in analysis.metrics:
            curves, bars = analysis.along(axis, metric)
            found += _of_settings(axis, [tell_curve(one) for one in curves], curves)
            found += _of_settings(axis, [tell_bars(one) for one in bars], bars)
    found += [Finding(COMPUTE, tell) for one in analysis.compute if (tell := tell_compute(one))]
    return found + [Finding(LOSS_AND_SCORE, tell_loss(one)) for one in analysis.losses]


def _of_settings(axis: str, told: list[str], settings: list[Curve] | list[Bars]) -> list[Finding]:
    """A finding a setting of the other axes; of many settings, one for all of them."""
    if len(told) <= MANY:
        return [Finding(axis, sentence) for sentence in told]
    return [Finding(axis, tell_many(settings), tuple(told))]


def tell_curve(curve: Curve) -> str:
    """One curve: what it does, and whether smaller runs told of the largest."""
    series = curve.series
    start = _start(series)
    if curve.choice is None or curve.points is None:
        return (
            f"{start}, {_ends(series)}. No curve was fitted: {_unfitted(curve)}.{_left_out(curve)}"
        )
    fit = curve.choice.fit
    told = {
        "constant": _tell_constant,
        "log-linear": _tell_line,
        "power law": _tell_power,
        "log-quadratic": _tell_parabola,
    }[fit.shape](curve, fit)
    return f"{start}, {told}{_tell_extrapolation(curve)}{_left_out(curve)}"


def tell_bars(bars: Bars) -> str:
    """One axis of words: which is best, and by how much."""
    series = bars.series
    sign = 1 if bars.better == "higher" else -1
    ordered = sorted(level_means(series), key=lambda pair: -sign * pair[1])
    (best, most), (second, less) = ordered[:2]
    gap = abs(most - less)
    return (
        f"{_start(series)}, {short(best)} is best with {short(most)}, {short(gap)} before "
        f"{short(second)} ({short(less)}){_noise(series, gap)}.{_missing(series)}"
    )


def tell_compute(compute: Compute) -> str | None:
    """How the best size grows with compute; None where sizes were not varied."""
    frontier = compute.frontier
    if frontier is None:
        return None
    if frontier.exponent is None:
        return f"{compute.metric}: no compute-optimal frontier: {frontier.reason}."
    return (
        f"{compute.metric}: the best size grows with compute as C^{_span(frontier.exponent)}, by "
        f"{sum(group.best is not None for group in frontier.groups)} iso-FLOP curves."
    )


def tell_loss(one: LossAgainst) -> str:
    """How the loss goes with a metric, and whether that holds among trials that are alike."""
    if not isinstance(one.over_all, Correlation):
        return f"Loss against {one.metric}: {one.over_all.reason}."
    told = (
        f"Loss against {one.metric}: Spearman {_span(one.over_all.spearman)}, Pearson "
        f"{_span(one.over_all.pearson)} over {one.over_all.trials} trials."
    )
    for within in one.within:
        if within.opposite and isinstance(within.pooled, Correlation):
            sure = "" if within.sure else " (one of the intervals holds 0)"
            told += (
                f" Beware: among trials of one {within.axis} the sign is the other, Pearson "
                f"{_span(within.pooled.pearson)}{sure}: the axis moves both (Simpson's paradox), "
                f"so compare losses only at the same {within.axis}."
            )
    return told


def _start(series: Series) -> str:
    held = f" with {series.label}" if series.label else ""
    mixed = " (the other axes vary too)" if series.mixed else ""
    return f"{series.metric} over {series.axis}{held}{mixed}"


def _unfitted(curve: Curve) -> str:
    fitted = [fit.reason for fit in curve.fits if not isinstance(fit, Fit)]
    return fitted[0] if fitted else "no value of the axis is positive"


def _ends(series: Series) -> str:
    pairs = sorted(level_means(series), key=lambda pair: float(pair[0]))
    (first, low), (last, high) = pairs[0], pairs[-1]
    change = high - low
    return (
        f"from {short(low)} at {short(first)} to {short(high)} at {short(last)}"
        f"{_noise(series, abs(change))}"
    )


def _noise(series: Series, gap: float) -> str:
    """How a difference of two means stands to the spread between seeds."""
    spread = _spread(series)
    if spread is None:
        return " (one seed each, so its spread is not known)"
    if spread == 0:
        return " (all seeds agree)"
    alike = ": not told apart" if gap < _TOLD_APART * spread else ""
    return f" ({short(float(f'{gap / spread:.2g}'))} standard deviations between seeds{alike})"


def _spread(series: Series) -> float | None:
    return pooled_spread(series.values, [repr(one.point[series.axis]) for one in series.trials])


def _tell_constant(curve: Curve, fit: Fit) -> str:
    return (
        f"nothing is seen beyond the spread between trials: {_span(fit.interval('p'))}, by "
        f"{curve.choice.rule if curve.choice else ''}."
    )


def _tell_line(curve: Curve, fit: Fit) -> str:
    doubling = Estimate(*(np.log(2) * value for value in fit.interval("q")))
    return f"each doubling adds {_span(doubling)}{_rule(curve)}."


def _tell_power(curve: Curve, fit: Fit) -> str:
    a, b, c = (fit.interval(name) for name in "abc")
    joined = "+" if b.value >= 0 else _MINUS
    law = f"{_sign(short(a.value))} {joined} {short(abs(b.value))} x^{_MINUS}{short(c.value)}"
    if fit.at_bound:
        return (
            f"{law}{_rule(curve)}; but the exponent is at its bound, so these points do not tell "
            "where the curve levels off."
        )
    way = "sinks" if b.value >= 0 else "rises"
    return f"{law}{_rule(curve)}: it {way} to {_span(a)}, with the exponent {_span(c)}."


def _tell_parabola(curve: Curve, fit: Fit) -> str:
    peak = curve.peak
    if isinstance(peak, Peak) and peak.found and peak.x is not None and peak.fall is not None:
        assert curve.points is not None
        return (
            f"best near {_span(peak.x)}, where it is {short(peak.value)}; more is not better: at "
            f"{short(float(curve.points.levels[-1]))} it is worse by {_span(peak.fall)}"
            f"{_rule(curve)}."
        )
    doubt = f"; no peak is claimed, since {peak.reason}" if isinstance(peak, Peak) else ""
    return f"bent over ln x{_rule(curve)}{doubt}."


def _tell_extrapolation(curve: Curve) -> str:
    found = curve.extrapolation
    if not isinstance(found, Extrapolation):
        return f" No prediction of the largest: {found.reason}."
    return (
        f" Without {short(found.x)}, the {found.shape} curve predicts {_span(found.predicted)} "
        f"there, {_off(found.relative, found.spreads)} the measured {short(found.measured)}; "
        f"the value at the x before would be {_off(found.last_relative, found.last_spreads)}."
    )


def _off(relative: float | None, spreads: float | None) -> str:
    """How far a prediction is off, in what it can be said in."""
    share = "off" if relative is None else f"{_sign(f'{relative:+.1%}')} off"
    if spreads is None:
        return share
    return f"{share} ({_sign(f'{spreads:+.1f}')} standard deviations between seeds)"


def _left_out(curve: Curve) -> str:
    told = _missing(curve.series)
    if curve.left_out:
        told += f" {curve.left_out} trials at 0 or below are drawn, but in no curve over ln x."
    return told


def _missing(series: Series) -> str:
    if not series.missing:
        return ""
    return f" {len(series.missing)} trials have no finite {series.metric} and are left out."


def _rule(curve: Curve) -> str:
    return f" (chosen by {curve.choice.rule})" if curve.choice else ""


def _span(one: Estimate) -> str:
    return f"{_sign(short(one.value))} [{_sign(short(one.low))}, {_sign(short(one.high))}]"


def _sign(text: str) -> str:
    return text.replace("-", _MINUS)


def of(found: Sequence[Finding], about: str) -> list[Finding]:
    """The findings of one axis, of COMPUTE or of LOSS_AND_SCORE."""
    return [one for one in found if one.about == about]
