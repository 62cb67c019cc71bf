"""`marvel bench preprocess` compares what gives the same pixels, and refuses what does not."""

import pytest

from marvel_jax.bench import preprocess
from marvel_jax.bench.preprocess import PreprocessOptions
from marvel_jax.errors import MarvelError

SMALL = PreprocessOptions(width=60, height=40, pictures=2, repeats=1)


def test_every_way_is_timed_beside_the_floor():
    pytest.importorskip("transformers")
    found = preprocess.run(SMALL)
    names = [row["preprocess"] for row in found["rows"]]
    assert names == ["resize alone", "ours", "ours, normalised", "transformers, Pillow"]
    assert found["rows"][-1]["transformers/this"] == 1 and found["resized"] == "84x56"
    assert "difference" in found["notes"][0]


def test_other_pixels_are_not_compared(monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr("marvel_jax.preprocessor.CLIP_MEAN", (0.48, 0.4578275, 0.40821073))
    with pytest.raises(MarvelError, match="transformers' pixels differ from ours by"):
        preprocess.run(SMALL)


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(MarvelError, match="pictures=0"):
        PreprocessOptions(pictures=0)
