"""Step time is a roofline: more work, slower memory or farther neighbours never make it shorter."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.parallel.chips import CHIPS
from marvel_jax.parallel.collectives import Collective
from marvel_jax.plan.counted import Counted, Product
from marvel_jax.plan.estimate import Efficiency, estimate

H100, V5E = CHIPS["h100"], CHIPS["v5e"]
FULL = Efficiency(products=1.0, memory=1.0, links=1.0)
TWO_HOSTS = [0] * 8 + [1] * 8


def timed(*, flops=0.0, size=0.0, sent=(), chip=H100, hosts=TWO_HOSTS, dtype="bfloat16"):
    counted = Counted(Counter({Product(flops, size, dtype, "language", False): 1}))
    messages = Counter({Collective(kind, count, groups): 1 for kind, count, groups in sent})
    return estimate(
        counted, messages, chip=chip, hosts=hosts, useful_flops=flops * len(hosts), efficiency=FULL
    )


def test_computing_and_memory_overlap_and_messages_do_not():
    peak, bandwidth = H100.bfloat16 * 1e12, H100.bandwidth
    found = timed(flops=2 * peak, size=bandwidth)
    assert (found.compute_seconds, found.memory_seconds, found.step_seconds) == (2, 1, 2)
    assert found.mfu == 1
    assert timed(flops=peak, size=3 * bandwidth).mfu == pytest.approx(1 / 3)
    within = tuple(range(8))
    found = timed(flops=peak, sent=[("all-gather", 8 / 7 * H100.link, (within,))])
    assert found.step_seconds == pytest.approx(2)
    assert (found.link_seconds, found.network_seconds) == (pytest.approx(1), 0)


def test_full_float32_is_slower():
    assert timed(flops=1e15, dtype="float32").compute_seconds > 10 * timed(flops=1e15).mfu


def test_a_sum_goes_round_twice():
    everyone = (tuple(range(16)),)
    gather = timed(sent=[("all-gather", 1e9, everyone)])
    total = timed(sent=[("all-reduce", 1e9, everyone)])
    assert total.step_seconds == pytest.approx(2 * gather.step_seconds)


def test_the_devices_of_a_host_share_the_way_out():
    """All of a host together need no longer for their group than one of each needs for its own."""
    alone = timed(sent=[("all-gather", 1e9, tuple((i, i + 8) for i in range(8)))])
    together = timed(sent=[("all-gather", 1e9, (tuple(range(16)),))])
    assert alone.network_seconds == pytest.approx(1e9 / 2 / H100.network)
    assert together.link_seconds + together.network_seconds < alone.network_seconds
    # A ring is as slow as its slowest hop.
    ring = tuple((i, (i + 1) % 16) for i in range(16))
    assert timed(sent=[("collective-permute", 1e9, ring)]).network_seconds == 1e9 / H100.network
    near = tuple((i, (i + 1) % 8) for i in range(8))
    assert timed(sent=[("collective-permute", 1e9, near)]).network_seconds == 0


def test_a_slice_has_no_network_between_hosts():
    found = timed(sent=[("all-reduce", 1e9, (tuple(range(16)),))], chip=V5E)
    assert found.network_seconds == 0
    assert found.link_seconds == pytest.approx(2 * 1e9 * 15 / 16 / V5E.link)


@given(
    st.sampled_from(["all-gather", "all-reduce", "reduce-scatter", "all-to-all"]),
    st.floats(1, 1e12),
    st.floats(1, 1e12),
    st.sampled_from([2, 4, 8, 16]),
    st.sampled_from(list(CHIPS.values())),
)
def test_more_bytes_never_take_less_time(kind, one, other, size, chip):
    groups = (tuple(range(size)),)
    less, more = (timed(sent=[(kind, b, groups)], chip=chip) for b in sorted((one, other)))
    assert 0 < less.step_seconds <= more.step_seconds
