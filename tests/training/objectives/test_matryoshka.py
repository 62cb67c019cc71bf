"""Nested widths in a train step: with and without GradCache, and what a config refuses."""

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.training.config import LossConfig
from tests.training import tiny_steps
from tests.training.tiny_steps import config_for

WIDTHS = LossConfig(implementation="dense", matryoshka=(8, 16), matryoshka_weights=(0.5, 2.0))


def test_a_step_learns_nested_widths_whatever_the_chunks():
    plain = tiny_steps.run(config_for(loss=LossConfig(implementation="dense")), num_steps=2)
    whole, chunks = (
        tiny_steps.run(config_for(loss=WIDTHS, chunk_rows=rows), num_steps=2) for rows in (None, 2)
    )
    for one, other in zip(whole.history, chunks.history, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-5, abs=1e-5)
    # The first step starts from the same weights: its loss is another, its accuracy the same.
    assert abs(whole.history[0]["loss"] - plain.history[0]["loss"]) > 1e-3
    assert whole.history[0]["accuracy"] == plain.history[0]["accuracy"]
    assert whole.history[-1]["loss"] < whole.history[0]["loss"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LossConfig(matryoshka=(128, 64)), r"matryoshka=\(128, 64\): give .* ascending"),
        (lambda: LossConfig(matryoshka=(64, 64)), "ascending"),
        (lambda: LossConfig(matryoshka=(0, 64)), "ascending"),
        (
            lambda: LossConfig(matryoshka=(64,), matryoshka_weights=(1.0, 2.0)),
            r"matryoshka_weights=\(1.0, 2.0\) for loss.matryoshka=\(64,\)",
        ),
        (lambda: LossConfig(matryoshka=(64,), matryoshka_weights=(0.0,)), "positive weight"),
        (
            lambda: config_for(loss=LossConfig(matryoshka=(8, 4096))),
            r"loss.matryoshka=\(8, 4096\): the model's vectors have \d+ numbers",
        ),
    ],
)
def test_widths_that_cannot_be_are_refused(make, message):
    with pytest.raises(MarvelError, match=message):
        make()
