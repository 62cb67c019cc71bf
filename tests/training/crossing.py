"""Which collectives of a compiled program leave a group of devices, such as a host."""

import re

import numpy as np

from marvel_jax.parallel.collectives import KINDS

_OPERATION = re.compile(rf"\s(?:{'|'.join(KINDS)})(?:-start)?\(")
# {{0,1},{2,3}}; [2,4]<=[8] or [2,4]<=[4,2]T(1,0); mesh['a'=2,'b'=4], device_ids=([2,4]T(1,0)) {'b'}
_LIST = re.compile(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{}]*\})\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
    r"\{([^}:]*)\}"
)


def between_groups(hlo_text: str, *, each: int) -> str:
    """The program without the collectives that stay among `each` devices that follow another."""
    return "\n".join(line for line in hlo_text.splitlines() if not _stays_inside(line, each))


def _stays_inside(line: str, each: int) -> bool:
    if not _OPERATION.search(line):
        return False
    return all(len({device // each for device in members}) == 1 for members in partners(line))


def partners(line: str) -> list[list[int]]:
    """The devices that talk with each other in a collective, by their numbers."""
    if listed := _LIST.search(line):
        return [_numbers(part) for part in listed[1][1:-1].split("},{")]
    if iota := _IOTA.search(line):
        return _order(iota[2], iota[3]).reshape(_numbers(iota[1])).tolist()
    mesh = _MESH.search(line)
    assert mesh, f"another way to write who talks with whom: {line}"
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
    total = str(np.prod(list(sizes.values())))
    places = _order(mesh[2] or total, mesh[3]).reshape(list(sizes.values()))
    talking = [list(sizes).index(name) for name in re.findall(r"'(\w+)'", mesh[4])]
    members = np.prod([places.shape[axis] for axis in talking], dtype=int)
    last = range(places.ndim - len(talking), places.ndim)
    return np.moveaxis(places, talking, last).reshape(-1, members).tolist()


def _order(dims: str, permutation: str | None) -> np.ndarray:
    """0, 1, 2 ... in the shape `dims`, transposed."""
    places = np.arange(np.prod(_numbers(dims))).reshape(_numbers(dims))
    return places.transpose(_numbers(permutation)) if permutation else places


def _numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]
