"""Weighted least squares of curves over ln x, for many draws of the values at once."""

import numpy as np

_GRID = 64
_GOLDEN = (np.sqrt(5) - 1) / 2
_STEPS = 44  # 0.618^44 of a grid's cell: to the last digits that a minimum has


def log_polynomial(x: np.ndarray, y: np.ndarray, weights: np.ndarray, *, degree: int) -> np.ndarray:
    """The polynomial in ln x nearest to the values.

    Args:
      x: float [N], positive.
      y: float [B, N], a row a draw.
      weights: float [B, N].
      degree: at most 2.

    Returns:
      float [B, degree + 1], the factors of 1, ln x, (ln x)^2.
    """
    logs = np.log(x)
    center = logs.mean()
    width = logs.std() if logs.std() > 0 else 1.0
    powers = ((logs - center) / width)[:, None] ** np.arange(degree + 1)  # [N, P]
    gram = np.einsum("bn,np,nq->bpq", weights, powers, powers)
    moments = np.einsum("bn,bn,np->bp", weights, y, powers)
    factors = np.linalg.solve(gram, moments[..., None])[..., 0] / width ** np.arange(degree + 1)
    if degree == 1:
        factors[:, 0] -= factors[:, 1] * center
    elif degree == 2:
        factors[:, 0] += (factors[:, 2] * center - factors[:, 1]) * center
        factors[:, 1] -= 2 * factors[:, 2] * center
    return factors


def power_law(
    x: np.ndarray,
    y: np.ndarray,
    weights: np.ndarray,
    *,
    exponents: tuple[float, float],
    asymptote: tuple[float, float],
) -> np.ndarray:
    """The power law with offset, a + b x^-c, nearest to the values.

    Given c, the best a and b are those of a straight line, so only c is searched: over ln c, on a
    grid and then by golden section inside the best cell (variable projection, Golub and Pereyra
    1973). There is no start to choose and no valley between a, b and c to creep along.

    Args:
      x: float [N], positive.
      y: float [B, N], a row a draw.
      weights: float [B, N].
      exponents: the bounds of c.
      asymptote: the bounds of a; where the free a is outside, it is the bound itself.

    Returns:
      float [B, 3]: a, b, c.
    """
    unit = float(np.exp(np.log(x).mean()))
    logs = np.log(x / unit)

    def at(ln_c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The line's a, b and squared error, each [B], for ln_c [B]."""
        u = np.exp(-np.exp(ln_c)[:, None] * logs)
        return _line(u, y, weights, asymptote)

    least, most = np.log(exponents)
    grid = np.linspace(least, most, _GRID)
    errors = np.stack([at(np.full(len(y), ln_c))[2] for ln_c in grid])
    best = errors.argmin(axis=0)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, _GRID - 1)]
    for _ in range(_STEPS):
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        smaller = at(left)[2] < at(right)[2]
        low, high = np.where(smaller, low, left), np.where(smaller, right, high)
    ln_c = (low + high) / 2
    a, b, _ = at(ln_c)
    c = np.exp(ln_c)
    return np.stack([a, b * unit**c, c], axis=1)


def _line(
    u: np.ndarray, y: np.ndarray, weights: np.ndarray, asymptote: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The a and b of a + b u, and the squared error: each [B]."""
    total = weights.sum(axis=1)
    u_mean, y_mean = (weights * u).sum(axis=1) / total, (weights * y).sum(axis=1) / total
    centered = u - u_mean[:, None]
    variance = (weights * centered**2).sum(axis=1)
    b = (weights * centered * y).sum(axis=1) / np.where(variance > 0, variance, 1.0)
    a = y_mean - b * u_mean
    inside = np.clip(a, *asymptote)
    tied = (weights * u * (y - inside[:, None])).sum(axis=1) / (weights * u**2).sum(axis=1)
    b = np.where(inside == a, b, tied)
    residuals = y - inside[:, None] - b[:, None] * u
    return inside, b, (weights * residuals**2).sum(axis=1)
