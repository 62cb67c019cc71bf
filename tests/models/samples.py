"""Items for the model tests as plain arrays, and rows built from them, with numpy alone."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from marvel_jax.models.config import Qwen2VLConfig, TextConfig, VisionConfig

MERGE = 2


def small_config(**text) -> Qwen2VLConfig:
    """A model that compiles in a second, for tests that need no reference."""
    language = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "mrope_section": (2, 1, 1),
        "initializer_range": 0.2,
    }
    vision = VisionConfig(
        depth=2, embed_dim=16, num_heads=2, mlp_ratio=2, patch_size=7, initializer_range=0.2
    )
    tied = text.pop("tied", True)
    return Qwen2VLConfig(
        vision=vision,
        text=TextConfig(**{**language, **text}),
        tie_word_embeddings=tied,
        image_token_id=61,
        video_token_id=60,
        vision_start_token_id=62,
        vision_end_token_id=63,
        bos_token_id=None,
        eos_token_id=None,
    )


@dataclasses.dataclass(frozen=True)
class Sample:
    """One item: L tokens, its images' grids (in patches) and their patches in merge order."""

    name: str
    tokens: np.ndarray  # [L] int32
    pooled: np.ndarray  # [L] bool
    grids: tuple[tuple[int, int], ...]
    patches: np.ndarray  # [P, 3 * size * size] uint8
    image_token: int

    @property
    def vision_index(self) -> np.ndarray:
        image = self.tokens == self.image_token
        return np.where(image, np.cumsum(image) - 1, -1).astype(np.int32)

    def positions(self, scheme: str) -> np.ndarray:
        """[L, 3]; "mrope" gives a picture's tokens their row and column, "sequential" does not."""
        length = len(self.tokens)
        if scheme == "sequential":
            return np.repeat(np.arange(length, dtype=np.int32)[:, None], 3, axis=1)
        out = np.zeros((length, 3), np.int32)
        here, place, grids = 0, 0, iter(self.grids)
        while place < length:
            if self.tokens[place] != self.image_token:
                out[place] = here
                here, place = here + 1, place + 1
                continue
            height, width = (side // MERGE for side in next(grids))
            for row in range(height):
                for column in range(width):
                    out[place] = here, here + row, here + column
                    place += 1
            here += max(height, width)
        return out


class Rows(NamedTuple):
    """What the model reads (marvel_jax.models.qwen2_vl.Rows)."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    pooled: np.ndarray
    patches: np.ndarray
    patch_hw: np.ndarray
    patch_segments: np.ndarray
    vision_index: np.ndarray


def patch_grid(height: int, width: int) -> np.ndarray:
    """[height * width, 2]: row and column of each patch, block of MERGE x MERGE after block."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    grid = np.stack([rows, columns], axis=-1)
    blocks = grid.reshape(height // MERGE, MERGE, width // MERGE, MERGE, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2).astype(np.int32)


def build_rows(
    rows: Sequence[Sequence[Sample]],
    *,
    scheme: str = "mrope",
    tokens: int | None = None,
    patches: int | None = None,
    values: int = 0,
) -> Rows:
    """Packs each list of samples into a row, in order, and pads to `tokens` and `patches`."""
    tokens = tokens or max(sum(len(s.tokens) for s in row) for row in rows)
    if patches is None:
        patches = max(sum(len(s.patches) for s in row) for row in rows)
    values = values or max((s.patches.shape[1] for row in rows for s in row), default=0)
    count = len(rows)
    out = Rows(
        tokens=np.zeros((count, tokens), np.int32),
        positions=np.zeros((count, tokens, 3), np.int32),
        segments=np.zeros((count, tokens), np.int32),
        pooled=np.zeros((count, tokens), bool),
        patches=np.zeros((count, patches, values), np.uint8),
        patch_hw=np.zeros((count, patches, 2), np.int32),
        patch_segments=np.zeros((count, patches), np.int32),
        vision_index=np.full((count, tokens), -1, np.int32),
    )
    for r, row in enumerate(rows):
        start = patch = image = 0
        for segment, sample in enumerate(row, start=1):
            span = slice(start, start + len(sample.tokens))
            index = sample.vision_index
            out.tokens[r, span] = sample.tokens
            out.positions[r, span] = sample.positions(scheme)
            out.segments[r, span] = segment
            out.pooled[r, span] = sample.pooled
            out.vision_index[r, span] = np.where(index >= 0, index + patch // MERGE**2, -1)
            out.patches[r, patch : patch + len(sample.patches)] = sample.patches
            for height, width in sample.grids:
                image += 1
                area = slice(patch, patch + height * width)
                out.patch_hw[r, area] = patch_grid(height, width)
                out.patch_segments[r, area] = image
                patch += height * width
            start = span.stop
    return out


def make_sample(
    name: str, layout: Sequence[int | tuple[int, int]], config: Qwen2VLConfig, *, seed: int
) -> Sample:
    """`layout` is a list of text lengths (int) and image grids in patches (height, width).

    The first two tokens of a text part in front are taken as an instruction: they are not pooled.
    """
    random = np.random.default_rng(seed)
    text_ids = config.image_token_id - 2
    tokens: list[int] = []
    grids = []
    for part in layout:
        if isinstance(part, int):
            tokens += random.integers(0, text_ids, part).tolist()
        else:
            grids.append(part)
            area = part[0] * part[1] // MERGE**2
            tokens += [config.vision_start_token_id, *[config.image_token_id] * area]
            tokens.append(config.vision_end_token_id)
    pooled = np.ones(len(tokens), bool)
    if isinstance(layout[0], int):
        pooled[:2] = False
    count = sum(height * width for height, width in grids)
    patches = random.integers(0, 256, (count, config.vision.still_values), dtype=np.uint8)
    return Sample(
        name, np.array(tokens, np.int32), pooled, tuple(grids), patches, config.image_token_id
    )


# Text only, image only, extreme aspect ratios both ways, several images in one item, text around.
LAYOUTS: dict[str, tuple[int | tuple[int, int], ...]] = {
    "text": (11,),
    "image": ((4, 6),),
    "tall": (3, (40, 2)),
    "wide": ((2, 40), 4),
    "several": (5, (2, 2), 2, (6, 4), (2, 8), 3),
    "both": ((8, 6), 9),
}


def all_samples(config: Qwen2VLConfig, *, seed: int = 0) -> list[Sample]:
    return [
        make_sample(name, layout, config, seed=seed + number)
        for number, (name, layout) in enumerate(LAYOUTS.items())
    ]
