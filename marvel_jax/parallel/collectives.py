"""What a compiled program sends between devices, counted from its text."""

import math
import re
from collections import Counter
from typing import NamedTuple

import numpy as np

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

# `%x = f32[8]{0} all-reduce(...)`. An asynchronous one is counted where it starts, not at its end.
_COLLECTIVE = re.compile(rf"\s({'|'.join(KINDS)})(-start)?\(")
# `%body (arg: f32[8]) -> f32[8] {` or `ENTRY %main (...) -> ... {`, at the margin.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|[^\s,]+)")
_TRIPS = re.compile(r"known_trip_count\D*(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")

# Groups are {{0,1},{2,3}}, [2,2]<=[4] (or of a transposed order, [2,2]<=[2,2]T(1,0)), or axes of a
# mesh: mesh['data'=2,'fsdp'=2] {'fsdp'}, with device_ids=(...) before them if it is no plain one.
_LISTED = re.compile(r"replica_groups=\{(\{.*?\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_NAMED = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
    r"\{([^}:]*)\}"
)


class Collective(NamedTuple):
    """One kind of message: `bytes` is the larger of what a device gives to it and gets from it.

    `groups` are the devices, by their places in the program's order, that exchange it; of a
    collective-permute they are (from, to). Empty = all devices.
    """

    kind: str
    bytes: int
    groups: tuple[tuple[int, ...], ...]


def count_collectives(hlo_text: str) -> dict[str, int]:
    """How many collectives of each kind stand in a compiled program.

    `hlo_text` is `compiled.as_text()`. One inside a loop counts once; see `executed_collectives`.
    """
    found = Counter(kind for kind, _ in _COLLECTIVE.findall(hlo_text))
    return {kind: found[kind] for kind in KINDS}


def executed_collectives(hlo_text: str) -> dict[str, int]:
    """How many collectives of each kind one run of a compiled program carries out.

    Those in a loop count as often as it goes round; a loop whose count the compiler does not know
    counts once.
    """
    found: Counter[str] = Counter()
    for one, times in messages(hlo_text).items():
        found[one.kind] += times
    return {kind: found[kind] for kind in KINDS}


def messages(hlo_text: str) -> Counter[Collective]:
    """Every collective of one run of a compiled program, and how often it is carried out."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo_text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        lines.append(line)
    done: dict[str, Counter[Collective]] = {}

    def count(name: str) -> Counter[Collective]:
        if name not in done:
            total: Counter[Collective] = Counter()
            for line in computations.get(name, ()):
                if found := _COLLECTIVE.search(line):
                    total[_read(line, found)] += 1
                times = _trips(line, computations) if " while(" in line else 1
                for called in _CALLED.findall(line):
                    for one in re.findall(r"[\w.\-]+", called):
                        for message, number in count(one).items():
                            total[message] += times * number
            done[name] = total
        return done[name]

    return count(entry)


def _trips(line: str, computations: dict[str, list[str]]) -> int:
    """How often a loop goes round: told by the compiler, or read off its condition, or 1."""
    if told := _TRIPS.search(line):
        return int(told[1])
    condition = _CONDITION.search(line)
    body = computations.get(condition[1], []) if condition else []
    constants = dict(re.findall(r"%([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)", "\n".join(body)))
    for one in body:
        # A scan counts from zero while it is below its length.
        if (compared := re.search(r"compare\(([^)]*)\), direction=LT", one)) and "ROOT" in one:
            for operand in re.findall(r"%([\w.\-]+)", compared[1]):
                if operand in constants:
                    return int(constants[operand])
    return 1


def _read(line: str, found: re.Match[str]) -> Collective:
    result = line[line.index("=") + 1 : found.start()]
    arrays = [_bytes(kind, shape) for kind, shape in _ARRAY.findall(result)]
    kind = found[1]
    # What starts shows operands and results; a permutation's handles beside them are a word each.
    size = sum(arrays)
    if found[2] and kind in ("all-gather", "reduce-scatter"):
        size = max(_halves(result))
    elif found[2] and kind in ("all-reduce", "collective-permute", "all-to-all"):
        size = _halves(result)[-1] if "(" in result else size
    groups = _groups(line) if kind != "collective-permute" else _pairs(line)
    if kind == "reduce-scatter" and not found[2]:  # a device gives as many parts as there are
        size *= len(groups[0]) if groups else 1
    return Collective(kind, size, groups)


def _halves(result: str) -> list[int]:
    """Bytes of the operands and of the results of `((operands), results, ...)`."""
    arrays = [_bytes(kind, shape) for kind, shape in _ARRAY.findall(result)]
    arrays = [size for size in arrays if size > 4] or arrays
    if len(arrays) % 2:
        return [sum(arrays)]
    return [sum(arrays[: len(arrays) // 2]), sum(arrays[len(arrays) // 2 :])]


def _bytes(kind: str, shape: str) -> int:
    bits = 8 if kind == "pred" else int(found[1]) if (found := _BITS.match(kind)) else 0
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


def _pairs(line: str) -> tuple[tuple[int, ...], ...]:
    listed = re.search(r"source_target_pairs=\{(.*?)\}\}", line)
    return _listed(listed[1]) if listed else ()


def _groups(line: str) -> tuple[tuple[int, ...], ...]:
    """`replica_groups`, in any of the three ways of writing them."""
    if listed := _LISTED.search(line):
        return _listed(listed[1])
    if iota := _IOTA.search(line):
        return _tuples(_order(iota[2], iota[3]).reshape(_numbers(iota[1])))
    if named := _NAMED.search(line):
        sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", named[1])}
        total = str(math.prod(sizes.values()))
        places = _order(named[2] or total, named[3]).reshape(tuple(sizes.values()))
        inside = [list(sizes).index(name) for name in re.findall(r"'([^']+)'", named[4])]
        width = math.prod(places.shape[axis] for axis in inside)
        return _tuples(np.moveaxis(places, inside, range(-len(inside), 0)).reshape(-1, width))
    return ()


def _order(shape: str, transposed: str | None) -> np.ndarray:
    """0, 1, 2 ... in a shape such as "4,2", perhaps transposed."""
    places = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return places.transpose(_numbers(transposed)) if transposed else places


def _tuples(groups: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, groups.tolist()))


def _listed(text: str) -> tuple[tuple[int, ...], ...]:
    found = [_numbers(one) for one in re.findall(r"\{([\d,]+)", "{" + text.lstrip("{"))]
    return tuple(found)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number)
