"""Tries settings until time is up, and ranks what fits by estimated speed."""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.plan.compile import Lengths, plan
from marvel_jax.plan.planned import Planned
from marvel_jax.training.config import TrainConfig

Tell = Callable[[str], None]

_REMATS: tuple[Literal["none", "dots", "attention", "full"], ...] = (
    "none",
    "dots",
    "attention",
    "full",
)


class Found(NamedTuple):
    """Plans, best first: those that fit by items/s, then the others by what they need."""

    plans: list[Planned]
    tried: int
    candidates: int
    interrupted: bool


def search(
    config: TrainConfig,
    topology: str,
    *,
    lengths: Lengths = "mbeir",
    batches: Sequence[int] = (),
    seconds: float = 600,
    tell: Tell = lambda line: None,
) -> Found:
    """Compiles variants of a config for a topology until `seconds` have passed.

    First the config as it is; from what it needs, other meshes, ways to rematerialise and chunks,
    those first that promise most. `batches` are other global batches to try. Ctrl-C ends it with
    what there is.

    Raises:
      MarvelError: the config as it is cannot be planned.
    """
    began = time.monotonic()
    plans: list[Planned] = []
    tried, interrupted = 0, False
    first = plan(config, topology, lengths=lengths)
    plans.append(first)
    tell(_line(first))
    variants = list(_variants(config, first, batches))
    for variant in variants:
        left = seconds - (time.monotonic() - began)
        if left <= 0:
            break
        if _hopeless(variant, plans):
            continue
        tried += 1
        try:
            found = plan(variant, topology, lengths=lengths, seconds=left)
        except KeyboardInterrupt:
            interrupted = True
            break
        except TimeoutError:
            break
        except MarvelError as error:  # a mesh that divides nothing, rows that do not divide
            tell(f"  left out: {error}")
            continue
        plans.append(found)
        tell(_line(found))
    plans.sort(key=_rank)
    return Found(plans, tried + 1, len(variants) + 1, interrupted)


def _variants(config: TrainConfig, first: Planned, batches: Sequence[int]) -> Iterator[TrainConfig]:
    """Other settings, the fastest of those that might fit first.

    Repeating the forward pass costs most, so that chunks without rematerialisation and one forward
    pass with it come first; splitting weights costs messages.
    """
    meshes = _meshes(first)
    chunks: list[int | None] = [2, 1, 4, 8, 16, None]
    order = sorted(
        itertools.product(meshes, _REMATS, chunks),
        key=lambda one: (meshes.index(one[0]), _repeats(one[1], one[2]), chunks.index(one[2])),
    )
    for batch in batches or (config.data.global_batch,):
        rows = first.rows * batch // first.items  # about
        for (fsdp, tensor), remat, chunk in order:
            if chunk is not None and chunk >= rows:
                continue
            variant = dataclasses.replace(
                config,
                data=dataclasses.replace(config.data, global_batch=batch),
                model=dataclasses.replace(config.model, remat=remat),
                mesh=dataclasses.replace(config.mesh, data=-1, fsdp=fsdp, tensor=tensor),
                chunk_rows=chunk,
            )
            if variant != config:
                yield variant


def _meshes(first: Planned) -> list[tuple[int, int]]:
    """(fsdp, tensor), what is asked for first, then within a host, then across hosts."""
    asked = (first.mesh["fsdp"], first.mesh["tensor"])
    per_host = max(1, first.devices // first.hosts)
    sizes = [size for size in (1, per_host, 2 * per_host, first.devices) if size <= first.devices]
    # What cannot hold even the weights is not tried.
    standing = (first.weight_bytes + first.moment_bytes) * asked[0]
    room = first.memory_bytes or standing
    found = [(size, 1) for size in dict.fromkeys(sizes) if standing / size <= room]
    return [asked, *(one for one in found if one != asked)]


def _repeats(remat: str, chunk: int | None) -> int:
    """How often about the towers are computed: forward, again, backward."""
    return 2 + (chunk is not None) + (remat == "full")


def _hopeless(variant: TrainConfig, plans: Sequence[Planned]) -> bool:
    """Whether a plan of the same mesh that keeps less, of fewer rows at a time, is too large."""
    rank = _REMATS.index(variant.model.remat)
    for one in plans:
        same = (one.mesh["fsdp"], one.mesh["tensor"]) == (variant.mesh.fsdp, variant.mesh.tensor)
        rows = one.settings["chunk_rows"] or one.rows
        if (
            one.fits is False
            and same
            and one.items <= variant.data.global_batch
            and rows <= (variant.chunk_rows or rows)
            and _REMATS.index(one.settings["remat"]) >= rank
        ):
            return True
    return False


def _rank(one: Planned) -> tuple[bool, float]:
    return (one.fits is False, -(one.items_per_second or 0) if one.fits else one.needed_bytes)


def _line(one: Planned) -> str:
    mesh = ",".join(str(size) for size in one.mesh.values())
    rate = "" if one.items_per_second is None else f", {one.items_per_second:,.1f} items/s"
    verdict = {True: "fits", False: "does not fit", None: ""}[one.fits]
    return (
        f"  mesh {mesh} chunk_rows={one.settings['chunk_rows']} remat={one.settings['remat']} "
        f"batch {one.items:,}: {one.needed_bytes / 2**30:.1f} GiB {verdict}{rate}"
    )
