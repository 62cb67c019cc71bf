"""Curves: known laws are found again, their intervals hold, and their units do not matter."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from marvel_jax.errors import MarvelError
from marvel_jax.studies.fit import EXPONENTS, PARAMETERS, Fit, NotFitted, fit_curve
from marvel_jax.studies.points import points_of

X = 2.0 ** np.arange(4, 12)
REPETITIONS = 60
# Right intervals of 90% cover this often but for one suite in a thousand.
COVERED = int(stats.binom.ppf(0.001, REPETITIONS, 0.9))


def power(x: np.ndarray) -> np.ndarray:
    return 0.3 + 2 * x**-0.5


def bent(x: np.ndarray) -> np.ndarray:
    return 0.5 - 0.02 * (np.log(x) - 4) ** 2


def fitted(x: np.ndarray, y: np.ndarray, shape: str, **options) -> Fit:
    found = fit_curve(points_of(x, y), shape, **options)
    assert isinstance(found, Fit), found
    return found


@given(
    a=st.floats(-1, 3),
    b=st.floats(0.1, 5),
    sign=st.sampled_from((-1, 1)),
    c=st.floats(0.05, 2),
    unit=st.floats(1e-3, 1e9),
)
@settings(max_examples=25, deadline=None)
def test_a_power_law_without_noise_is_found_in_any_unit(a, b, sign, c, unit):
    y = a + sign * b * (X / X[0]) ** -c
    found = fitted(unit * X, y, "power law", draws=2)
    at_first = found.parameters[1] * (unit * X[0]) ** -found.parameters[2]
    np.testing.assert_allclose(
        [*found.parameters[[0, 2]], at_first], [a, c, sign * b], rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(found.predict(unit * X), y, atol=1e-6)


@given(
    scale=st.floats(1e-6, 1e6),
    unit=st.floats(1e-3, 1e9),
    shape=st.sampled_from(tuple(PARAMETERS)),
    seed=st.integers(0, 100),
)
@settings(max_examples=15, deadline=None)
def test_other_units_of_x_and_y_change_nothing_else(scale, unit, shape, seed):
    rng = np.random.default_rng(seed)
    x = np.repeat(X, 2)
    y = power(x) + 0.02 * rng.standard_normal(len(x))
    first = fitted(x, y, shape, draws=20)
    second = fitted(unit * x, scale * y, shape, draws=20)
    np.testing.assert_allclose(scale * first.predict(X), second.predict(unit * X), rtol=1e-5)
    for mine, theirs in zip(first.band(X), second.band(unit * X), strict=True):
        np.testing.assert_allclose(scale * mine, theirs, rtol=1e-5)


def test_least_squares_are_those_of_scipy():
    rng = np.random.default_rng(3)
    x = np.repeat(X, 2)
    y = power(x) + 0.02 * rng.standard_normal(len(x))
    found = fitted(x, y, "power law")

    def residuals(p: np.ndarray) -> np.ndarray:
        return p[0] + np.exp(p[1]) * x ** -np.exp(p[2]) - y

    theirs = min(
        (
            optimize.least_squares(residuals, [0.2, 0.0, ln_c], xtol=1e-14, ftol=1e-14)
            for ln_c in (-2.0, -1.0, 0.0)
        ),
        key=lambda one: one.cost,
    )
    assert found.error == pytest.approx(np.sqrt(2 * theirs.cost / len(x)), rel=1e-7)
    assert found.parameters[2] == pytest.approx(np.exp(theirs.x[2]), rel=1e-4)
    line = fitted(x, y, "log-quadratic")
    np.testing.assert_allclose(line.parameters[::-1], np.polyfit(np.log(x), y, 2), rtol=1e-6)


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize(("law", "shape"), [(power, "power law"), (bent, "log-quadratic")])
def test_intervals_cover_the_truth_as_often_as_they_say(law, shape, seeds):
    rng = np.random.default_rng(7)
    x = np.repeat(X, seeds)
    truth = {"power law": ("c", 0.5), "log-quadratic": ("r", -0.02)}[shape]
    covered = np.zeros(3)
    for number in range(REPETITIONS):
        y = law(x) + 0.01 * rng.standard_normal(len(x))
        found = fitted(x, y, shape, seed=number, draws=150)
        parameter = found.interval(truth[0])
        low, high = found.band(np.asarray([100.0, 4000.0]))
        here = law(np.asarray([100.0, 4000.0]))
        covered += [parameter.low <= truth[1] <= parameter.high, *((low <= here) & (here <= high))]
    assert covered.min() >= COVERED, covered
    assert covered.sum() < 3 * REPETITIONS, "intervals that hold everything say nothing"


def test_intervals_are_wider_where_the_noise_is_and_the_same_for_the_same_seed():
    x = np.repeat(X, 3)
    noise = np.random.default_rng(0).standard_normal(len(x))
    quiet, loud = (fitted(x, power(x) + size * noise, "power law") for size in (0.003, 0.03))
    assert np.ptp(loud.interval("a")[1:]) > 4 * np.ptp(quiet.interval("a")[1:])
    again = fitted(x, power(x) + 0.03 * noise, "power law")
    assert again.interval("c") == loud.interval("c")
    other = fitted(x, power(x) + 0.03 * noise, "power law", seed=1)
    assert other.interval("c") != loud.interval("c")


def test_it_is_said_what_was_drawn_anew():
    assert "one seed" in fitted(X, power(X), "power law").how
    assert (
        "seeds within each level"
        in fitted(np.repeat(X, 2), np.repeat(power(X), 2), "power law").how
    )


@pytest.mark.parametrize("shape", PARAMETERS)
def test_too_few_different_x_are_not_fitted(shape):
    least = len(PARAMETERS[shape]) + 1
    # More seeds do not make more x.
    x = np.repeat(X[: least - 1], 5)
    found = fit_curve(points_of(x, power(x)), shape)
    assert isinstance(found, NotFitted)
    assert f"{least - 1} different x" in found.reason and f"ask for {least}" in found.reason
    assert isinstance(fit_curve(points_of(X[:least], power(X[:least])), shape), Fit)


def test_a_trial_far_off_does_not_bend_a_robust_fit():
    x = np.repeat(X, 3)
    y = power(x) + 0.002 * np.random.default_rng(0).standard_normal(len(x))
    y[4] += 3.0
    plain = fitted(x, y, "power law", draws=5)
    robust = fitted(x, y, "power law", draws=5, loss="huber")
    worst = {id(fit): np.abs(fit.predict(X) - power(X)).max() for fit in (plain, robust)}
    assert worst[id(robust)] < 0.01 < 0.1 < worst[id(plain)]


def test_the_offset_keeps_to_its_bounds():
    y = 0.9 - 0.05 * np.log(X)  # no end in sight
    free = fitted(X, y, "power law", draws=5)
    held = fitted(X, y, "power law", draws=5, asymptote=(0.0, np.inf))
    assert free.parameters[0] < 0 <= held.parameters[0]
    assert (held.draws[:, 0] >= 0).all()
    assert held.error >= free.error


def test_an_exponent_at_its_bound_is_told():
    assert fitted(X, 0.9 - 0.05 * np.log(X), "power law", draws=5).at_bound
    found = fitted(X, power(X), "power law", draws=5)
    assert not found.at_bound and EXPONENTS[0] < found.parameters[2] < EXPONENTS[1]


@pytest.mark.parametrize(
    ("x", "y"), [([1, 0], [1, 1]), ([1, 2], [1, np.nan]), ([1, 2], [1]), ([], [])]
)
def test_what_cannot_be_a_point_is_refused(x, y):
    with pytest.raises(MarvelError):
        points_of(np.asarray(x, float), np.asarray(y, float))


@pytest.mark.parametrize("shape", PARAMETERS)
def test_values_without_any_noise_or_slope_give_no_nan(shape):
    found = fitted(np.repeat(X, 2), np.full(16, 0.7), shape)
    numbers = [*found.parameters, *found.draws.ravel(), found.error, found.held_out, found.aicc]
    assert np.all(np.isfinite(numbers))
    np.testing.assert_allclose(found.predict(X), 0.7, atol=1e-9)
