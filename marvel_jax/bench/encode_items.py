"""What is encoded to measure it: M-BEIR's mix, packed into rows as bulk encoding packs them."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.bench import invented
from marvel_jax.bench.stopwatch import Lap
from marvel_jax.data.batch import Rows, RowShape, build_rows, pack, row_batches
from marvel_jax.data.items import Item
from marvel_jax.data.processor import EncodedItem
from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.kernels.choice import ASKED
from marvel_jax.retrieval.encode_rows import encoding_rows
from marvel_jax.training.flops import Work

_LEAST_TEXT = 8  # tokens of an item that was shrunk: it has an instruction
_PATCH_ROOM = 1.05  # of the mean, so that patches rarely hold up the tokens


@dataclass(frozen=True, kw_only=True)
class EncodeOptions:
    """What to measure: every row size with every kernel, on the same items.

    Without `row_tokens`, rows are as bulk encoding chooses them. Weights are random. `architecture`
    is "small", "tiny", a published model's Hub id or a folder with a `config.json`; `items` of
    M-BEIR's mix, their lengths divided by `shrink`. A forward pass takes `batch_tokens` a device.
    `torch` measures transformers too, where torch is installed.
    """

    architecture: str = "small"
    items: int = 128
    shrink: int = 1
    dtype: str = "float32"
    row_tokens: tuple[int, ...] = ()
    batch_tokens: int = 4096
    kernel: tuple[str, ...] = ("auto",)
    repeats: int = 3
    torch: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("items", "shrink", "repeats")}
        numbers |= {
            "batch_tokens": self.batch_tokens,
            "row_tokens": min(self.row_tokens, default=1),
        }
        for name, value in numbers.items():
            if value < 1:
                raise MarvelError(f"{name}={value}: give at least 1.")
        if self.dtype not in ("float32", "bfloat16"):
            raise MarvelError(f"dtype={self.dtype!r}: choose float32 or bfloat16.")
        strange = sorted(set(self.kernel) - set(ASKED))
        if strange or not self.kernel:
            raise MarvelError(f"kernel {strange}: choose of {', '.join(ASKED)}.")


class Call(NamedTuple):
    """The rows of one forward pass, which items they hold, and the slot [n] of each of them."""

    rows: Rows
    items: np.ndarray
    slots: np.ndarray
    items_per_row: int


class Calls(NamedTuple):
    """All forward passes of a corpus, and what share of their tokens and patches is real."""

    calls: list[Call]
    shapes: list[RowShape]
    token_fill: float
    patch_fill: float


def mbeir_items(
    architecture: Qwen2VLConfig, *, count: int, seed: int, shrink: int = 1
) -> list[EncodedItem]:
    """Half queries and half candidates, the same for the same arguments.

    `shrink` divides lengths and pictures, for models that are too small for those of the mix.
    """
    merge = architecture.vision.spatial_merge_size
    source = invented.source("mbeir", queries=-(-count // 2), brought=1, seed=seed)
    lengths = shrunk(source.lengths, shrink=shrink, merge_area=merge**2)
    processor = invented.InventedProcessor(
        lengths,
        patch_values=architecture.vision.still_values,
        image_token_id=min(
            architecture.image_token_id,
            architecture.video_token_id,
            architecture.vision_start_token_id,
            architecture.vision_end_token_id,
        ),
        merge=merge,
        seed=seed,
    )
    blank = Item.of(text="invented")
    found = [processor(dataclasses.replace(blank, id=name)) for name in list(lengths)[:count]]
    for one in found:  # every visual token has the id by which transformers finds it
        one.tokens[one.vision_index >= 0] = architecture.image_token_id
    return found


def work_of(items: list[EncodedItem]) -> Work:
    """The useful work of some items, however they are packed."""
    tokens = np.array([len(one.tokens) for one in items], np.int64)
    patches = np.array([len(one.patches) for one in items], np.int64)
    return Work(
        int(tokens.sum()), int((tokens**2).sum()), int(patches.sum()), int((patches**2).sum())
    )


def speed(
    architecture: "Qwen2VLConfig",
    items: "Sequence[EncodedItem]",
    one: Lap,
    *,
    device_kind: str,
    devices: int,
) -> dict[str, Any]:
    """Items, tokens and useful TFLOP/s of a pass over all items; MFU where the peak is known."""
    from marvel_jax.training.flops import peak_tflops, step_flops

    work = work_of(list(items))
    flops = step_flops(architecture, work, queries=0, candidates=0, trained=lambda path: False)
    tflops = flops / one.seconds / 1e12
    peak = peak_tflops(device_kind)
    return {
        "devices": devices,
        "items/s": round(len(items) / one.seconds, 2),
        "tokens/s": round(work.tokens / one.seconds, 1),
        "seconds": round(one.seconds, 4),
        "cpu_seconds": round(one.cpu_seconds, 4),
        "tflops/s": round(tflops, 4),
        "mfu": None if peak is None else round(tflops / (peak * devices), 4),
    }


def make_calls(
    items: list[EncodedItem],
    *,
    row_tokens: int | None,
    batch_tokens: int,
    merge_area: int,
    devices: int,
) -> Calls:
    """Packs items into rows of `row_tokens`, `batch_tokens` a device and forward pass.

    Without `row_tokens`, as `retrieval.encode_rows.encoding_rows` chooses. Text alone goes in rows
    of its own, which never enter the vision tower. Rows are a multiple of `devices`.
    """
    lengths = np.array([(len(one.tokens), len(one.patches)) for one in items]).reshape(-1, 2)
    calls: list[Call] = []
    shapes = []
    pictured = lengths[:, 1] > 0
    for group in (np.flatnonzero(pictured), np.flatnonzero(~pictured)):
        if not len(group):
            continue
        if row_tokens is None:
            shape, num_rows = encoding_rows(
                lengths[group], batch_tokens=batch_tokens, merge_area=merge_area, devices=devices
            )
            num_rows = -(-num_rows // devices) * devices
            parts = list(row_batches(lengths[group], shape, num_rows=num_rows))
        else:
            shape = row_shape(lengths[group], row_tokens=row_tokens, merge_area=merge_area)
            placement = pack(lengths[group], shape)
            num_rows = devices * _rows_a_device(
                -(-len(placement) // devices), most=max(1, batch_tokens // shape.tokens)
            )
            starts = range(0, len(placement), num_rows)
            parts = [placement[start : start + num_rows] for start in starts]
        shapes.append(shape)
        for part in parts:
            members = group[list(itertools.chain.from_iterable(part))]
            place = iter(range(len(members)))
            local = [list(itertools.islice(place, len(row))) for row in part]
            chosen = [items[index] for index in members]
            rows, slots = build_rows(chosen, local, shape, num_rows=num_rows)
            calls.append(Call(rows, members, slots, shape.items))
    return Calls(
        calls,
        shapes,
        token_fill=float(lengths[:, 0].sum() / sum(call.rows.tokens.size for call in calls)),
        patch_fill=float(
            lengths[:, 1].sum() / max(1, sum(call.rows.patch_segments.size for call in calls))
        ),
    )


def row_shape(lengths: np.ndarray, *, row_tokens: int, merge_area: int) -> RowShape:
    """Rows of at least `row_tokens` (the longest item fits), with the patches that go with them."""
    longest, most = lengths.max(axis=0).tolist()
    tokens = max(row_tokens, longest)
    patches = 0
    if most:
        mean_tokens, mean_patches = lengths.mean(axis=0)
        wanted = max(most, round(_PATCH_ROOM * tokens * mean_patches / mean_tokens))
        patches = -(-wanted // merge_area) * merge_area
    return RowShape(
        tokens=tokens, patches=patches, items=max(1, tokens // int(lengths[:, 0].min()))
    )


def _rows_a_device(rows: int, *, most: int) -> int:
    """For calls of one size: at least half of `most`, and the fewest empty rows in the last one."""
    return min(range(-(-most // 2), most + 1), key=lambda each: (-rows % each, -each))


def flat(items: list[EncodedItem]) -> dict[str, np.ndarray]:
    """The items one after the other as flat arrays with lengths, as `peers.flat_items` lays out."""
    grids = [
        one.patch_hw[one.patch_image == image].max(axis=0) + 1
        for one in items
        for image in np.unique(one.patch_image)
    ]
    return {
        "tokens": np.concatenate([one.tokens for one in items]),
        "positions": np.concatenate([one.positions for one in items]),
        "pooled": np.concatenate([one.pooled for one in items]),
        "lengths": np.array([len(one.tokens) for one in items]),
        "patches": np.concatenate([one.patches for one in items]),
        "patch_counts": np.array([len(one.patches) for one in items]),
        "grids": np.array(grids, np.int64).reshape(-1, 2),
        "image_counts": np.array([len(np.unique(one.patch_image)) for one in items]),
    }


def shrunk(
    lengths: Mapping[str, Sequence[int]], *, shrink: int, merge_area: int
) -> dict[str, tuple[int, int]]:
    """(tokens, patches) of every item divided by `shrink`; pictures keep whole visual tokens."""

    def divide(tokens: int, patches: int) -> tuple[int, int]:
        visual = -(-patches // merge_area // shrink)
        text = tokens - patches // merge_area
        return max(_LEAST_TEXT, text // shrink) + visual, visual * merge_area

    return {name: divide(*one) for name, one in lengths.items()}
