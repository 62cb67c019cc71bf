"""Iso-FLOP groups, the best size at each compute, and the front of score over compute."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.studies.frontier import compute_frontier, group_by_compute, pareto_front

SIZES, TOKENS = (
    axis.ravel() for axis in np.meshgrid(1e5 * 2.0 ** np.arange(6), 1e6 * 2.0 ** np.arange(6))
)
COMPUTE = 6 * SIZES * TOKENS
LOSS = 1.5 + 40 * SIZES**-0.3 + 200 * TOKENS**-0.35


def test_the_best_size_grows_as_the_law_has_it():
    loss = LOSS + 0.002 * np.random.default_rng(0).standard_normal(len(LOSS))
    found = compute_frontier(COMPUTE, SIZES, loss, better="lower")
    assert found.exponent is not None and found.reason is None
    # N ~ C^(0.35 / 0.65) where a N^-0.3 and b D^-0.35 are traded at C = 6 N D.
    assert found.exponent.low - 0.02 < 0.35 / 0.65 < found.exponent.high + 0.02
    truth = (0.3 * 40 / (0.35 * 200)) ** (1 / 0.65)
    best = truth * (COMPUTE.max() / 6) ** (0.35 / 0.65)
    assert found.size_at(COMPUTE.max()) == pytest.approx(best, rel=0.15)
    again = compute_frontier(COMPUTE, SIZES, -loss, better="higher")
    assert again.exponent == pytest.approx(found.exponent)


def test_groups_that_have_no_best_size_say_why():
    found = compute_frontier(COMPUTE, SIZES, SIZES**-0.3, better="lower")  # data does nothing
    assert (
        found.exponent is None
        and "of 11 computes" in found.reason
        and "and 0 a best size" in found.reason
    )
    assert all(group.best is None and group.reason for group in found.groups)


@given(
    flops=st.lists(st.floats(1e3, 1e20), min_size=1, max_size=30),
    tolerance=st.floats(0, 1),
    unit=st.sampled_from([1.0, 1024.0]),
)
@settings(max_examples=50, deadline=None)
def test_each_trial_is_in_one_group_and_alike_in_compute(flops, tolerance, unit):
    groups = group_by_compute(unit * np.asarray(flops), tolerance=tolerance)
    assert sorted(row for group in groups for row in group) == list(range(len(flops)))
    for group in groups:
        inside = np.asarray(flops)[group]
        assert inside.max() <= inside.min() * (1 + tolerance) * (1 + 1e-12)
    for group, following in itertools.pairwise(groups):
        assert np.asarray(flops)[group].max() < np.asarray(flops)[following].min()


def test_compute_of_nothing_is_refused():
    with pytest.raises(MarvelError, match="FLOPs"):
        group_by_compute(np.asarray([1.0, 0.0]))


@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(-5, 5)), min_size=1, max_size=25),
    st.sampled_from(["higher", "lower"]),
)
@settings(max_examples=100, deadline=None)
def test_the_front_is_what_nothing_as_cheap_equals(trials, better):
    flops, values = np.asarray(trials, float).T
    sign = 1 if better == "higher" else -1
    front = pareto_front(flops, values, better=better)
    assert list(flops[front]) == sorted(set(flops[front]))
    for row in range(len(trials)):
        cheap = flops[front] <= flops[row]
        assert (sign * values[front][cheap] >= sign * values[row]).any()
    for row in front:
        beaten = (flops <= flops[row]) & (sign * values > sign * values[row])
        assert not beaten.any()
