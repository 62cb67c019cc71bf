"""An embedder without a model: a vector that is drawn by what an item shows."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from marvel_jax.data.images import ImageError, load_image
from marvel_jax.data.items import Image, Item
from tests import tiny

DIMENSION = 32


class FakeEmbedder:
    """Counts what it encodes; pictures of the same pixels have the same vector, whatever file."""

    def __init__(self, *, model_hash: str = "m0", max_pixels: int = 784) -> None:
        self.processor = tiny.processor()
        self.dimension = DIMENSION
        self.seen: list[str | None] = []
        self.fail_after: int | None = None
        self._fields = {
            "dimension": DIMENSION,
            "model_hash": model_hash,
            "template": "marvel",
            "attention": "bidirectional",
            "pooling": "mean",
            "positions": "mrope",
            "min_pixels": 196,
            "max_pixels": max_pixels,
            "processor_hash": f"p{max_pixels}",
        }

    def manifest_fields(self) -> dict[str, Any]:
        return dict(self._fields)

    def encode(self, items: Sequence[Item], *, on_failure=None, **options: Any) -> np.ndarray:
        vectors = np.zeros((len(items), DIMENSION), np.float32)
        for place, item in enumerate(items):
            if self.fail_after is not None and len(self.seen) >= self.fail_after:
                raise KeyboardInterrupt
            try:
                vectors[place] = vector_of(item)
            except ImageError as error:
                on_failure(place, error)
                continue
            self.seen.append(item.id)
        return vectors


def vector_of(item: Item) -> np.ndarray:
    digest = hashlib.blake2b(digest_size=8)
    for part in item.parts:
        shown = load_image(part).tobytes() if isinstance(part, Image) else str(part).encode()
        digest.update(shown)
    drawn = np.random.default_rng(int.from_bytes(digest.digest(), "little")).normal(size=DIMENSION)
    return (drawn / np.linalg.norm(drawn)).astype(np.float32)
