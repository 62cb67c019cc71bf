"""Curves of a metric over an axis, with bootstrap intervals of all that they say.

Four shapes: a constant (the axis does nothing), p + q ln x, the power law with offset
a + b x^-c, and p + q ln x + r (ln x)^2, which can have a peak. Whether a shape is the right one
is the question of `choice`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from marvel_jax.studies.least_squares import log_polynomial, power_law
from marvel_jax.studies.points import Estimate, Points, redraw, tails

Shape = Literal["constant", "log-linear", "power law", "log-quadratic"]
Loss = Literal["squares", "huber"]

PARAMETERS: dict[Shape, tuple[str, ...]] = {
    "constant": ("p",),
    "log-linear": ("p", "q"),
    "power law": ("a", "b", "c"),
    "log-quadratic": ("p", "q", "r"),
}
FORMULAS: dict[Shape, str] = {
    "constant": "p",
    "log-linear": "p + q ln x",
    "power law": "a + b x^-c",
    "log-quadratic": "p + q ln x + r (ln x)^2",
}
EXPONENTS = (0.02, 5.0)
"""What c may be. Below, a power law is a straight line over ln x; above, a step."""

LEVEL = 0.9
DRAWS = 400
ANYTHING = (-np.inf, np.inf)

_Solver = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Fit:
    """A fitted curve.

    parameters: float [P], in the order of PARAMETERS. draws: float [B, P], the same fitted to
    values drawn anew. level: what the intervals cover. error: root of the mean squared residual.
    held_out: the same over levels that were left out of the fit, one at a time. aicc: Akaike's
    criterion corrected for few points; None where there are too few for it, or the loss is not
    that of squares. how, freedom: what was drawn anew; see `points.redraw`. at_bound: the exponent
    is at a bound of EXPONENTS, so that these points do not tell the offset and the exponent.
    """

    shape: Shape
    parameters: np.ndarray
    draws: np.ndarray
    level: float
    error: float
    held_out: float
    aicc: float | None
    levels: int
    trials: int
    how: str
    freedom: int
    at_bound: bool

    @property
    def tails(self) -> tuple[float, float]:
        """The quantiles of the draws that bound the intervals."""
        return tails(self.level, self.freedom)

    def predict(self, x: np.ndarray | float) -> np.ndarray:
        """The curve at x, float [...]."""
        return _curve(self.shape, self.parameters[None], np.asarray(x, np.float64))[0]

    def predict_draws(self, x: np.ndarray | float) -> np.ndarray:
        """Each draw's curve at x, float [B, ...]."""
        return _curve(self.shape, self.draws, np.asarray(x, np.float64))

    def band(self, x: np.ndarray | float) -> tuple[np.ndarray, np.ndarray]:
        """The lower and upper end of the curve's interval at x, each float [...]."""
        low, high = np.quantile(self.predict_draws(x), self.tails, axis=0)
        return low, high

    def interval(self, name: str) -> Estimate:
        """A parameter with its interval."""
        place = PARAMETERS[self.shape].index(name)
        low, high = np.quantile(self.draws[:, place], self.tails)
        return Estimate(float(self.parameters[place]), float(low), float(high))


@dataclass(frozen=True)
class NotFitted:
    """A curve that was not fitted, and why."""

    shape: Shape
    reason: str


def fit_curve(
    points: Points,
    shape: Shape,
    *,
    seed: int = 0,
    draws: int = DRAWS,
    level: float = LEVEL,
    loss: Loss = "squares",
    asymptote: tuple[float, float] = ANYTHING,
) -> Fit | NotFitted:
    """Fits one shape to the points.

    Args:
      points: what was measured.
      shape: of the curve.
      seed: of the bootstrap.
      draws: how many times the values are drawn anew; see `points.redraw`.
      level: of the intervals; see `points.tails`.
      loss: "squares", or "huber", which a few trials far off do not bend.
      asymptote: between what the power law's offset must lie: a loss does not sink below 0, a
        share does not rise above 1.

    Returns:
      The fit; or why there is none: a shape of P parameters asks for P + 1 different x.
    """
    count = len(PARAMETERS[shape])
    if len(points.levels) < count + 1:
        reason = f"{len(points.levels)} different x, and {count} parameters ask for {count + 1}"
        return NotFitted(shape, reason)
    solve = _robust(shape, asymptote) if loss == "huber" else _solver(shape, asymptote)
    ones = np.ones((1, len(points)))
    parameters = solve(points.x, points.y[None], ones)
    fitted = _curve(shape, parameters, points.x)[0]
    redrawn = redraw(points, fitted, parameters=count, draws=draws, seed=seed)
    drawn = solve(points.x, redrawn.values, np.ones_like(redrawn.values))
    squares = float(np.sum((points.y - fitted) ** 2))
    return Fit(
        shape=shape,
        parameters=parameters[0],
        draws=drawn,
        level=level,
        error=float(np.sqrt(squares / len(points))),
        held_out=_held_out(points, shape, solve),
        aicc=_aicc(points, squares, count) if loss == "squares" else None,
        levels=len(points.levels),
        trials=len(points),
        how=redrawn.how,
        freedom=redrawn.freedom,
        at_bound=shape == "power law" and _at_bound(float(parameters[0, 2])),
    )


def _solver(shape: Shape, asymptote: tuple[float, float]) -> _Solver:
    if shape == "power law":
        return lambda x, y, weights: power_law(
            x, y, weights, exponents=EXPONENTS, asymptote=asymptote
        )
    degree = len(PARAMETERS[shape]) - 1
    return lambda x, y, weights: log_polynomial(x, y, weights, degree=degree)


def _robust(shape: Shape, asymptote: tuple[float, float]) -> _Solver:
    """Huber's loss by weights that follow the residuals; its scale is 1.48 of their median."""
    solve = _solver(shape, asymptote)

    def robust(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
        parameters = solve(x, y, weights)
        for _ in range(20):
            residuals = np.abs(y - _curve(shape, parameters, x))
            # What was left out has no say in the scale either.
            known = np.where(weights > 0, residuals, np.nan)
            scale = 1.345 * 1.4826 * np.nanmedian(known, axis=1, keepdims=True)
            scale = np.maximum(scale, 1e-12 * np.abs(y).max(axis=1, keepdims=True) + 1e-300)
            parameters = solve(x, y, weights * np.minimum(1, scale / np.maximum(residuals, scale)))
        return parameters

    return robust


def _held_out(points: Points, shape: Shape, solve: _Solver) -> float:
    levels = len(points.levels)
    left_out = points.level_of == np.arange(levels)[:, None]
    values = np.broadcast_to(points.y, left_out.shape)
    parameters = solve(points.x, values, np.where(left_out, 0.0, 1.0))
    errors = (values - _curve(shape, parameters, points.x))[left_out]
    return float(np.sqrt(np.mean(errors**2)))


def _aicc(points: Points, squares: float, count: int) -> float | None:
    number, known = len(points), count + 1  # the noise is a parameter too
    if number <= known + 1:
        return None
    # A perfect fit is one to the digits of a float, not infinitely better than the next.
    squares = max(squares, number * (1e-10 * float(np.abs(points.y).max()) + 1e-300) ** 2)
    criterion = number * np.log(squares / number) + 2 * known
    return float(criterion + 2 * known * (known + 1) / (number - known - 1))


def _at_bound(exponent: float) -> bool:
    return exponent < 1.01 * EXPONENTS[0] or exponent > EXPONENTS[1] / 1.01


def _curve(shape: Shape, parameters: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Curves at x [...] from parameters [B, P]: float [B, ...]."""
    columns = parameters.T.reshape(parameters.shape[1], -1, *([1] * x.ndim))
    if shape == "power law":
        a, b, c = columns
        return a + b * x[None] ** -c
    powers = np.log(x)[None]
    return sum(
        (column * powers**degree for degree, column in enumerate(columns)),
        start=np.zeros((len(parameters), *x.shape)),
    )
