"""Lengths like M-BEIR's, invented from its published statistics: no picture and no text is read."""

from dataclasses import dataclass

import numpy as np

from marvel_jax.data.batch import item_key
from marvel_jax.data.items import TASKS
from marvel_jax.data.lengths import LengthsIndex
from marvel_jax.data.mbeir_sets import SETS

_DATASETS = tuple((one.task, one.train, one.asks, one.answers) for one in SETS)
# Median tokens of a text and how far it spreads (of the logarithm). Passages are Wikipedia's, of
# about a hundred words; every text is cut at 480 tokens, and the shortest has 5.
_TEXTS = {"caption": (13, 0.3), "headline": (25, 0.4), "question": (11, 0.4), "passage": (130, 0.6)}
_LEAST_TEXT = 5
_TEMPLATE, _INSTRUCTION, _IMAGE_MARKS = 16, 16, 2
# Pictures have a short side of 256 pixels, 9 visual tokens, and a mean of 396 x 265.
_SHORT_SIDE, _LEAST_LONG, _MOST_LONG, _ASPECT, _ASPECT_SPREAD = 9, 12, 33, 1.5, 0.2
_PATCHES_PER_TOKEN, _PIXELS_PER_TOKEN = 4, 28 * 28


@dataclass(frozen=True)
class MbeirMix:
    """How many queries to invent, and what each names. Every query has its own candidates.

    Pictures of more than `max_pixels` shrink to it, texts of more than `max_text` tokens are cut,
    as `EmbeddingSettings` does.
    """

    queries: int
    positives: int = 1
    hard_negatives: int = 0
    seed: int = 0
    max_pixels: int = 300 * 28 * 28
    max_text: int = 480


def mbeir_lengths(mix: MbeirMix) -> LengthsIndex:
    """A lengths index of M-BEIR's mix: text of 5 to 480 tokens, pictures of 108 to 297."""
    rng = np.random.default_rng(mix.seed)
    sizes = np.array([queries for _, queries, _, _ in _DATASETS], float)
    dataset = rng.choice(len(_DATASETS), mix.queries, p=sizes / sizes.sum())
    brought = mix.positives + mix.hard_negatives
    of_candidate = np.repeat(dataset, brought)
    tasks = np.array([_DATASETS[one][0] for one in dataset], np.int32)
    datasets = np.array([SETS[one].dataset for one in dataset], np.int32)
    count = mix.queries * brought
    candidates = np.arange(count, dtype=np.int32).reshape(mix.queries, brought)
    return LengthsIndex(
        queries=_lengths(dataset, rng, mix, query=True),
        candidates=_lengths(of_candidate, rng, mix, query=False),
        tasks=tasks,
        datasets=datasets,
        prompts=np.full(mix.queries, 4, np.int32),
        offsets=np.arange(mix.queries + 1, dtype=np.int64) * mix.positives,
        positives=candidates[:, : mix.positives].ravel(),
        negative_offsets=np.arange(mix.queries + 1, dtype=np.int64) * mix.hard_negatives,
        negatives=candidates[:, mix.positives :].ravel(),
        refused_negatives=np.array(0, np.int64),
        query_ids=np.array([f"0:{number}".encode() for number in range(mix.queries)]),
        candidate_ids=np.array([f"0:{number}".encode() for number in range(count)]),
        query_keys=_keys("query", mix.queries),
        candidate_keys=_keys("candidate", count),
        fingerprint=np.array(f"M-BEIR mix {mix}"),
    )


def _lengths(
    dataset: np.ndarray, rng: np.random.Generator, mix: MbeirMix, *, query: bool
) -> np.ndarray:
    """(tokens, patches) [N, 2] of items of some data sets."""
    median = np.zeros(len(_DATASETS))
    spread = np.zeros(len(_DATASETS))
    pictured = np.zeros(len(_DATASETS), bool)
    for place, (task, _, asks, answers) in enumerate(_DATASETS):
        kind = asks if query else answers
        median[place], spread[place] = _TEXTS[kind] if kind else (0, 0)
        of = TASKS[task]
        pictured[place] = "image" in (of.query_modality if query else of.candidate_modality)
    drawn = rng.normal(size=len(dataset))
    text = np.clip(median[dataset] * np.exp(spread[dataset] * drawn), _LEAST_TEXT, mix.max_text)
    text = np.where(median[dataset] > 0, text.astype(np.int64), 0)
    aspect = _ASPECT * np.exp(_ASPECT_SPREAD * rng.normal(size=len(dataset)))
    long = np.clip(np.rint(_SHORT_SIDE * aspect), _LEAST_LONG, _MOST_LONG).astype(np.int64)
    visual = np.where(pictured[dataset], _shrunk(long, mix.max_pixels), 0)
    tokens = _TEMPLATE + text + visual + np.where(visual > 0, _IMAGE_MARKS, 0)
    tokens += _INSTRUCTION if query else 0
    return np.stack([tokens, visual * _PATCHES_PER_TOKEN], axis=1).astype(np.int32)


def _shrunk(long: np.ndarray, max_pixels: int) -> np.ndarray:
    """Visual tokens of pictures with a long side of so many, once they are small enough."""
    most = max_pixels // _PIXELS_PER_TOKEN
    scale = np.sqrt(np.minimum(1.0, most / (_SHORT_SIDE * long)))
    # A side that shrinks is rounded down, as smart resizing does.
    return np.maximum(1, np.floor(_SHORT_SIDE * scale) * np.floor(long * scale)).astype(np.int64)


def _keys(kind: str, count: int) -> np.ndarray:
    return np.array([item_key(kind, f"0:{number}") for number in range(count)], np.uint32)
