"""The rows that a corpus is encoded in: their size, and how many go into a forward pass."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from marvel_jax.data.batch import RowShape, pack

_SHORTEST_ROW = 64  # tokens; shorter rows make more calls, longer ones waste attention
_SHORTEST_ITEM = 4  # tokens: the templates alone are no shorter
_SAMPLE = 512  # items that every size is tried on
_ENOUGH = 0.955  # real tokens: with less than this, larger rows are tried
_LENGTHS = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)  # of rows, in longest items
_ROOM = (1.0, 1.06, 1.12, 1.2, 1.3)  # for patches, in what goes with the tokens on average
# What a row costs beside its tokens: in Qwen2-VL-2B a patch is half a token's work, and attention,
# where it does not skip what it masks, equals the rest at these lengths.
_PATCH_COST, _TEXT_HALF, _VISION_HALF = 0.5, 15_000, 8_000


def encoding_rows(
    lengths: np.ndarray,
    *,
    batch_tokens: int,
    merge_area: int,
    devices: int = 1,
    known: Iterable[RowShape] = (),
) -> tuple[RowShape, int]:
    """The row shape and number of rows to encode items of (tokens, patches) [N, 2] in.

    What fits into one forward pass goes in rows as short as the longest item. For more, several
    sizes are tried on a sample: of those that leave few tokens empty, the cheapest is taken. Sizes
    come from a coarse grid, and a `known` shape that does is taken first, so that calls with like
    items share one compilation. Patches come in whole visual tokens, `merge_area` of them in each.

    Returns:
      The shape, and the number of rows: `batch_tokens` a device, fewer for few items. It is a
      multiple of `devices`, or below it where the items fill fewer rows than there are devices.
    """
    lengths = np.asarray(lengths, np.int64)
    total = int(lengths[:, 0].sum())
    if total <= batch_tokens:
        shape = _smallest(lengths, merge_area)
        rows = len(pack(lengths, shape))
        if rows >= devices > 1:
            return shape, devices * coarse(-(-rows // devices))
        most = max(1, batch_tokens // shape.tokens)
        # In one call if it holds them, else in calls of like size.
        return shape, coarse(rows) if coarse(rows) <= most else -(-rows // -(-rows // most))
    longest, most = lengths.max(axis=0).tolist()
    trial = _Trial(lengths, batch_tokens, devices)
    for shape in known:
        fits = longest <= shape.tokens and most <= shape.patches
        if fits and bool(most) == bool(shape.patches) and not trial(shape).lacking:
            return shape, trial(shape).rows_a_call
    tried = {shape: trial(shape) for shape in _sizes(lengths, batch_tokens, merge_area)}
    shape = min(
        tried,
        key=lambda one: (tried[one].lacking, tried[one].rows * _cost(one)),
    )
    return shape, tried[shape].rows_a_call


def steady_rows(
    lengths: np.ndarray, *, most_rows: int, merge_area: int, devices: int = 1
) -> tuple[RowShape, int]:
    """The row shape and number of rows for what a server is asked, of (tokens, patches) [N, 2].

    One item a row, lengths rounded up to powers of two, and one row or `most_rows` (a multiple of
    `devices`): whoever asks next needs no new compilation, at the price of padding.
    """
    tokens, patches = np.asarray(lengths, np.int64).max(axis=0).tolist()
    row_patches = merge_area * next_power(-(-patches // merge_area)) if patches else 0
    shape = RowShape(max(_SHORTEST_ROW, next_power(tokens)), row_patches, 1)
    return shape, 1 if len(lengths) == 1 else -(-most_rows // devices) * devices


def row_groups(lengths: np.ndarray, filmed: np.ndarray | None = None) -> list[np.ndarray]:
    """The places of the items of text alone, of those with pictures, and of those with video.

    Text alone never enters the vision tower, and patches of video are twice as long as an image's,
    so each kind goes in rows of its own. `filmed` [N] says which items hold video; none where it
    is not given.
    """
    pictured = lengths[:, 1] > 0
    filmed = np.zeros(len(lengths), bool) if filmed is None else filmed
    groups = [np.flatnonzero(kind) for kind in (~pictured, pictured & ~filmed, filmed)]
    return [group for group in groups if len(group)]


def _sizes(lengths: np.ndarray, batch_tokens: int, merge_area: int) -> list[RowShape]:
    longest, most = lengths.max(axis=0).tolist()
    smallest = _smallest(lengths, merge_area)
    shapes = [smallest]
    mean_tokens, mean_patches = lengths.mean(axis=0)
    for length in _LENGTHS:
        tokens = max(_SHORTEST_ROW, _fine(round(longest * length)))
        if tokens > max(batch_tokens, smallest.tokens):
            break
        for room in _ROOM if most else (1.0,):
            wanted = max(most, tokens * mean_patches / mean_tokens * room)
            patches = merge_area * _fine(-(-round(wanted) // merge_area)) if most else 0
            shapes.append(RowShape(tokens, patches, _most_items(tokens, lengths)))
    return list(dict.fromkeys(shapes))


def _smallest(lengths: np.ndarray, merge_area: int) -> RowShape:
    """A row as short as the longest item, with the patches that go with its tokens."""
    tokens, patches = lengths.max(axis=0).tolist()
    row_tokens = max(_SHORTEST_ROW, coarse(tokens))
    row_patches = 0
    if patches:
        mean_tokens, mean_patches = lengths.mean(axis=0)
        wanted = max(patches, round(row_tokens * mean_patches / mean_tokens))
        row_patches = merge_area * coarse(-(-wanted // merge_area))
    return RowShape(row_tokens, row_patches, _most_items(row_tokens, lengths))


def _most_items(tokens: int, lengths: np.ndarray) -> int:
    return max(1, min(tokens // _SHORTEST_ITEM, tokens // int(lengths[:, 0].min())))


class _Tried(NamedTuple):
    rows: int  # of all calls, empty ones too
    rows_a_call: int
    fill: float  # the share of real tokens

    @property
    def lacking(self) -> float:
        """How far the fill is below what is enough, in hundredths: a sample says no more."""
        return round(max(0.0, _ENOUGH - self.fill), 2)


class _Trial:
    """What comes of encoding the items in rows of a shape, estimated on a sample of them."""

    def __init__(self, lengths: np.ndarray, batch_tokens: int, devices: int) -> None:
        self._sample = lengths[:: -(-len(lengths) // _SAMPLE)]
        self._scale = len(lengths) / len(self._sample)
        self._total = int(lengths[:, 0].sum())
        self._batch_tokens, self._devices = batch_tokens, devices

    def __call__(self, shape: RowShape) -> _Tried:
        packed = math.ceil(len(pack(self._sample, shape)) * self._scale)
        devices = self._devices if packed >= self._devices else 1
        most = max(1, self._batch_tokens // shape.tokens)
        each = -(-packed // devices)
        # At least half of what `batch_tokens` hold, and the fewest empty rows at the end.
        half = range(-(-most // 2), most + 1)
        count = devices * min(half, key=lambda one: (-each % one, -one))
        rows = -(-packed // count) * count
        return _Tried(rows, count, self._total / (rows * shape.tokens))


def _cost(shape: RowShape) -> float:
    text = shape.tokens * (1 + shape.tokens / _TEXT_HALF)
    return text + _PATCH_COST * shape.patches * (1 + shape.patches / _VISION_HALF)


def next_power(size: int) -> int:
    """The next power of two."""
    return 1 << (size - 1).bit_length()


def coarse(size: int) -> int:
    """The next power of two, or three quarters of it: like calls share one compilation."""
    power = next_power(size)
    return power * 3 // 4 if size <= power * 3 // 4 else power


def _fine(size: int) -> int:
    """The next of eight sizes in an octave."""
    step = max(1, (1 << (size - 1).bit_length()) // 16)
    return -(-size // step) * step
