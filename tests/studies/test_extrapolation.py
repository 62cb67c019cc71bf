"""The largest is predicted from the small ones: well on a law, badly where it breaks."""

import numpy as np
import pytest

from marvel_jax.studies.extrapolation import Extrapolation, extrapolate
from marvel_jax.studies.fit import NotFitted
from marvel_jax.studies.points import points_of

X = 2.0 ** np.arange(4, 12)


def law(x):
    return 0.3 + 2 * x**-0.5


def measured(curve, seeds=3, size=0.005):
    x = np.repeat(X, seeds)
    return points_of(x, curve(x) + size * np.random.default_rng(1).standard_normal(len(x)))


def test_on_a_power_law_the_largest_is_foretold():
    # Noise well below the last step of the law, which is 0.053 of its value.
    found = extrapolate(measured(law, size=0.002))
    assert isinstance(found, Extrapolation) and found.shape == "power law"
    assert found.x == X[-1] and found.measured == pytest.approx(law(X[-1]), abs=0.01)
    assert abs(found.relative) < 0.015 and abs(found.spreads) < 3
    assert found.predicted.low < law(X[-1]) < found.predicted.high
    assert found.last == pytest.approx(law(X[-2]), abs=0.01)
    assert abs(found.last_relative) > 0.04 and found.beats_last


def test_where_the_law_breaks_the_error_says_so():
    found = extrapolate(measured(lambda x: np.where(x < X[-1], law(x), 0.6)))
    assert abs(found.relative) > 0.3 and abs(found.spreads) > 20
    assert not found.predicted.low < 0.6 < found.predicted.high


def test_the_largest_has_no_say_in_its_own_prediction():
    straight, broken = (
        measured(curve) for curve in (law, lambda x: np.where(x < X[-1], law(x), 9))
    )
    assert extrapolate(straight).predicted == extrapolate(broken).predicted


def test_without_two_seeds_there_is_no_spread_to_count_in():
    found = extrapolate(measured(law, seeds=1))
    assert found.spreads is None and found.relative is not None


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_too_few_levels_predict_nothing(levels):
    found = extrapolate(points_of(X[:levels], law(X[:levels])))
    assert isinstance(found, NotFitted) and found.reason
