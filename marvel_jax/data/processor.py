"""An item becomes the arrays of one sequence: tokens, positions, pooled mask and patches."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marvel_jax import files
from marvel_jax.data import chat, images
from marvel_jax.data.chat import ChatTokenizer, ChatTokens
from marvel_jax.data.images import ImageGeometry, PatchCache
from marvel_jax.data.items import Image, Item
from marvel_jax.errors import MarvelError

POSITIONS = ("mrope", "sequential")
_VERSION = 1  # part of the fingerprint: raise it when the same item gives other arrays


class EncodedItem(NamedTuple):
    """One item: L tokens, P patches of C uint8 values.

    `patch_image` counts images from 0; `vision_index` is the item's merged visual token at each
    position, -1 for text.
    """

    tokens: np.ndarray  # [L] int32
    positions: np.ndarray  # [L, 3] int32: temporal, height, width
    pooled: np.ndarray  # [L] bool
    patches: np.ndarray  # [P, C] uint8
    patch_hw: np.ndarray  # [P, 2] int32
    patch_image: np.ndarray  # [P] int32
    vision_index: np.ndarray  # [L] int32


@dataclass(frozen=True)
class Processor:
    """Tokenizer, image geometry and template: all that decides what the model reads.

    `cache_bytes` keeps the patches of pictures seen before (paths and encoded bytes); it does not
    change a result. Calls are safe among threads.
    """

    tokenizer: ChatTokenizer
    geometry: ImageGeometry = dataclasses.field(default_factory=ImageGeometry)
    template: str = "marvel"
    positions: str = "mrope"
    max_text_tokens: int = 480
    generation_prompt: bool = False
    instruction: str = "masked"
    prompt: str = "none"
    cache_bytes: int = 0
    _cache: PatchCache = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.positions not in POSITIONS:
            raise MarvelError(
                f"positions is {self.positions!r}: choose one of {', '.join(POSITIONS)}."
            )
        if self.max_text_tokens < 1:
            raise MarvelError(f"max_text_tokens is {self.max_text_tokens}: give at least 1.")
        object.__setattr__(self, "_cache", PatchCache(self.cache_bytes))
        # An unknown template or a tokenizer without its tokens is told now, not at the first item.
        probe = Item(parts=("a", Image(b"")), instruction="a")
        self._render(probe, [1])

    @classmethod
    def from_folder(
        cls,
        folder: Path | str,
        *,
        template: str = "marvel",
        positions: str = "mrope",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_text_tokens: int = 480,
        generation_prompt: bool = False,
        instruction: str = "masked",
        prompt: str = "none",
        cache_bytes: int = 0,
    ) -> "Processor":
        """Builds it from a Hugging Face folder's tokenizer.json, preprocessor and config files.

        Raises:
          MarvelError: a file is missing or unreadable, or the preprocessor cuts patches that the
            vision tower of config.json does not take.
        """
        geometry = ImageGeometry.from_folder(folder)
        config_file = Path(folder) / "config.json"
        vision = files.read_json(config_file).get("vision_config", {})
        for ours, theirs in (
            ("patch_size", "patch_size"),
            ("merge_size", "spatial_merge_size"),
            ("temporal_patch_size", "temporal_patch_size"),
        ):
            if vision.get(theirs, getattr(geometry, ours)) != getattr(geometry, ours):
                raise MarvelError(
                    f"{config_file}: vision_config.{theirs} is {vision[theirs]}, but the folder's "
                    f"preprocessor says {ours} {getattr(geometry, ours)}: make them agree."
                )
        geometry = dataclasses.replace(
            geometry,
            min_pixels=geometry.min_pixels if min_pixels is None else min_pixels,
            max_pixels=geometry.max_pixels if max_pixels is None else max_pixels,
        )
        return cls(
            ChatTokenizer.from_folder(folder),
            geometry,
            template=template,
            positions=positions,
            max_text_tokens=max_text_tokens,
            generation_prompt=generation_prompt,
            instruction=instruction,
            prompt=prompt,
            cache_bytes=cache_bytes,
        )

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides what an item turns into."""
        return files.hash_json(
            {
                "version": _VERSION,
                "tokenizer": self.tokenizer.fingerprint,
                "geometry": dataclasses.asdict(self.geometry),
                "template": self.template,
                "positions": self.positions,
                "max_text_tokens": self.max_text_tokens,
                "generation_prompt": self.generation_prompt,
                # Only where they are not what everything was made with before they were options.
                **({} if self.instruction == "masked" else {"instruction": self.instruction}),
                **({} if self.prompt == "none" else {"prompt": self.prompt}),
            }
        )

    @property
    def marker_ids(self) -> dict[str, int]:
        """Ids of the tokens that `umarvel_released` adds; empty for the other templates.

        The instruction markers' embeddings are the table's mean; `<emb>` keeps the table's row
        where there is one (spec/umarvel.md 1.2).
        """
        if self.template != "umarvel_released":
            return {}
        return {marker: self.tokenizer.special(marker) for marker in chat.MARKERS}

    def __call__(self, item: Item) -> EncodedItem:
        """Encodes one item.

        Raises:
          MarvelError: an image cannot be read; the message names the item and the image.
        """
        cut = [self._cache.patches(image, self.geometry, item_id=item.id) for image in item.images]
        merge = self.geometry.merge_size
        merged = [(rows // merge, columns // merge) for _, (rows, columns) in cut]
        text = self._render(item, [height * width for height, width in merged])
        length = len(text.tokens)
        if self.positions == "mrope":
            positions = mrope_positions(length, text.image_spans, merged)
        else:
            positions = np.broadcast_to(np.arange(length, dtype=np.int32)[:, None], (length, 3))
        vision_index = np.full(length, -1, np.int32)
        seen = 0
        for start, end in text.image_spans:
            vision_index[start:end] = np.arange(seen, seen + end - start)
            seen += end - start
        if cut:
            patches = cut[0][0] if len(cut) == 1 else np.concatenate([one for one, _ in cut])
            patch_hw = np.concatenate(
                [images.patch_coordinates(rows, columns, merge) for _, (rows, columns) in cut]
            )
            patch_image = np.repeat(
                np.arange(len(cut), dtype=np.int32), [len(one) for one, _ in cut]
            )
        else:
            patches = np.zeros((0, self.geometry.patch_values), np.uint8)
            patch_hw, patch_image = np.zeros((0, 2), np.int32), np.zeros(0, np.int32)
        return EncodedItem(
            tokens=text.tokens,
            positions=positions,
            pooled=text.pooled,
            patches=patches,
            patch_hw=patch_hw,
            patch_image=patch_image,
            vision_index=vision_index,
        )

    def lengths(self, item: Item) -> tuple[int, int]:
        """(tokens, patches) that `__call__` would give; of images only headers are read."""
        patches = []
        for image in item.images:
            rows, columns = images.grid(image, self.geometry, item_id=item.id)
            patches.append(rows * columns)
        text = self._render(item, [count // self.geometry.merge_area for count in patches])
        return len(text.tokens), sum(patches)

    def _render(self, item: Item, image_tokens: Sequence[int]) -> ChatTokens:
        return chat.render(
            item,
            tokenizer=self.tokenizer,
            template=self.template,
            image_tokens=image_tokens,
            max_text_tokens=self.max_text_tokens,
            generation_prompt=self.generation_prompt,
            instruction=self.instruction,
            prompt=self.prompt,
        )


def mrope_positions(
    length: int, image_spans: Sequence[tuple[int, int]], merged_grids: Sequence[tuple[int, int]]
) -> np.ndarray:
    """Qwen2-VL's rotary positions [length, 3] int32: temporal, height, width.

    Text advances all three axes by one a token. An image keeps the temporal axis still, counts
    its merged rows and columns on the other two, and the text behind it goes on from the larger
    of both (Qwen2-VL, section 2.1).
    """
    positions = np.empty((length, 3), np.int32)
    cursor = value = 0
    for (start, end), (height, width) in zip(image_spans, merged_grids, strict=True):
        positions[cursor:start] = np.arange(value, value + start - cursor)[:, None]
        value += start - cursor
        positions[start:end, 0] = value
        positions[start:end, 1] = value + np.repeat(np.arange(height), width)
        positions[start:end, 2] = value + np.tile(np.arange(width), height)
        value += max(height, width)
        cursor = end
    positions[cursor:] = np.arange(value, value + length - cursor)[:, None]
    return positions
