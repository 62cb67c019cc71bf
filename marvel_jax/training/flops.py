"""Floating-point operations of a step, counted from the architecture and the true lengths.

Only matrix products count, two operations for each multiply and add, as is usual for MFU: no
norms, no rotary, no softmax, no look-ups. Padding is no work, and neither is what
rematerialisation or GradCache computes again.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from marvel_jax.models import names
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.parallel.chips import chip_of


def peak_tflops(device_kind: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a device by JAX's `device_kind`; None where it is not known.

    MFU is told against it whatever the run's own type.
    """
    chip = chip_of(device_kind)
    return None if chip is None else chip.bfloat16


class Work(NamedTuple):
    """What rows hold besides padding. Attention costs the sum of squared lengths."""

    tokens: int
    token_pairs: int  # sum over items of tokens squared
    patches: int
    patch_pairs: int  # sum over images of patches squared
    text_tokens: int = 0  # of rows that are read causally for the next token alone
    text_pairs: int = 0
    predicted: int = 0  # tokens whose logits over the whole vocabulary are taken


def count_work(segments: np.ndarray, patch_segments: np.ndarray) -> Work:
    """Counts rows [R, S] and [R, P] of segment numbers, 0 = padding."""
    tokens, patches = _lengths(segments), _lengths(patch_segments)
    return Work(
        tokens=int(tokens.sum()),
        token_pairs=int((tokens**2).sum()),
        patches=int(patches.sum()),
        patch_pairs=int((patches**2).sum()),
    )


def count_batch(
    segments: np.ndarray,
    patch_segments: np.ndarray,
    texts: np.ndarray | None,
    predicted: np.ndarray | None,
) -> Work:
    """Counts a shard: its rows, those of its texts, and the tokens [...] bool to be predicted."""
    work = count_work(segments, patch_segments)
    if texts is not None:
        lengths = _lengths(texts)
        work = work._replace(text_tokens=int(lengths.sum()), text_pairs=int((lengths**2).sum()))
    return work if predicted is None else work._replace(predicted=int(predicted.sum()))


def _lengths(segments: np.ndarray) -> np.ndarray:
    """The length [N] int64 of every segment of every row."""
    rows, width = segments.shape
    if width == 0:
        return np.zeros(0, np.int64)
    longest = int(segments.max(initial=0)) + 1
    numbered = segments.astype(np.int64) + longest * np.arange(rows)[:, None]
    counts = np.bincount(numbered.ravel(), minlength=rows * longest).reshape(rows, longest)
    return counts[:, 1:].ravel().astype(np.int64)


def step_flops(
    architecture: Qwen2VLConfig,
    work: Work,
    *,
    queries: int,
    candidates: int,
    trained: Callable[[str], bool] = lambda path: True,
    ranks: Mapping[str, int] | None = None,
    causal: bool = False,
) -> float:
    """Operations of one training step: forward, and backward for what is trained.

    The backward pass of a product with a kernel costs as much as the forward once for the
    kernel's gradient, if it is trained, and once for its input's, if anything before it is (or
    within the same stack of layers). So a fully trained model costs three times its forward pass,
    and a frozen vision tower once.

    Args:
      architecture: the shape of the model.
      work: of the global batch.
      queries: B, and
      candidates: C, of the loss's product [B, D] x [D, C].
      trained: of a parameter's path in the names table.
      ranks: of the adapters, by the adapted linear: {"language/blocks/query": 128}.
      causal: attention to earlier tokens only, half of the pairs.
    """
    shapes = {row.path: row.shape(architecture) for row in names.table(architecture)}
    total, upstream = 0.0, False
    for part in _parts(architecture, work, causal=causal):
        paths = [path for path in shapes if path.startswith(part.prefix)]
        adapted = {
            path: rank for path, rank in (ranks or {}).items() if path.startswith(part.prefix)
        }
        through = upstream or bool(adapted) or any(trained(path) for path in paths)
        for path in paths:
            if not path.endswith("/kernel"):
                continue
            forward = 2.0 * part.rows * math.prod(shapes[path]) * part.share
            # Pixels have no gradient.
            total += forward * (1 + trained(path) + (through and part.prefix != _PIXELS))
        for path, rank in adapted.items():
            layers, inward, outward = shapes[f"{path}/kernel"]
            total += 3 * 2.0 * part.rows * layers * rank * (inward + outward)
        # Both operands are activations: two products backward for one forward.
        total += part.attention * (3 if through else 1)
        upstream = through
    width = architecture.text.hidden_size
    if work.text_tokens:
        texts = Work(work.text_tokens, work.text_pairs, 0, 0)
        total += step_flops(
            architecture,
            texts,
            queries=0,
            candidates=0,
            trained=trained,
            ranks=ranks,
            causal=True,
        )
    head = "language/token_embedding" if architecture.tie_word_embeddings else "lm_head/kernel"
    total += 2.0 * work.predicted * architecture.text.vocab_size * width * (2 + trained(head))
    return total + 3 * 2.0 * queries * candidates * width


_PIXELS = "vision/patch_embed/"


class _Part(NamedTuple):
    prefix: str  # of its parameters
    rows: float  # that every kernel is multiplied with
    attention: float = 0.0  # operations of the products between activations, forward
    share: float = 1.0  # of a kernel that is used


def _parts(architecture: Qwen2VLConfig, work: Work, *, causal: bool) -> Iterator[_Part]:
    """The parts of the model in the order in which data flows through them."""
    vision, text = architecture.vision, architecture.text
    # The two frames of a still are equal, and its kernel's halves are summed before the product.
    yield _Part(_PIXELS, work.patches, share=1 / vision.temporal_patch_size)
    attention = 4.0 * vision.depth * vision.embed_dim * work.patch_pairs
    yield _Part("vision/blocks/", work.patches, attention)
    yield _Part("vision/merger/", work.patches / vision.spatial_merge_size**2)
    yield _Part("language/token_embedding", 0.0)
    pairs = (work.token_pairs + work.tokens) / 2 if causal else work.token_pairs
    attention = 4.0 * text.num_hidden_layers * text.query_size * pairs
    yield _Part("language/blocks/", work.tokens, attention)
