"""The right shape is chosen, a peak is found where there is one, and none is invented."""

import numpy as np
import pytest
from scipy import stats

from marvel_jax.studies.choice import Peak, choose, find_peak
from marvel_jax.studies.fit import PARAMETERS, NotFitted, fit_curve
from marvel_jax.studies.points import points_of

X = 2.0 ** np.arange(4, 12)
LAWS = {
    "constant": lambda x: 0.5 + 0 * x,
    "log-linear": lambda x: 0.2 + 0.05 * np.log(x),
    "power law": lambda x: 0.7 - (x / 8) ** -0.7,
    "log-quadratic": lambda x: 0.6 - 0.03 * (np.log(x) - 4.5) ** 2,
}


def fits_of(x, y, seed=0):
    points = points_of(x, y)
    return points, [fit_curve(points, shape, seed=seed, draws=80) for shape in PARAMETERS]


def noisy(law, seeds, number, size):
    x = np.repeat(X, seeds)
    return x, law(x) + size * np.random.default_rng(number).standard_normal(len(x))


@pytest.mark.parametrize("shape", LAWS)
def test_the_shape_that_made_the_points_is_chosen(shape):
    chosen = []
    for number in range(12):
        _, fits = fits_of(*noisy(LAWS[shape], 3, number, 0.005))
        choice = choose(fits)
        assert choice is not None and choice.rule == "AICc"
        chosen.append(choice.fit.shape)
    assert chosen.count(shape) >= 9, chosen


def test_few_trials_are_chosen_among_by_levels_left_out():
    _, fits = fits_of(X[:5], LAWS["power law"](X[:5]))
    choice = choose(fits)
    assert choice is not None and choice.fit.shape == "power law"
    assert "left-out" in choice.rule
    # Two levels are enough for a constant, and too few to say that nothing else was seen.
    assert choose(fits_of(X[:2], X[:2])[1]) is None


def test_a_peak_is_found_and_its_intervals_hold_as_often_as_they_say():
    repetitions = 30
    fall = 0.03 * (np.log(X[-1]) - 4.5) ** 2
    found = np.zeros(3)
    for number in range(repetitions):
        points, fits = fits_of(*noisy(LAWS["log-quadratic"], 2, number, 0.01), seed=number)
        peak = find_peak(points, fits, better="higher")
        assert isinstance(peak, Peak) and peak.x.high / peak.x.low < 2
        assert peak.value == pytest.approx(0.6, abs=0.02)
        place, drop = peak.x, peak.fall
        found += [peak.found, place.low < np.exp(4.5) < place.high, drop.low < fall < drop.high]
    assert found.min() >= stats.binom.ppf(0.001, repetitions, 0.9), found


def test_the_best_of_a_cost_is_its_least():
    x, y = noisy(LAWS["log-quadratic"], 2, 0, 0.01)
    score = find_peak(*fits_of(x, y), better="higher")
    cost = find_peak(*fits_of(x, -y), better="lower")
    assert cost.found and cost.x.value == pytest.approx(score.x.value)
    assert cost.value < 0 < cost.fall.value
    worst = find_peak(*fits_of(x, y), better="lower")
    assert not worst.found and worst.x is None


@pytest.mark.parametrize("size", [0.003, 0.03])
@pytest.mark.parametrize("shape", ["constant", "log-linear", "power law"])
def test_no_peak_is_invented_where_more_is_never_worse(shape, size):
    repetitions = 20
    found = 0
    for number in range(repetitions):
        points, fits = fits_of(*noisy(LAWS[shape], 2, number, size), seed=number)
        found += find_peak(points, fits, better="higher").found
    # More than a tenth of false claims would be noticed here.
    assert found <= stats.binom.ppf(0.95, repetitions, 0.05), found


def test_a_peak_outside_of_what_was_measured_is_not_claimed():
    points, fits = fits_of(*noisy(lambda x: 0.6 - 0.03 * (np.log(x) - 9) ** 2, 2, 0, 0.003))
    peak = find_peak(points, fits, better="higher")
    assert not peak.found and not peak.inside and "outside" in peak.reason
    assert peak.x.value > X[-1]


def test_a_turn_that_only_the_curve_makes_is_no_peak():
    # A search takes some time in any pool, then time in proportion: no parabola, and no best pool.
    x = np.repeat([100, 300, 1000, 3000, 10_000, 20_000], 3)
    noise = np.random.default_rng(0).standard_normal(len(x))
    points, fits = fits_of(x, (0.012 + 6e-6 * x) * (1 + 0.01 * noise))
    peak = find_peak(points, fits, better="lower")
    assert isinstance(peak, Peak) and peak.inside and peak.share > 0.95
    assert not peak.found and "at an end, 100" in peak.reason


def test_too_few_points_for_a_peak_say_so():
    points, fits = fits_of(X[:3], LAWS["log-quadratic"](X[:3]))
    found = find_peak(points, fits, better="higher")
    assert isinstance(found, NotFitted) and "3 different x" in found.reason
