"""`marvel bench attention` measures what it says, and its oracle is attention."""

import json
import math

import numpy as np
import pytest

from marvel_jax import cli
from marvel_jax.bench import attention
from marvel_jax.bench.attention import AttentionOptions
from marvel_jax.bench.attention_cases import exact, make_case, pairs
from marvel_jax.errors import MarvelError


def test_a_row_for_each_kernel_and_direction_and_why_one_is_missing(capsys):
    arguments = ["--tower", "tiny", "--rows", "2", "--length", "256", "--item", "40"]
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "attention", *arguments, "--repeats", "1", "--json"])
    assert not stop.value.code
    found = json.loads(capsys.readouterr().out.splitlines()[-1], parse_constant=pytest.fail)
    rows = {(row["kernel"], row["direction"]): row for row in found["rows"]}
    directions = ("forward", "forward and backward")
    assert set(rows) == {(k, d) for k in ("xla", "xla, inputs kept") for d in directions}
    kept, again = (rows[kernel, directions[1]]["mib"] for kernel in ("xla", "xla, inputs kept"))
    assert again < kept  # that is what the weights that are not kept are for
    assert all(row["ms"] > 0 and row["tflops/s"] > 0 for row in found["rows"])
    assert any("pallas left out" in note for note in found["notes"])


def test_a_kernel_that_fails_does_not_hide_the_others(monkeypatch):
    run = attention._both

    def fail(options, tower, asked, *rest):
        if asked == "xla":
            raise RuntimeError("RESOURCE_EXHAUSTED: too much")
        return run(options, tower, asked, *rest)

    monkeypatch.setattr(attention, "_both", fail)
    kernels = ("xla", "xla, inputs kept")
    options = AttentionOptions(tower=("tiny",), kernel=kernels, length=64, repeats=1)
    failed, *rows = attention.cases(options, catch=True)
    assert failed["failed"] == "does not fit into memory" and "ok" not in failed
    assert len(rows) == 2 and all(row["ms"] > 0 for row in rows)
    with pytest.raises(RuntimeError):
        list(attention.cases(options))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("one_item", [False, True])
def test_the_oracle_is_attention_one_query_at_a_time(causal, one_item):
    case = make_case(rows=2, length=24, heads=4, groups=2, size=8, one_item=one_item, item=6)
    output, *_ = exact(case, causal=causal)
    for row in range(2):
        for place in range(24):
            same = np.flatnonzero(case.segments[row] == case.segments[row, place])
            seen = same[same <= place] if causal else same
            for head in range(4):
                keys = case.key[row, seen, head // 2].astype(float)
                logits = keys @ case.query[row, place, head] / math.sqrt(8)
                weights = np.exp(logits) / np.exp(logits).sum()
                expected = weights @ case.value[row, seen, head // 2]
                np.testing.assert_allclose(output[row, place, head], expected, atol=1e-12)


def test_cases_hold_padding_and_items_as_asked():
    several = make_case(rows=4, length=200, heads=1, groups=1, size=8, one_item=False, item=20)
    one = make_case(rows=4, length=200, heads=1, groups=1, size=8, one_item=True)
    for case in (several, one):
        assert (case.segments[:, -1] == 0).all() and (case.segments[:, 0] == 1).all()
        assert not case.cotangent[~case.real].any() and case.cotangent[case.real].all()
    assert set(np.unique(one.segments)) == {0, 1} and several.segments.max() > 3
    lengths = [np.bincount(row)[1:] for row in several.segments]
    assert pairs(several.segments) == sum(int((one**2).sum()) for one in lengths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tower": ("vison",)}, "tower .*vison"),
        ({"kernel": ()}, "kernel"),
        ({"length": 0}, "length=0"),
        ({"dtype": "float16"}, "dtype='float16'"),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    with pytest.raises(MarvelError, match=message):
        AttentionOptions(**options)
