"""Which field of the config to change where a step does not fit, and to what."""

from marvel_jax.plan.planned import Planned

_GIB = 2**30


def advise(found: Planned) -> list[str]:
    """Lines to change a plan that does not fit by, the one that helps most first; none if it does.

    They are computed from what takes the memory; `marvel plan --search` compiles them.
    """
    if found.fits is not False or found.memory_bytes is None:
        return []
    told = []
    standing = found.weight_bytes + found.moment_bytes
    fleeting = found.needed_bytes - standing
    if standing > 0.6 * found.memory_bytes:
        told += _smaller_state(found, standing)
    if standing + fleeting > found.memory_bytes and fleeting > 0.2 * found.memory_bytes:
        told += _smaller_step(found, fleeting)
    return [f"change {one}" for one in told]


def _smaller_state(found: Planned, standing: int) -> list[str]:
    """What stands in memory all the time: weights and moments."""
    room = 0.6 * (found.memory_bytes or 0)
    split, most = found.mesh["fsdp"], found.devices // found.mesh["tensor"]
    wanted = split
    while standing * split / wanted > room and wanted < most:
        wanted *= 2
    told = f"weights and optimiser take {standing / _GIB:.1f} GiB of every device"
    lines = []
    if wanted > split and most % wanted == 0:
        left = standing * split / wanted / _GIB
        lines.append(f"mesh.fsdp={wanted}: {told}; split, they take about {left:.1f} GiB")
    if found.settings["dtype"] == "float32":
        lines.append("model.dtype=bfloat16: frozen weights and activations take half")
    return lines or [f"the machine: {told}, more than its devices hold"]


def _smaller_step(found: Planned, fleeting: int) -> list[str]:
    """What a step takes and gives back: activations, mostly."""
    if found.stage == "encode":
        return [f"--batch-tokens {found.rows * found.row['tokens'] // 2}: half the rows a call"]
    room = (found.memory_bytes or 0) - found.weight_bytes - found.moment_bytes
    at_once = found.settings["chunk_rows"] or found.rows
    told = f"activations of {at_once} rows at a time take {fleeting / _GIB:.1f} GiB"
    lines = []
    # Linear in the rows, and a fifth kept back for what is not.
    chunk = int(at_once * 0.8 * room / fleeting) if room > 0 else 1
    if at_once > 1:
        chunk = min(max(chunk, 1), at_once - 1)
        lines.append(f"chunk_rows={chunk}: {told}; GradCache encodes {chunk} at a time")
    if found.settings["remat"] != "full":
        lines.append(f"model.remat=full: {told}; most of them can be computed again")
    if not lines:
        lines.append(f"data.row: {told}, the least there is; make rows shorter, or mesh.tensor")
    return lines
