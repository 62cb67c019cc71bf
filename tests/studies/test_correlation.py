"""Loss against score, over all trials and among those that are alike."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from marvel_jax.errors import MarvelError
from marvel_jax.studies.correlation import (
    Correlation,
    NotCorrelated,
    correlate,
    correlate_within,
)


@given(seed=st.integers(0, 1000), number=st.integers(5, 30))
@settings(max_examples=20, deadline=None)
def test_it_is_pearson_and_spearman_as_scipy_has_them(seed, number):
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 8, number) + 0.1 * np.arange(number)  # with ties up to the trend
    y = rng.integers(0, 4, number).astype(float)
    y[0], y[1] = 0.0, 3.0
    found = correlate(x, y, draws=50)
    assert found.pearson.value == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    assert found.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    for one in (found.pearson, found.spearman):
        assert -1 <= one.low <= one.high <= 1


def test_intervals_cover_the_truth_as_often_as_they_say():
    repetitions, rho = 60, -0.6
    rng = np.random.default_rng(0)
    covered = 0
    for number in range(repetitions):
        x = rng.standard_normal(40)
        y = rho * x + np.sqrt(1 - rho**2) * rng.standard_normal(40)
        found = correlate(x, y, seed=number, draws=200).pearson
        covered += found.low <= rho <= found.high
    assert stats.binom.ppf(0.001, repetitions, 0.9) <= covered < repetitions


def test_where_an_axis_moves_both_the_trap_is_told():
    batch = np.repeat([0, 1, 2, 3], 6)
    luck = np.random.default_rng(0).standard_normal(24)
    loss, score = batch - 0.1 * luck, batch + 0.1 * luck
    found = correlate_within(loss, score, axis="batch", values=list(batch))
    assert correlate(loss, score).pearson.low > 0.9
    assert isinstance(found.pooled, Correlation) and found.pooled.pearson.high < -0.9
    assert found.opposite and found.sure
    assert [value for value, _ in found.levels] == [0, 1, 2, 3]
    honest = correlate_within(batch - luck, luck - batch, axis="batch", values=list(batch))
    assert not honest.opposite and not honest.sure


def test_what_does_not_vary_has_no_correlation_and_no_nan():
    flat, rising = np.full(8, 0.3), np.arange(8.0)
    assert isinstance(correlate(flat, rising), NotCorrelated)
    assert "asks for" in correlate(rising[:4], rising[:4]).reason
    # Alone in its level, each trial says nothing of its level.
    found = correlate_within(rising, rising, axis="x", values=list(range(8)))
    assert isinstance(found.pooled, NotCorrelated) and not found.opposite
    rare = np.zeros(8)
    rare[0] = 1
    some = correlate(rare, rising)
    assert some.dropped > 0.1 and np.all(np.isfinite([*some.pearson, *some.spearman]))


def test_what_does_not_vary_among_alike_trials_says_nothing_of_them():
    # One training, searched in six pools, has one loss: what is left of it is a float's last digit.
    loss = np.repeat([1.71, 5.3171], 6)
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.5, 0.7, 0.5, 0.3, 0.2, 0.15, 0.1])
    found = correlate_within(loss, score, axis="steps", values=[1400] * 6 + [350] * 6)
    assert isinstance(found.pooled, NotCorrelated) and not found.opposite


def test_figures_of_other_trials_are_refused():
    with pytest.raises(MarvelError):
        correlate(np.arange(5.0), np.arange(6.0))
    with pytest.raises(MarvelError):
        correlate(np.asarray([1, 2, 3, 4, np.nan]), np.arange(5.0))
