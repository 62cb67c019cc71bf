"""Which shape of curve the points speak for, and whether it has a peak."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from marvel_jax.studies.fit import PARAMETERS, Fit, NotFitted, Shape
from marvel_jax.studies.points import Estimate, Points

Better = Literal["higher", "lower"]

SURE = 0.95
"""The share of draws that must have a peak inside the measured range before one is told of."""
MARGIN = 2.0
"""By how much AICc must prefer a curve with a peak to every curve without."""
_FAR = 5.0  # a vertex is looked for within so many measured ranges (of ln x) of the range


class Choice(NamedTuple):
    """The shape chosen, by which rule, and each fitted shape's figure under it (less is better)."""

    fit: Fit
    rule: str
    figures: dict[Shape, float]


class Peak(NamedTuple):
    """Where a log-quadratic curve is at its best, and whether that is to be believed.

    x: None where the curve is bent the other way. value: the curve there. inside: within the
    measured range. share: of the draws that have such a vertex inside the range. found: the claim
    that bigger is not better; reason: why it is, or is not, made. fall: how much better the peak
    is than the largest x, from the curve.
    """

    found: bool
    reason: str
    x: Estimate | None
    value: float | None
    inside: bool
    share: float
    fall: Estimate | None


def choose(fits: Sequence[Fit | NotFitted]) -> Choice | None:
    """The shape that the points speak for; None where no shape but the constant was fitted, for
    then nothing else had a chance.

    By AICc, where there are trials enough for it with each fitted shape; else by the error at
    levels that were left out of the fit. Of equals, the one with fewer parameters.
    """
    fitted = [fit for fit in fits if isinstance(fit, Fit)]
    if all(fit.shape == "constant" for fit in fitted):
        return None
    by_criterion = {fit.shape: fit.aicc for fit in fitted if fit.aicc is not None}
    if len(by_criterion) == len(fitted):
        rule, figures = "AICc", by_criterion
    else:
        rule = "the error at left-out levels (too few trials for AICc)"
        figures = {fit.shape: fit.held_out for fit in fitted}
    ordered = sorted(fitted, key=lambda fit: (figures[fit.shape], len(PARAMETERS[fit.shape])))
    return Choice(ordered[0], rule, figures)


def vertex(fit: Fit, *, better: Better) -> tuple[float | None, np.ndarray]:
    """The x at which a log-quadratic curve is best, and the same of each draw, float [B].

    None, and NaN in a draw, where the curve has its worst there instead of its best. What lies
    further away than can be said is put at the end of what can.
    """
    sign = 1.0 if better == "higher" else -1.0
    parameters = np.concatenate([fit.parameters[None], fit.draws])
    bent = sign * parameters[:, 2] < 0
    with np.errstate(over="ignore"):
        logs = np.where(bent, -parameters[:, 1] / np.where(bent, 2 * parameters[:, 2], 1), np.nan)
    found = np.exp(np.clip(logs, -700, 700))
    return (float(found[0]) if bent[0] else None), found[1:]


def find_peak(
    points: Points, fits: Sequence[Fit | NotFitted], *, better: Better
) -> Peak | NotFitted:
    """Looks for a best x inside the measured range.

    A peak is told of only where the log-quadratic is the chosen shape (with AICc: by 2 or more,
    for a curve that levels off is easily mistaken for one that turns), its vertex is inside the
    measured range, 95% of the draws say so too, and so do the values themselves: the best of them
    is not at an end. A curve that fits badly can turn where nothing was measured to.
    """
    curve = next((fit for fit in fits if fit.shape == "log-quadratic"), None)
    if not isinstance(curve, Fit):
        return curve or NotFitted("log-quadratic", "it was not asked for")
    sign = 1.0 if better == "higher" else -1.0
    first, last = points.levels[0], points.levels[-1]
    x, drawn = vertex(curve, better=better)
    share = float(np.mean((drawn > first) & (drawn < last)))
    if x is None:
        return Peak(False, "the curve is not bent towards a best", None, None, False, share, None)
    inside = bool(first < x < last)
    reach = (last / first) ** _FAR
    low, high = np.quantile(
        np.clip(np.nan_to_num(drawn, nan=last * reach), first / reach, last * reach), curve.tails
    )
    place = Estimate(float(np.clip(x, first / reach, last * reach)), float(low), float(high))
    value = float(curve.predict(place.value))
    best = int(np.argmax(sign * points.means))
    at_end = points.levels[best] if best in (0, len(points.levels) - 1) else None
    reason = _doubt(curve, fits, inside=inside, share=share, at_end=at_end)
    fall = sign * (value - float(curve.predict(last)))
    reached = curve.predict_draws(np.asarray(place.value)) - curve.predict_draws(last)
    ends = np.quantile(sign * reached, curve.tails)
    return Peak(
        found=reason is None,
        reason=reason or f"{share:.0%} of the draws have their peak inside the measured range",
        x=place,
        value=value,
        inside=inside,
        share=share,
        fall=Estimate(fall, float(ends[0]), float(ends[1])),
    )


def _doubt(
    curve: Fit,
    fits: Sequence[Fit | NotFitted],
    *,
    inside: bool,
    share: float,
    at_end: float | None,
) -> str | None:
    if not inside:
        return "the curve's best lies outside of the measured range"
    if at_end is not None:
        return f"the best of the measured values is at an end, {at_end:,g}"
    choice = choose(fits)
    if choice is None or choice.fit.shape != curve.shape:
        other = choice.fit.shape if choice else "none"
        return f"a curve without a peak ({other}) tells as much of the points"
    rest = [figure for shape, figure in choice.figures.items() if shape != curve.shape]
    if choice.rule == "AICc" and rest and min(rest) - choice.figures[curve.shape] < MARGIN:
        return "a curve without a peak tells nearly as much of the points"
    if share < SURE:
        return f"only {share:.0%} of the draws have their peak inside the measured range"
    return None
