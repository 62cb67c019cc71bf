"""How an index is built and searched, and the rule that chooses it from the corpus."""

import bisect
import dataclasses
import math
from typing import Literal

from marvel_jax.errors import MarvelError

_BRUTE_FORCE_BELOW = 3000
_TRAINING_SAMPLE = 250_000
_CODE_SAMPLE = 100_000  # ScaNN's own
_MOST_ROWS = 1 << 40
_TWO_A_BLOCK = 512  # numbers of a vector at most
_LEAF_ROWS = 100  # on average, where there are rows enough for it


@dataclasses.dataclass(frozen=True)
class ScannConfig:
    """How an index is built and searched. None is chosen by `resolve`, from the corpus.

    The index is a list of shards over consecutive rows, each with leaves and codes of its own.

    kind: "tree" (leaves and codes) or "brute_force" (exact); None: a tree from 3,000 vectors on.
    leaves: leaves of a shard; None: four times the square root of its rows; from 160,000 rows on
      one for 100 of them, up to ten times the square root. Small leaves waste less: at 100,000 x
      768, recall@10 0.99 needs 3% of the rows so, and 30% with a quarter of the leaves; at
      1,000,000 x 768, 10,000 leaves give 15% more queries/s at 0.95 than 4,000.
    search_leaves: leaves of a shard looked at for a query; None: a fiftieth of them, at least 32.
    reorder: candidates scored again with their vectors; None: 200.
    dimensions_per_block: numbers that share a 4-bit code; None: 2 up to 512 numbers, else 3. Up to
      256 blocks ScaNN is on its fastest path, but coarser codes need more candidates: of 112,182 x
      1,536 those of 3 find with 45 candidates what those of 6 find with 220.
    vectors: where candidates' vectors are read: "index" (a float32 copy that the index holds in
      memory) or "store"; None: the index where the corpus fits into memory, else the store.
    shard_rows: rows of a shard at most; None: what fits into memory while a shard is built.
    """

    kind: Literal["tree", "brute_force"] | None = None
    leaves: int | None = None
    search_leaves: int | None = None
    reorder: int | None = None
    dimensions_per_block: int | None = None
    vectors: Literal["index", "store"] | None = None
    shard_rows: int | None = None

    def __post_init__(self) -> None:
        for name in ("leaves", "search_leaves", "reorder", "dimensions_per_block", "shard_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise MarvelError(f"{name}={value}: expected at least 1, or None for the rule.")

    def resolve(self, count: int, dimension: int, *, memory: int) -> "ScannConfig":
        """This config with every None replaced by the rule's choice.

        Args:
          count: vectors of the corpus.
          dimension: their length.
          memory: bytes that building may take.

        Raises:
          MarvelError: more leaves than a shard has vectors, or not even a thousand vectors fit
            into memory.
        """
        if (self.kind or ("brute_force" if count < _BRUTE_FORCE_BELOW else "tree")) != "tree":
            return ScannConfig(kind="brute_force")
        fits = rows_that_fit(memory, dimension)
        asked = self.shard_rows or count
        vectors = self.vectors or ("index" if asked >= count and fits >= count else "store")
        if fits < min(count, 1000):
            raise MarvelError(
                f"{memory / 2**30:.2f} GiB hold {fits} vectors of dimension {dimension} while an "
                f"index is built: give at least {build_bytes(1000, dimension) / 2**30:.2f} GiB."
            )
        # Equal shards: a small last one would have leaves of its own all the same.
        rows = -(-count // -(-count // min(asked, fits)))
        leaves = self.leaves or _leaves(rows)
        if leaves > rows:
            raise MarvelError(f"leaves={leaves} for {rows} vectors: expected at most {rows}.")
        return ScannConfig(
            kind="tree",
            leaves=leaves,
            search_leaves=min(leaves, self.search_leaves or max(32, leaves // 50)),
            reorder=self.reorder or 200,
            dimensions_per_block=self.dimensions_per_block
            or (2 if dimension <= _TWO_A_BLOCK else 3),
            vectors=vectors,
            shard_rows=rows,
        )


def _leaves(rows: int) -> int:
    root = math.sqrt(rows)
    return round(min(max(4 * root, rows / _LEAF_ROWS, 1), 10 * root))


def training_sample(rows: int) -> int:
    """Vectors by which the leaves of a shard are found."""
    return min(rows, _TRAINING_SAMPLE)


def build_bytes(rows: int, dimension: int) -> int:
    """What building a shard takes at its worst.

    Measured at 1,536 numbers: 3.3 float32 copies of the rows, and 1.8 of each of two samples: that
    by which the leaves are found, and ScaNN's own for the codes.
    """
    samples = 1.9 * training_sample(rows) + 1.9 * min(rows, _CODE_SAMPLE)
    return int(4 * dimension * (3.4 * rows + samples))


def rows_that_fit(memory: int, dimension: int) -> int:
    """The most rows whose shard is built within so many bytes."""
    return bisect.bisect_right(
        range(1, _MOST_ROWS), memory, key=lambda rows: build_bytes(rows, dimension)
    )


def describe(config: ScannConfig, *, count: int | None = None) -> str:
    """One line for a report, e.g. "1,264 leaves, 32 searched, 200 scored again exactly"."""
    if config.kind == "brute_force":
        return "brute force"
    shards = 1 if count is None or not config.shard_rows else -(-count // config.shard_rows)
    return (
        (f"{shards} shards of " if shards > 1 else "")
        + f"{config.leaves} leaves, {config.search_leaves} searched, "
        + f"{config.reorder} scored again exactly"
        + (" from the store" if config.vectors == "store" else "")
    )
