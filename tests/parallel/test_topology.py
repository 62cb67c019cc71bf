"""Topologies have names; a wrong one, or a plugin that is missing, is told."""

import importlib.util

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.topology import (
    GPUS,
    Topology,
    call_in_child,
    compile_only_devices,
)

HERE = "tests.parallel.test_topology:"
CUDA = any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13))


def describe(*, topology, double=0):
    """What a child sees: (devices, kind, twice its argument)."""
    devices = compile_only_devices(topology)
    return [len(devices), devices[0].device_kind, 2 * double]


def refuse(*, topology):
    raise MarvelError(f"no {topology} today")


def crash(*, topology):
    raise ValueError(f"broken on {topology}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100:8", "is no topology: write gpu:CHIP:DEVICES"),
        ("gpu:h100", "is no topology"),
        ("gpu:h100:2x4", "is no topology"),
        ("gpu:h100:0", "is no topology"),
        ("cpu:eight", "is no topology"),
        ("tpu:v5e:8x", "is no topology"),
        ("gpu:h300:8", "one of a100-80, h100, h200, b200, not 'h300'"),
        ("gpu:h100:12", "multiple of 8"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, message):
    with pytest.raises(MarvelError, match=message):
        Topology.parse(name)


def test_names_that_mean_something():
    assert Topology.parse("gpu:h100:64") == Topology("gpu", "h100", (64,))
    assert Topology.parse("gpu:b200:2").shape == (2,)
    assert Topology.parse("tpu:v5e:8x8") == Topology("tpu", "v5e", (8, 8))
    assert Topology.parse("cpu:3") == Topology("cpu", "", (3,))


def test_fake_devices_are_counted_in_a_child_and_not_here():
    assert call_in_child(HERE + "describe", topology="cpu:3", arguments={"double": 4}) == [
        3,
        "cpu",
        8,
    ]
    assert len(compile_only_devices("cpu:2")) == 2
    with pytest.raises(MarvelError, match="this process has 8 CPU devices"):
        compile_only_devices("cpu:9")


def test_a_child_tells_what_went_wrong():
    with pytest.raises(MarvelError, match=r"^no cpu:1 today$"):
        call_in_child(HERE + "refuse", topology="cpu:1", arguments={})
    with pytest.raises(MarvelError, match=r"failed with status 1: (?s:.*)broken on cpu:1"):
        call_in_child(HERE + "crash", topology="cpu:1", arguments={})


@pytest.mark.skipif(CUDA, reason="the plugin is installed")
def test_a_missing_plugin_is_named():
    with pytest.raises(MarvelError, match=r"pip install 'marvel-jax\[cuda13\]'"):
        call_in_child(HERE + "describe", topology="gpu:h100:8", arguments={})


@pytest.mark.skipif(not CUDA, reason="jax[cuda13] is not installed")
@pytest.mark.parametrize("chip", GPUS)
def test_gpus_that_are_not_here_can_be_compiled_for(chip):
    count, kind, _ = call_in_child(HERE + "describe", topology=f"gpu:{chip}:16", arguments={})
    assert (count, kind) == (16, GPUS[chip].name)
