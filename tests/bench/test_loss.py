"""`marvel bench loss` measures what it says."""

import pytest

from marvel_jax.bench.loss import Options, run
from marvel_jax.errors import MarvelError


def test_a_row_for_every_case_with_bytes_and_seconds():
    names = ("dense", "ring")
    options = Options(
        batch=(128, 1024), width=(64,), implementation=names, fake_devices=2, repeats=1, tile=64
    )
    rows = run(options)["rows"]
    assert [(row["batch"], row["implementation"]) for row in rows] == [
        (batch, name) for batch in (128, 1024) for name in names
    ]
    assert all(row["devices"] == 2 and row["seconds"] > 0 for row in rows)
    bytes_of = {(row["batch"], row["implementation"]): row["temporary_mib"] for row in rows}
    assert bytes_of[1024, "dense"] > 4 * bytes_of[1024, "ring"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"implementation": ("fast",)}, "fast"),
        ({"compile_for": "gpu:h100:8", "fake_devices": 8}, "compile_for and fake_devices"),
        ({"batch": ()}, "positive numbers"),
        ({"hard_negatives": -1}, "hard_negatives=-1"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(MarvelError, match=message):
        Options(**options)


def test_a_batch_that_does_not_split_is_told():
    with pytest.raises(MarvelError, match="batch 63 does not split over 2 devices"):
        run(Options(batch=(63,), width=(8,), fake_devices=2))
