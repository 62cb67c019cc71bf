"""Matrix products of a traced program: what one device computes, padding and repeats included."""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend import core

PARTS = ("vision", "language")
OTHER = "loss"  # what is in neither tower: pooling and the loss


class Product(NamedTuple):
    """One matrix product on one device."""

    flops: float
    bytes: float  # operands and result
    dtype: str  # of the operands
    part: str  # one of PARTS, or OTHER
    attention: bool  # between activations, head by head


class Counted(NamedTuple):
    """All products of one run of a program, and how often each is computed."""

    products: Counter[Product]

    @property
    def flops(self) -> float:
        return sum(one.flops * times for one, times in self.products.items())

    @property
    def bytes(self) -> float:
        return sum(one.bytes * times for one, times in self.products.items())

    def flops_of(self, part: str) -> float:
        """Of one of `PARTS` or of `OTHER`."""
        return sum(one.flops * times for one, times in self.products.items() if one.part == part)

    def with_kernels(self, share: dict[str, float]) -> "Counted":
        """Where a kernel computes a part's attention: only a share of all pairs of a row, and the
        weights never in memory.
        """
        found: Counter[Product] = Counter()
        for one, times in self.products.items():
            inside = one.attention and one.part in share
            left = one._replace(flops=one.flops * share[one.part], bytes=0.0) if inside else one
            found[left] += times
        return Counted(found)


def count_products(jaxpr: Any, *, devices: int) -> Counted:
    """Counts a traced program's products, loops as often as they go round.

    A product is taken to be split evenly over the devices, but for kernels, which each of them
    reads as a whole; inside of a `shard_map` its shapes are
    a device's own along the axes that are split by hand. Of a conditional the dearest branch
    counts: the branches of ours are alternatives of one product by platform. What a Pallas kernel
    computes is not counted: give the program that is traced with the kernel "xla".
    """
    found: Counter[Product] = Counter()
    _walk(jaxpr, 1, devices, OTHER, found)
    return Counted(found)


def _walk(jaxpr: Any, times: int, split: int, part: str, found: Counter[Product]) -> None:
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        scope = str(equation.source_info.name_stack)
        here = next((one for one in PARTS if one in scope), part)
        if name == "dot_general":
            found[_product(equation, split, here)] += times
        elif name == "scan":
            _walk(params["jaxpr"].jaxpr, times * params["length"], split, here, found)
        elif name == "cond":
            found.update(_dearest(params["branches"], times, split, here))
        elif name == "shard_map":
            # Inside of another one, only the axes that it splits itself.
            axes = params.get("newly_manual_axes", params.get("manual_axes", ()))
            manual = math.prod(params["mesh"].shape[axis] for axis in axes)
            inner = getattr(params["jaxpr"], "jaxpr", params["jaxpr"])
            _walk(inner, times, max(1, split // manual), here, found)
        elif name != "pallas_call":
            for inner in _inner_programs(params):
                _walk(inner, times, split, here, found)


def _dearest(branches: Any, times: int, split: int, part: str) -> Counter[Product]:
    # Of equal ones the last: `platform_dependent` puts a processor's own way before the default.
    best: Counter[Product] = Counter()
    for branch in branches:
        one: Counter[Product] = Counter()
        _walk(branch.jaxpr, times, split, part, one)
        if Counted(one).flops >= Counted(best).flops:
            best = one
    return best


def _product(equation: Any, split: int, part: str) -> Product:
    left, right = (operand.aval for operand in equation.invars[:2])
    result = equation.outvars[0].aval
    (contracted, _), (batched, _) = equation.params["dimension_numbers"]
    depth = math.prod(left.shape[axis] for axis in contracted)
    sizes = [math.prod(one.shape) * one.dtype.itemsize for one in (left, right, result)]
    whole = 0
    if not batched:
        # Tokens are the longest side; what does not have it, a kernel or its gradient, lies whole
        # on every device.
        sides = [math.prod(one.shape) // depth for one in (left, right)]
        longest = max(depth, *sides)
        whole = sizes[2 if longest == depth else 1 if longest == sides[0] else 0]
    return Product(
        flops=2.0 * math.prod(result.shape) * depth / split,
        bytes=(sum(sizes) - whole) / split + whole,
        dtype=left.dtype.name,
        part=part,
        attention=bool(batched) and part != OTHER,
    )


def _inner_programs(params: dict[str, Any]) -> Iterator[Any]:
    for value in params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif hasattr(one, "eqns"):
                yield one
