"""The public face: a model folder in, unit vectors out."""

import dataclasses
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from rich.console import Console

from marvel_jax.data.batch import Rows, RowShape, build_rows, row_batches
from marvel_jax.data.items import Item
from marvel_jax.data.processor import Processor
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes
from marvel_jax.models import hub
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.kernels import choice
from marvel_jax.models.qwen2_vl import embed
from marvel_jax.settings import (
    Attention,
    EmbeddingSettings,
    Pooling,
    Positions,
    Template,
    check_tokenizer,
)

Progress = Callable[[int, int], None]

_DTYPES = ("float32", "bfloat16", "float16")
_SHORTEST_ROW = 64  # tokens; shorter rows make more calls, longer ones waste attention
_SHORTEST_ITEM = 4  # tokens: the templates alone are no shorter


class Embedder:
    """Embeds items with one set of weights and one way of reading them.

    Every setting that changes a vector is fixed here, at construction.
    """

    def __init__(
        self,
        params: dict[str, Any],
        architecture: Qwen2VLConfig,
        processor: Processor,
        *,
        dtype: str = "float32",
        attention: Attention = "bidirectional",
        pooling: Pooling = "mean",
        kernel: str = "auto",
    ) -> None:
        self.processor = processor
        self.attention = attention
        self.pooling = pooling
        self._dtype = _checked_dtype(dtype)
        self._params = jax.tree.map(lambda leaf: jnp.asarray(leaf, self._dtype), params)
        if processor.marker_ids:
            self._params = _with_marker_rows(self._params, processor.marker_ids)
            rows = self._params["language"]["token_embedding"].shape[0]
            text = dataclasses.replace(architecture.text, vocab_size=rows)
            architecture = dataclasses.replace(architecture, text=text)
        self.architecture = architecture
        self.kernels = _kernels(kernel, architecture, dtype)
        self._embed = jax.jit(
            partial(
                embed,
                config=architecture,
                attention=attention,
                pooling=pooling,
                dtype=self._dtype,
                kernels=self.kernels.kernels,
            ),
            static_argnames=("items_per_row",),
        )
        self._hash: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        dtype: str = "float32",
        attention: Attention | None = None,
        positions: Positions | None = None,
        pooling: Pooling | None = None,
        template: Template | None = None,
        generation_prompt: bool = False,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        kernel: str = "auto",
    ) -> Self:
        """Loads a Hugging Face folder, or a Hub id through the Hub's cache.

        A setting left out is what the folder's `marvel.json` says, else bidirectional attention,
        M-RoPE, the mean and our template. `min_pixels` and `max_pixels` bound an image's area
        after resizing; in a folder without `marvel.json` its image processor's limits hold.
        `kernel` computes the attention: see `models.kernels.choice`.

        Raises:
          MarvelError: the folder or id cannot be had, or a weight is missing, unknown or of
            another shape, or the kernel cannot be had here.
        """
        path = hub.resolve(folder)
        settings = EmbeddingSettings.read(
            path,
            attention=attention,
            positions=positions,
            pooling=pooling,
            template=template,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
        )
        checkpoint = hub.load(path, dtype=_checked_dtype(dtype))
        processor = Processor.from_folder(
            path,
            template=settings.template,
            positions=settings.positions,
            min_pixels=settings.min_pixels,
            max_pixels=settings.max_pixels,
            max_text_tokens=settings.max_text_tokens,
            instruction=settings.instruction,
            prompt=settings.prompt,
            generation_prompt=generation_prompt,
        )
        check_tokenizer(
            processor.tokenizer.special,
            image_token_id=checkpoint.config.image_token_id,
            vocab_size=checkpoint.config.text.vocab_size,
            name=str(path),
        )
        return cls(
            checkpoint.params,
            checkpoint.config,
            processor,
            dtype=dtype,
            attention=settings.attention,
            pooling=settings.pooling,
            kernel=kernel,
        )

    @property
    def dimension(self) -> int:
        """The width of a vector."""
        return self.architecture.text.hidden_size

    @property
    def model_hash(self) -> str:
        """A content hash of the weights, in the type they are used in."""
        if self._hash is None:
            leaves = jax.tree_util.tree_leaves_with_path(self._params)
            self._hash = hash_bytes(
                *(
                    chunk
                    for path, leaf in leaves
                    for chunk in (
                        jax.tree_util.keystr(path).encode(),
                        np.asarray(jax.device_get(leaf)).tobytes(),
                    )
                )
            )
        return self._hash

    def manifest_fields(self) -> dict[str, Any]:
        """What decides a vector besides the item; stores and indexes are checked against it."""
        geometry = self.processor.geometry
        # In this order, so that a refusal names what says most of what differs.
        return {
            "dimension": self.dimension,
            "model_hash": self.model_hash,
            "template": self.processor.template,
            "attention": self.attention,
            "pooling": self.pooling,
            "positions": self.processor.positions,
            "min_pixels": geometry.min_pixels,
            "max_pixels": geometry.max_pixels,
            # Tokenizer, length limits and all else that decides what the model reads.
            "processor_hash": self.processor.fingerprint,
        }

    def encode(
        self,
        items: Iterable[Item],
        *,
        instruction: str | None = None,
        batch_tokens: int = 4096,
        progress: bool | Progress = False,
    ) -> np.ndarray:
        """Unit vectors float32 [N, D] in the items' order.

        Args:
          items: any mix of text and images.
          instruction: for items that bring none of their own; it is read by the model and left
            out of the mean.
          batch_tokens: tokens a forward pass, padding included (an item longer than that goes
            alone); it bounds memory and does not change a vector.
          progress: True for a progress bar, or a function of (items done, items in all).

        Raises:
          MarvelError: an image cannot be read (the message names the item and the file), or an
            item has no content.
        """
        if isinstance(items, Item):
            raise MarvelError("encode takes several items: put the one in a list.")
        if batch_tokens < 1:
            raise MarvelError(f"batch_tokens={batch_tokens}: give a positive number, as 4096.")
        listed = [_instructed(item, instruction) for item in items]
        vectors = np.zeros((len(listed), self.dimension), np.float32)
        with _reporter(progress, total=len(listed)) as report:
            done = 0
            for indices, found in self._encode_batches(listed, batch_tokens):
                vectors[indices] = found
                done += len(indices)
                report(done, len(listed))
        return vectors

    def _encode_batches(
        self, items: Sequence[Item], batch_tokens: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields (indices into items [n], vectors [n, D]); rows are prepared ahead by threads."""
        lengths = np.array([self.processor.lengths(item) for item in items]).reshape(-1, 2)
        names = [item.id or f"number {number}" for number, item in enumerate(items)]
        pictured = lengths[:, 1] > 0
        # Text alone never enters the vision tower, so it goes in rows of its own.
        for group in (np.flatnonzero(~pictured), np.flatnonzero(pictured)):
            if not len(group):
                continue
            shape, num_rows = encoding_rows(
                lengths[group],
                batch_tokens=batch_tokens,
                merge_area=self.processor.geometry.merge_area,
            )

            def prepare(
                placement: list[list[int]],
                group: np.ndarray = group,
                shape: RowShape = shape,
                num_rows: int = num_rows,
            ) -> tuple[np.ndarray, Rows, np.ndarray]:
                members = list(itertools.chain.from_iterable(placement))
                place = iter(range(len(members)))
                local = [list(itertools.islice(place, len(row))) for row in placement]
                indices = group[members]
                encoded = [self.processor(items[index]) for index in indices]
                rows, slots = build_rows(encoded, local, shape, num_rows=num_rows)
                return indices, rows, slots

            groups = row_batches(
                lengths[group], shape, num_rows=num_rows, names=[names[i] for i in group]
            )
            with ThreadPoolExecutor(max_workers=2) as pool:
                for indices, rows, slots in _ahead(pool, prepare, groups):
                    found = self._embed(self._params, rows, items_per_row=shape.items)
                    yield indices, np.asarray(found.vectors).reshape(-1, self.dimension)[slots]


def encoding_rows(
    lengths: np.ndarray, *, batch_tokens: int, merge_area: int
) -> tuple[RowShape, int]:
    """The row shape and number of rows to encode items of (tokens, patches) [N, 2] in.

    Sizes come from a coarse grid, so that calls with like items share one compilation. Patches
    come in whole visual tokens, `merge_area` of them in each.

    Returns:
      The shape, and the number of rows: `batch_tokens` in all, fewer for few items.
    """
    tokens, patches = lengths.max(axis=0)
    row_tokens = max(_SHORTEST_ROW, _grid(int(tokens)))
    mean_tokens, mean_patches = lengths.mean(axis=0)
    row_patches = 0
    if patches:
        wanted = max(int(patches), round(row_tokens * mean_patches / mean_tokens))
        row_patches = merge_area * _grid(-(-wanted // merge_area))
    shape = RowShape(
        tokens=row_tokens,
        patches=row_patches,
        items=max(1, min(row_tokens // _SHORTEST_ITEM, row_tokens // int(lengths[:, 0].min()))),
    )
    needed = -(-int(lengths[:, 0].sum()) // row_tokens)
    return shape, max(1, min(batch_tokens // row_tokens, _grid(needed)))


def _grid(size: int) -> int:
    """The next power of two, or three quarters of it."""
    power = 1 << (size - 1).bit_length()
    return power * 3 // 4 if size <= power * 3 // 4 else power


def _instructed(item: Item, instruction: str | None) -> Item:
    if not isinstance(item, Item):
        raise MarvelError(
            f"encode takes items, found {type(item).__name__}: wrap it, as Item.of(text=...) or "
            "Item.of(image=...)."
        )
    return item if item.instruction is not None else item.with_instruction(instruction)


def _checked_dtype(name: str) -> Any:
    if name not in _DTYPES:
        raise MarvelError(f"dtype={name!r}: choose one of {', '.join(_DTYPES)}.")
    return jnp.dtype(name)


def _kernels(asked: str, architecture: Qwen2VLConfig, dtype: str) -> choice.Chosen:
    """For the device that arrays go to when nobody says where."""
    (device,) = jnp.zeros(()).devices()
    return choice.choose(
        asked,
        platform=device.platform,
        architecture=architecture,
        dtype=dtype,
        capability=getattr(device, "compute_capability", None),
        field="kernel",
    )


def _with_marker_rows(params: dict[str, Any], marker_ids: Mapping[str, int]) -> dict[str, Any]:
    """Gives the instruction markers the mean of the table (specification 1.2).

    `<emb>` keeps the table's row where there is one: a reserved row of the published weights.
    """
    table = params["language"]["token_embedding"]
    emb = marker_ids["<emb>"]
    mean = table[: emb + 1].astype(jnp.float32).mean(axis=0).astype(table.dtype)
    size = max(table.shape[0], max(marker_ids.values()) + 1)
    grown = jnp.tile(mean, (size, 1)).at[: table.shape[0]].set(table)
    for marker, row in marker_ids.items():
        if marker != "<emb>" or emb >= table.shape[0]:
            grown = grown.at[row].set(mean)
    return params | {"language": params["language"] | {"token_embedding": grown}}


def _ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], values: Iterable[Any], depth: int = 4
) -> Iterator[Any]:
    """Maps in order, with `depth` calls under way while the caller works."""
    waiting: deque[Any] = deque()
    for value in values:
        waiting.append(pool.submit(function, value))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@contextmanager
def _reporter(progress: bool | Progress, *, total: int) -> Iterator[Progress]:
    if callable(progress):
        yield progress
    elif not progress:
        yield lambda done, total: None
    else:
        with rich.progress.Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("encode", total=total)
            yield lambda done, total: bar.update(task, completed=done)
