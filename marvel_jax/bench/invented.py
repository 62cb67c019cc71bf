"""Invented items of a real mix of lengths, so that a step can be timed without a corpus.

Tokens and pixels are random; lengths, pictures and what belongs together are those of the mix.
Everything from the plan to the batch is the pipeline's own.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from marvel_jax.data import images, processor
from marvel_jax.data.items import TASKS, Candidate, Item, Query
from marvel_jax.data.processor import EncodedItem
from marvel_jax.errors import MarvelError

Mix = Literal["emoji", "mbeir"]

# Share, patches of the picture, then mean, deviation, least and most tokens: what the batches of
# the quickstart hold (768 pairs counted). Its pictures have 16 patches, 4 visual tokens.
_EMOJI_QUERIES = ((0.68, 0, 17.2, 2.6, 12, 27), (0.32, 16, 19.1, 2.3, 16, 24))
_EMOJI_CANDIDATES = (
    (0.285, 0, 10.6, 2.5, 6, 22),
    (0.63, 16, 10.0, 0.0, 10, 10),
    (0.085, 16, 16.2, 2.6, 12, 23),
)
_INSTRUCTION_TOKENS = 4  # of a query, in front: read, but not pooled


class InventedSource:
    """A `RetrievalSource` of lengths alone; query i has candidate i * brought, then negatives."""

    def __init__(self, queries: np.ndarray, candidates: np.ndarray, *, name: str) -> None:
        """Takes (tokens, patches) of every query [Nq, 2] and candidate [Nq * brought, 2]."""
        brought = len(candidates) // len(queries)
        empty = Item.of(text="invented")
        self.fingerprint = f"{name} {len(queries)} {brought}"
        self.instructions: Mapping[tuple[int, str, str], tuple[str, ...]] = {}
        self.lengths = {f"0:q{number}": one for number, one in enumerate(queries.tolist())}
        self.lengths |= {f"0:{number}": one for number, one in enumerate(candidates.tolist())}
        self.candidates: Sequence[Candidate] = [
            Candidate(f"0:{number}", empty, "text") for number in range(len(candidates))
        ]
        names = [one.id for one in self.candidates]
        self.queries: Sequence[Query] = [
            Query(
                f"0:q{number}",
                empty,
                TASKS[1],
                positives=(names[number * brought],),
                negatives=tuple(names[number * brought + 1 : (number + 1) * brought]),
            )
            for number in range(len(queries))
        ]

    def candidate_index(self, id: str) -> int:
        """The position of a candidate."""
        return int(id.removeprefix("0:"))


class InventedProcessor:
    """Stands where a `Processor` does: gives each item random content of its length."""

    def __init__(
        self,
        lengths: Mapping[str, Sequence[int]],
        *,
        patch_values: int,
        image_token_id: int,
        merge: int,
        seed: int,
    ) -> None:
        """Token ids are drawn below `image_token_id`, which stands for every visual token."""
        self._lengths = lengths
        self._values, self._image, self._merge = patch_values, image_token_id, merge
        self._seed = seed
        self.fingerprint = f"invented {patch_values} {image_token_id} {merge} {seed}"

    def lengths(self, item: Item) -> tuple[int, int]:
        """(tokens, patches) of an item."""
        tokens, patches = self._lengths[str(item.id)]
        return tokens, patches

    def __call__(self, item: Item) -> EncodedItem:
        """The item's arrays, the same at every call."""
        name = str(item.id)
        length, patches = self.lengths(item)
        rng = np.random.default_rng([self._seed, *name.encode()])
        rows, columns = _grid(patches, self._merge)
        visual = patches // self._merge**2
        first = min(_INSTRUCTION_TOKENS, length - visual)
        tokens = rng.integers(0, self._image, length).astype(np.int32)
        tokens[first : first + visual] = self._image
        vision_index = np.full(length, -1, np.int32)
        vision_index[first : first + visual] = np.arange(visual)
        pooled = np.ones(length, bool)
        pooled[: _INSTRUCTION_TOKENS if name.startswith("0:q") else 0] = False
        spans, grids = [(first, first + visual)], [(rows // self._merge, columns // self._merge)]
        return EncodedItem(
            tokens=tokens,
            positions=processor.mrope_positions(length, spans, grids)
            if visual
            else processor.mrope_positions(length, [], []),
            pooled=pooled,
            patches=rng.integers(0, 256, (patches, self._values)).astype(np.uint8),
            patch_hw=images.patch_coordinates(rows, columns, self._merge)
            if visual
            else np.zeros((0, 2), np.int32),
            patch_image=np.zeros(patches, np.int32),
            vision_index=vision_index,
        )


def source(mix: Mix, *, queries: int, brought: int, seed: int) -> InventedSource:
    """Queries of a mix, each with `brought` candidates of its own, the first of them its positive.

    Raises:
      MarvelError: an unknown mix.
    """
    if mix == "mbeir":
        from marvel_jax.data.mbeir_lengths import MbeirMix, mbeir_lengths

        index = mbeir_lengths(MbeirMix(queries=queries, hard_negatives=brought - 1, seed=seed))
        return InventedSource(index.queries, index.candidates, name=f"mbeir {seed}")
    if mix != "emoji":
        raise MarvelError(f"mix {mix!r} is unknown: choose emoji or mbeir.")
    rng = np.random.default_rng(seed)
    return InventedSource(
        _draw(_EMOJI_QUERIES, queries, rng),
        _draw(_EMOJI_CANDIDATES, queries * brought, rng),
        name=f"emoji {seed}",
    )


def _draw(
    kinds: Sequence[tuple[float, int, float, float, int, int]], count: int, rng: np.random.Generator
) -> np.ndarray:
    """(tokens, patches) [count, 2]: each kind's share exactly, in random order."""
    ends = np.rint(np.cumsum([kind[0] for kind in kinds]) * count).astype(int)
    kind_of = np.searchsorted(ends, rng.permutation(count), side="right")
    table = np.array([kind[1:] for kind in kinds])[kind_of]
    patches, mean, deviation, least, most = table.T
    tokens = np.clip(np.rint(mean + deviation * rng.normal(size=count)), least, most)
    return np.stack([tokens, patches], axis=1).astype(np.int32)


def _grid(patches: int, merge: int) -> tuple[int, int]:
    """(rows, columns) of a picture, as square as whole merged tokens allow."""
    merged = patches // merge**2
    rows = max((n for n in range(1, int(merged**0.5) + 1) if merged % n == 0), default=0)
    return rows * merge, (merged // rows if rows else 0) * merge
