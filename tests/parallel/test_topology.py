"""Topologies have names; a wrong one, or a plugin that is missing, is told."""

import importlib.util
import time

import pytest

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.chips import CHIPS
from marvel_jax.parallel.topology import Topology, call_in_child, compile_only_devices

HERE = "tests.parallel.test_topology:"
CUDA = any(importlib.util.find_spec(f"jax_cuda{v}_plugin") for v in (12, 13))
LIBTPU = importlib.util.find_spec("libtpu") is not None
GPUS = {name: chip.gpu for name, chip in CHIPS.items() if chip.gpu}
TPUS = {name: chip.slices for name, chip in CHIPS.items() if chip.slices}


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
        ("cpu:h100:8", "is no topology"),  # never a processor with an H100's figures
        ("gpu::8", "is no topology"),
        ("tpu:v5e:8x", "is no topology"),
        ("gpu:h300:8", "one of a100-80, h100, h200, b200, not 'h300'"),
        ("gpu:h100:12", "multiple of 8, as gpu:h100:16"),
        ("tpu:v9:2x2", "one of v5e, v5p, v6e, not 'v9'"),
        ("tpu:v4:2x2x1", "one of v5e, v5p, v6e, not 'v4'"),
        ("tpu:v5e:32x32", "two sides|2 sides, of at most 16x16 chips, as tpu:v5e:1x1"),
        ("tpu:v5e:4x4x4", "2 sides"),
        ("tpu:v5p:8x8", "3 sides, of at most 16x20x28 chips"),
    ],
)
def test_names_that_mean_nothing_are_refused(name, message):
    with pytest.raises(MarvelError, match=message):
        Topology.parse(name)


def test_names_that_mean_something():
    assert Topology.parse("gpu:h100:64") == Topology("gpu", "h100", (64,))
    assert Topology.parse("gpu:b200:2").shape == (2,)
    assert Topology.parse("tpu:v5e:8x8") == Topology("tpu", "v5e", (8, 8))
    assert Topology.parse("tpu:v5p:28x16x20").devices == 16 * 20 * 28
    assert [Topology.parse(name).per_host for name in ("gpu:h100:4", "tpu:v5e:8x8")] == [4, 4]
    assert Topology.parse("cpu:8").figures is None
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


def hang(*, topology):
    time.sleep(60)


def test_a_child_that_takes_too_long_is_ended():
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="over 2 s"):
        call_in_child(HERE + "hang", topology="cpu:1", arguments={}, seconds=2)
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("topology", "extra", "there"),
    [("gpu:h100:8", "plan-gpu", CUDA), ("tpu:v5e:2x2", "plan-tpu", LIBTPU)],
)
def test_a_missing_compiler_is_named(topology, extra, there):
    if there:
        pytest.skip("the compiler is installed")
    with pytest.raises(MarvelError, match=rf"pip install 'marvel-jax\[{extra}\]'"):
        call_in_child(HERE + "describe", topology=topology, arguments={})


@pytest.mark.skipif(not CUDA, reason="jax's CUDA plugin is not installed (extra plan-gpu)")
@pytest.mark.parametrize("chip", GPUS)
def test_gpus_that_are_not_here_can_be_compiled_for(chip):
    count, kind, _ = call_in_child(HERE + "describe", topology=f"gpu:{chip}:16", arguments={})
    assert (count, kind) == (16, GPUS[chip].name)


@pytest.mark.skipif(not LIBTPU, reason="libtpu is not installed (extra plan-tpu)")
@pytest.mark.parametrize("chip", TPUS)
def test_tpus_that_are_not_here_can_be_compiled_for(chip):
    shape = TPUS[chip].examples[-1]
    count, kind, _ = call_in_child(HERE + "describe", topology=f"tpu:{chip}:{shape}", arguments={})
    assert count == Topology.parse(f"tpu:{chip}:{shape}").devices
    assert CHIPS[chip].kind in kind
