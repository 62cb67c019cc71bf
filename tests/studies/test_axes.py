"""Designs pick the points that they say: all of them, or a draw that can be extended."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.studies.axes import Axis, Grid, Random, Range, label

AXES = (Axis("batch", "a.batch", (8, 16, 32)), Axis("loss", "a.loss", ("plain", "other")))


def test_a_grid_has_every_combination_once_the_last_axis_fastest():
    points = Grid().points(AXES)
    expected = itertools.product((8, 16, 32), ("plain", "other"))
    assert [tuple(point.values()) for point in points] == list(expected)
    assert list(points[0]) == ["batch", "loss"]


@hypothesis.given(
    seed=st.integers(0, 2**32),
    budget=st.integers(1, 6),
    low=st.floats(1e-6, 1e3),
    factor=st.floats(1.01, 1e6),
    log=st.booleans(),
)
def test_random_points_differ_lie_in_their_ranges_and_stay_when_the_budget_grows(
    seed, budget, low, factor, log
):
    axes = (*AXES, Axis("rate", "a.rate", Range(low, low * factor, log=log)))
    drawn = Random(budget, seed).points(axes)
    assert len({repr(point) for point in drawn}) == budget
    assert all(low <= point["rate"] <= low * factor for point in drawn)
    assert all(point["batch"] in (8, 16, 32) for point in drawn)
    assert Random(budget + 3, seed).points(axes)[:budget] == drawn


def test_random_finds_all_points_and_refuses_more_than_there_are():
    assert {repr(one) for one in Random(6).points(AXES)} == {repr(p) for p in Grid().points(AXES)}
    with pytest.raises(MarvelError, match=r"about 6 different points.*Grid"):
        Random(7).points(AXES)


def test_a_log_range_is_even_in_the_logarithm_and_a_whole_one_has_integers():
    found = Range(1, 10_000, log=True)
    assert found.at(0.5) == pytest.approx(100) and (found.at(0), found.at(1)) == (1, 10_000)
    assert Range(2, 9, whole=True).at(0.5) in (5, 6)


def test_what_an_axis_changes():
    assert AXES[0].settings(8) == ("a.batch=8",)
    assert Axis("size", ("a.x", "b.y"), (1,)).settings(1) == ("a.x=1", "b.y=1")
    doubled = Axis("size", lambda value: (f"a.x={2 * value}",), (1,))
    assert doubled.settings(3) == ("a.x=6",)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Axis("batch", "a.batch", ()), r"axis 'batch'.*one or more"),
        (lambda: Axis("batch", "a.batch", (8, 8)), r"each once"),
        (lambda: Range(3, 3), "low < high"),
        (lambda: Range(0, 3, log=True), "both positive"),
        (lambda: Random(0), "1 or more"),
        (lambda: Grid().points([Axis("x", "a.x", Range(0, 1))]), r"'x' is a Range.*Random"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(MarvelError, match=message):
        make()


def test_a_point_in_a_line():
    assert label({"batch": 8, "rate": 0.001}) == "batch=8, rate=0.001"
