"""A device is known by what it calls itself, and its figures are plausible beside each other."""

import pytest

from marvel_jax.parallel.chips import CHIPS, chip_of


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5e", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6 lite", "v6e"),
        ("TPU v6e", "v6e"),
        ("NVIDIA A100-SXM4-80GB", "a100-80"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA B200", "b200"),
    ],
)
def test_a_device_is_known_by_its_kind(kind, name):
    assert chip_of(kind) is CHIPS[name]


@pytest.mark.parametrize("kind", ["cpu", "a card of tomorrow", ""])
def test_others_are_not_guessed(kind):
    assert chip_of(kind) is None


@pytest.mark.parametrize("name", CHIPS)
def test_units_are_what_they_say(name):
    """Bytes, bytes/s and TFLOP/s: a figure in another unit is off by thousands."""
    chip = CHIPS[name]
    assert 15 * 2**30 < chip.memory < 200 * 2**30
    assert 5e11 < chip.bandwidth < 1e13
    assert 10 < chip.float32 < chip.bfloat16 < 3000
    assert 1e10 < chip.link < 1e12
    # A matrix product has to do a few hundred operations for each byte to keep a chip busy.
    assert 100 < chip.bfloat16 * 1e12 / chip.bandwidth < 700
    assert chip.network is None or chip.network < chip.link
    assert chip.usable <= chip.memory
    if chip.gpu:
        assert chip.gpu.name.startswith("NVIDIA") and chip.kind in chip.gpu.name
