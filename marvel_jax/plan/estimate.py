"""Step time from operations, memory traffic and messages: a roofline, with what it assumes."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from marvel_jax.parallel.chips import Chip
from marvel_jax.parallel.collectives import Collective
from marvel_jax.plan.counted import Counted


@dataclass(frozen=True)
class Efficiency:
    """The share of each peak that is taken to be reached. Assumed, not measured."""

    products: float = 0.65
    memory: float = 0.8
    links: float = 0.75


class Estimate(NamedTuple):
    """Seconds of one step on one device, and what makes them up."""

    step_seconds: float
    compute_seconds: float
    memory_seconds: float
    link_seconds: float  # between devices of a host, or of a TPU slice
    network_seconds: float  # between hosts
    mfu: float  # useful work against the dense bfloat16 peak
    assumptions: str


def estimate(
    counted: Counted,
    sent: Counter[Collective],
    *,
    chip: Chip,
    hosts: Sequence[int],
    useful_flops: float,
    efficiency: Efficiency | None = None,
) -> Estimate:
    """The longer of computing and reading memory, and after it all messages, none of them hidden.

    Args:
      counted: the products of one device.
      sent: the messages of one step.
      chip: the device.
      hosts: the host of each device, in the program's order.
      useful_flops: of the whole step on all devices, without padding and repeats.
      efficiency: the shares of the peaks.
    """
    share = efficiency or Efficiency()
    peaks = {"float32": chip.float32}
    compute = sum(
        one.flops * times / (peaks.get(one.dtype, chip.bfloat16) * 1e12 * share.products)
        for one, times in counted.products.items()
    )
    memory = counted.bytes / (chip.bandwidth * share.memory)
    link = network = 0.0
    for message, times in sent.items():
        near, far = _seconds(message, chip=chip, hosts=hosts)
        # The slower of the two decides; they are different wires.
        if near >= far:
            link += times * near / share.links
        else:
            network += times * far / share.links
    seconds = max(compute, memory) + link + network
    return Estimate(
        step_seconds=seconds,
        compute_seconds=compute,
        memory_seconds=memory,
        link_seconds=link,
        network_seconds=network,
        mfu=useful_flops / len(hosts) / seconds / (chip.bfloat16 * 1e12),
        assumptions=_assumptions(chip, share),
    )


def _seconds(message: Collective, *, chip: Chip, hosts: Sequence[int]) -> tuple[float, float]:
    """Seconds on the links within hosts and on the network between them, at their full rates."""
    groups = message.groups or (tuple(range(len(hosts))),)
    if message.kind == "collective-permute":
        far = any(hosts[one] != hosts[other] for one, other in groups)
        return message.bytes / chip.link, _network(message.bytes, chip) if far else 0.0
    group = max(groups, key=len)
    size = len(group)
    # Each part goes once round the group; of a sum the parts come back as well.
    rounds = 2 if message.kind == "all-reduce" else 1
    moved = rounds * message.bytes
    near = moved * (size - 1) / size / chip.link
    here = Counter(hosts[place] for place in group)
    if len(here) == 1 or chip.network is None:
        return near, 0.0
    # The devices of a host share the way out of it: each sends its part of what leaves.
    together = min(here.values())
    return near, _network(moved * (1 - together / size) / together, chip)


def _network(sent: float, chip: Chip) -> float:
    return 0.0 if chip.network is None else sent / chip.network


def _assumptions(chip: Chip, share: Efficiency) -> str:
    network = (
        "one torus axis, one way"
        if chip.network is None
        else f"NVLink, {chip.network / 1e9:.0f} GB/s a device between hosts"
    )
    return (
        f"estimated, not measured: products at {share.products:.0%} of {chip.bfloat16:,.0f} "
        f"TFLOP/s (bfloat16; full float32 {chip.float32:,.0f}), operands and results once through "
        f"memory at {share.memory:.0%} of {chip.bandwidth / 1e12:.2f} TB/s, the longer of the two; "
        f"then every message at {share.links:.0%} of {chip.link / 1e9:.0f} GB/s ({network}), "
        "nothing overlapped"
    )
