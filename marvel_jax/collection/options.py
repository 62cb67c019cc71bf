"""How a collection is made; what is left out is as the version before has it."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from marvel_jax.collection.manifest import CollectionManifest
from marvel_jax.errors import MarvelError

COMPUTE = "float32"


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """How a collection is made. None is as the version before has it.

    In a new collection, and with `again`, None is the default.

    roots: folders beside the source's own that pictures may be in; by default none.
    captions: whether `cat.txt` is the caption of `cat.png`; by default not.
    again: what is there may be another model's or source's, or computed in another type, and its
      options do not count; what this model encoded in this type is still used.
    scann: build an index however small; by default where the rule builds leaves.
    dimensions: shorter widths to search; by default half and quarter, see `write.dimensions_of`.
    compute: the type of weights and matmuls; by default float32.
    batch_tokens: of a forward pass on a device.
    """

    roots: tuple[Path, ...] | None = None
    captions: bool | None = None
    again: bool = False
    scann: bool | None = None
    dimensions: tuple[int, ...] | None = None
    compute: str | None = None
    batch_tokens: int = 4096


def settle(options: BuildOptions, before: CollectionManifest | None, out: Path) -> BuildOptions:
    """The options with nothing left out but, by default, `dimensions`.

    Raises:
      MarvelError: the version before was computed in another type, and is to be kept; or one of
        its roots is gone.
    """
    kept = BuildOptions(roots=(), captions=False, scann=False, compute=COMPUTE)
    if before is not None and not options.again:
        kept = BuildOptions(
            roots=tuple(map(Path, before.roots[1:])),  # the first is the source's own
            captions=before.captions,
            scann=before.asked_scann,
            dimensions=before.asked_dimensions,
            compute=before.compute,
        )
        if options.compute not in (None, before.compute):
            raise MarvelError(
                f"{out} was made with --compute {before.compute}, not {options.compute}: vectors "
                "of both are not searched together. Leave --compute out, choose another --out, or "
                "add --again: then all of it is encoded anew."
            )
        gone = [root for root in kept.roots or () if not root.is_dir()]
        if gone and options.roots is None:
            raise MarvelError(
                f"{out} was made with --root {gone[0]}, which is no folder now: bring it back, or "
                "name the folders of its pictures with --root."
            )
    given = {
        field.name: value
        for field in dataclasses.fields(options)
        if (value := getattr(options, field.name)) is not None
    }
    return dataclasses.replace(kept, **given)
