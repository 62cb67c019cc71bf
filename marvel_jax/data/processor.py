"""An item becomes the arrays of one sequence: tokens, positions, pooled mask and patches."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marvel_jax import files
from marvel_jax.data import chat, images
from marvel_jax.data import video as videos
from marvel_jax.data.chat import ChatTokenizer, ChatTokens
from marvel_jax.data.images import ImageGeometry, PatchCache
from marvel_jax.data.items import Image, Item, Visual
from marvel_jax.errors import MarvelError
from marvel_jax.video_geometry import VideoGeometry

POSITIONS = ("mrope", "sequential")
_VERSION = 1  # part of the fingerprint: raise it when the same item gives other arrays


class EncodedItem(NamedTuple):
    """One item: L tokens, P patches of C uint8 values.

    C is that of one frame, or of a temporal patch's two where the item holds video. `patch_image`
    counts pictures from 0: images, and temporal patches of a video, which see no other in the
    vision tower. `vision_index` is the item's merged visual token at each position, -1 for text.
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
    """Tokenizer, geometries and template: all that decides what the model reads.

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
    video: VideoGeometry = dataclasses.field(default_factory=VideoGeometry)
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
        video: VideoGeometry | None = None,
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
            video=VideoGeometry() if video is None else video,
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
                **({} if self.video == VideoGeometry() else {"video": vars(self.video)}),
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
          MarvelError: an image or video cannot be read; the message names the item and the file.
        """
        cut = [self._cut(visual, item.id) for visual in item.visuals]
        merge = self.geometry.merge_size
        merged = [(frames, rows // merge, columns // merge) for _, (frames, rows, columns) in cut]
        text = self._render(item, [math.prod(grid) for grid in merged])
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
            values = max(one.shape[1] for one, _ in cut)
            widened = [images.widen(one, values) for one, _ in cut]
            patches = widened[0] if len(cut) == 1 else np.concatenate(widened)
            # To the vision tower each temporal patch of a video is a picture of its own.
            shown = [grid[1:] for _, grid in cut for _ in range(grid[0])]
            patch_hw = np.concatenate([images.patch_coordinates(*sides, merge) for sides in shown])
            patch_image = np.repeat(
                np.arange(len(shown), dtype=np.int32), [math.prod(sides) for sides in shown]
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
        """(tokens, patches) that `__call__` would give; of images only headers are read.

        Of a video also the first frame, which says how large it is shown.
        """
        patches = []
        for visual in item.visuals:
            if isinstance(visual, Image):
                grid: tuple[int, ...] = images.grid(visual, self.geometry, item_id=item.id)
            else:
                grid = videos.grid(visual, self.geometry, self.video, item_id=item.id)
            patches.append(math.prod(grid))
        text = self._render(item, [count // self.geometry.merge_area for count in patches])
        return len(text.tokens), sum(patches)

    def _cut(self, visual: Visual, item_id: str | None) -> tuple[np.ndarray, videos.Grid]:
        if isinstance(visual, Image):
            patches, (rows, columns) = self._cache.patches(visual, self.geometry, item_id=item_id)
            return patches, (1, rows, columns)
        return videos.cut(visual, self.geometry, self.video, item_id=item_id)

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
    length: int, image_spans: Sequence[tuple[int, int]], merged_grids: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Qwen2-VL's rotary positions [length, 3] int32: temporal, height, width.

    Text advances all three axes by one a token. An image, a merged grid of (rows, columns), keeps
    the temporal axis still and counts its rows and columns on the other two; a video, (temporal
    patches, rows, columns), counts its temporal patches on the first. The text behind goes on from
    the largest of the three (Qwen2-VL, section 2.1); transformers 5 leaves time out there, which
    only shows behind a video with more temporal patches than rows and columns.
    """
    positions = np.empty((length, 3), np.int32)
    cursor = value = 0
    for (start, end), grid in zip(image_spans, merged_grids, strict=True):
        frames, height, width = grid if len(grid) == 3 else (1, *grid)
        positions[cursor:start] = np.arange(value, value + start - cursor)[:, None]
        value += start - cursor
        inside = np.indices((frames, height, width), dtype=np.int32).reshape(3, -1)
        positions[start:end] = value + inside.T
        value += max(frames, height, width)
        cursor = end
    positions[cursor:] = np.arange(value, value + length - cursor)[:, None]
    return positions
