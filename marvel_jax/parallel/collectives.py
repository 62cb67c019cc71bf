"""What a compiled program sends between devices, counted from its text."""

import re
from collections import Counter

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "collective-permute", "all-to-all")

# `%x = f32[8]{0} all-reduce(...)`. An asynchronous one is counted where it starts, not at its end.
_COLLECTIVE = re.compile(rf"\s({'|'.join(KINDS)})(?:-start)?\(")
# `%body (arg: f32[8]) -> f32[8] {` or `ENTRY %main (...) -> ... {`, at the margin.
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|[^\s,]+)")
_TRIPS = re.compile(r"known_trip_count\D*(\d+)")


def count_collectives(hlo_text: str) -> dict[str, int]:
    """How many collectives of each kind stand in a compiled program.

    `hlo_text` is `compiled.as_text()`. One inside a loop counts once; see `executed_collectives`.
    """
    found = Counter(_COLLECTIVE.findall(hlo_text))
    return {kind: found[kind] for kind in KINDS}


def executed_collectives(hlo_text: str) -> dict[str, int]:
    """How many collectives of each kind one run of a compiled program carries out.

    Those in a loop count as often as it goes round; a loop whose count the compiler does not know
    counts once.
    """
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in hlo_text.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        lines.append(line)
    done: dict[str, Counter[str]] = {}

    def count(name: str) -> Counter[str]:
        if name not in done:
            total: Counter[str] = Counter()
            for line in computations.get(name, ()):
                total.update(_COLLECTIVE.findall(line))
                trips = _TRIPS.search(line) if " while(" in line else None
                times = int(trips[1]) if trips else 1
                for called in _CALLED.findall(line):
                    for one in re.findall(r"[\w.\-]+", called):
                        for kind, number in count(one).items():
                            total[kind] += times * number
            done[name] = total
        return done[name]

    return {kind: count(entry)[kind] for kind in KINDS}
