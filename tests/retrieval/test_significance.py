import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.significance import PairedTest, holm, paired_mean_test, paired_test

HITS = st.sampled_from([0.0, 1.0])


def enumerated(difference: np.ndarray) -> float:
    """The p-value over every one of the 2^n ways to swap, each as likely as the next."""
    observed = abs(difference.mean())
    signs = np.array(list(itertools.product([1, -1], repeat=len(difference))))
    return float((np.abs((signs * difference).mean(axis=1)) >= observed - 1e-12).mean())


@given(arrays.arrays(float, st.tuples(st.just(2), st.integers(1, 10)), elements=HITS))
def test_hits_are_tested_exactly(values):
    ours, theirs = values
    test = paired_test(ours, theirs, seed=0)
    assert test.p == pytest.approx(enumerated(ours - theirs), abs=1e-12)
    assert test.wins - test.losses == (ours - theirs).sum()
    assert test.difference.mean == pytest.approx((ours - theirs).mean())


@pytest.mark.parametrize("seed", range(4))
def test_other_values_are_tested_by_drawing_swaps(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.choice([0.0, 1 / 3, 1 / 2, 1.0], (2, 11))
    wanted = enumerated(ours - theirs)
    draws = 100_000
    error = 4 * np.sqrt(wanted * (1 - wanted) / draws) + 2 / draws
    assert abs(paired_test(ours, theirs, seed=seed).p - wanted) <= error


@given(arrays.arrays(float, st.tuples(st.just(2), st.integers(1, 40)), elements=HITS))
def test_changing_sides_turns_the_difference_and_keeps_the_p_value(values):
    ours, theirs = values
    one, other = (paired_test(*pair, seed=1) for pair in ((ours, theirs), (theirs, ours)))
    assert one.p == pytest.approx(other.p, rel=1e-9)
    assert one.difference.mean == -other.difference.mean
    assert (one.wins, one.losses) == (other.losses, other.wins)


def test_a_run_does_not_differ_from_itself():
    hits = np.random.default_rng(0).integers(0, 2, 50).astype(float)
    test = paired_test(hits, hits, seed=0)
    assert test.p == 1 and test.difference == (0, 0, 0)
    assert paired_mean_test([hits, hits], [hits, hits], seed=0, draws=1000).p == 1


def test_pairing_finds_what_two_separate_intervals_hide():
    rng = np.random.default_rng(0)
    theirs = rng.integers(0, 2, 400).astype(float)
    ours = theirs.copy()
    missed = np.flatnonzero(theirs == 0)[:12]
    ours[missed] = 1  # 3 points better on the same queries; an interval of one run is 10 wide
    test = paired_test(ours, theirs, seed=0)
    assert test.p < 0.001 and test.difference.low > 0
    mean = paired_mean_test([ours, theirs], [theirs, theirs], seed=0)
    assert mean.p < 0.001 and mean.difference.mean == pytest.approx(0.015)


def test_equal_systems_are_called_different_as_often_as_the_level_says():
    rng = np.random.default_rng(3)
    found = [
        paired_mean_test(*rng.integers(0, 2, (2, 2, 60)).astype(float), seed=n, draws=400).p < 0.1
        for n in range(300)
    ]
    assert 0.05 < np.mean(found) < 0.15


def test_every_set_weighs_the_same_in_the_mean():
    small, large = np.ones(2), np.zeros(1000)
    test = paired_mean_test([small, large], [np.zeros(2), large], seed=0, draws=100)
    assert test.difference.mean == pytest.approx(0.5)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_procedure_rejects(values):
    tests = [PairedTest(None, p, p, 0, 0) for p in values]
    adjusted = [test.adjusted for test in holm(tests)]
    for level in (0.001, 0.01, 0.05, 0.2, 0.5):
        rejected, order = set(), sorted(range(len(values)), key=lambda n: values[n])
        for step, number in enumerate(order):  # from the smallest on, until one stands
            if values[number] > level / (len(values) - step):
                break
            rejected.add(number)
        agreed = {n for n in range(len(values)) if adjusted[n] <= level}
        # Only rounding of p x m against level / m may tell them apart.
        assert all(abs(adjusted[n] - level) < 1e-12 for n in agreed ^ rejected)


def test_the_same_seed_gives_the_same_test():
    rng = np.random.default_rng(0)
    ours, theirs = rng.random((2, 30))
    first, again, other = (paired_test(ours, theirs, seed=seed) for seed in (5, 5, 6))
    assert first == again != other


def test_runs_over_other_queries_are_refused():
    with pytest.raises(MarvelError, match="3 and 4"):
        paired_test(np.ones(3), np.ones(4), seed=0)
    with pytest.raises(MarvelError, match="0 and 0"):
        paired_test(np.ones(0), np.ones(0), seed=0)
