"""The model equals transformers' Qwen2-VL in float32, and a mistake would show."""

import numpy as np
import pytest

from tests.models import parity, torch_reference

CASES = [
    (name, attention, scheme)
    for name in parity.CHECKPOINTS
    for attention in parity.ATTENTIONS
    for scheme in parity.SCHEMES
]


@pytest.mark.parametrize(("name", "attention", "scheme"), CASES)
def test_equals_the_recorded_reference(name, attention, scheme):
    errors = parity.parity(name, attention_kind=attention, scheme=scheme)
    assert max(errors) <= parity.TOLERANCE, errors


@pytest.mark.parametrize("name", parity.CHECKPOINTS)
def test_positions_of_the_samples_are_those_of_the_reference(name):
    golden = parity.golden(name)
    for item, sample in golden.samples.items():
        np.testing.assert_array_equal(sample.positions("mrope"), golden.arrays[f"{item}/mrope"])


@pytest.mark.parametrize("mutation", list(parity.mutations()), ids=lambda mutation: mutation.name)
def test_a_mistake_breaks_parity(mutation):
    # The epsilons show in small_norms only, so it goes first; one that notices is enough.
    noticed = (
        mutation.error(name) >= 2 * parity.TOLERANCE for name in ("small_norms", "tied", "untied")
    )
    assert any(noticed)


@pytest.mark.peer
@pytest.mark.parametrize("name", parity.CHECKPOINTS)
def test_the_recorded_reference_is_what_transformers_gives(name):
    pytest.importorskip("torch")
    golden = parity.golden(name)
    model = torch_reference.load(parity.GOLDEN / name)
    for item, sample in golden.samples.items():
        if sample.grids:
            visual = torch_reference.visual_tokens(model, sample)
            _close(visual, golden.arrays[f"{item}/visual"])
        for attention in parity.ATTENTIONS:
            for scheme in parity.SCHEMES:
                states = torch_reference.hidden_states(
                    model, sample, attention=attention, positions=scheme
                )
                _close(states, golden.arrays[f"{item}/{attention}/{scheme}"])


def _close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=parity.TOLERANCE * scale)
