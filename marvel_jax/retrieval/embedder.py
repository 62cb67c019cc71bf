"""The public face: a model folder in, unit vectors out."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress
from rich.console import Console

from marvel_jax.data.batch import RowShape, row_batches
from marvel_jax.data.images import ImageError
from marvel_jax.data.items import Item
from marvel_jax.data.processor import Processor
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import embed
from marvel_jax.parallel.sharding import batch_sharding
from marvel_jax.retrieval import placement, prefetch
from marvel_jax.retrieval.encode_calls import Call, Tally, measure, prepare
from marvel_jax.retrieval.encode_rows import encoding_rows as encoding_rows
from marvel_jax.retrieval.encode_rows import row_groups, steady_rows
from marvel_jax.retrieval.item_content import first_copies
from marvel_jax.settings import (
    Attention,
    EmbeddingSettings,
    Pooling,
    Positions,
    Template,
    check_tokenizer,
)
from marvel_jax.video_geometry import VideoGeometry

Progress = Callable[[int, int], None]
OnFailure = Callable[[int, ImageError], None]
Known = Callable[[Sequence[bytes | None]], np.ndarray]


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
        devices: Sequence[jax.Device] | None = None,
    ) -> None:
        """`devices` are all of this process's where they are not given.

        Each holds the weights and encodes its share of the rows. Raises as `from_pretrained` does.
        """
        self.processor = processor
        self.attention = attention
        self.pooling = pooling
        self._dtype = placement.checked_dtype(dtype)
        self._params = jax.tree.map(lambda leaf: jnp.asarray(leaf, self._dtype), params)
        if processor.marker_ids:
            self._params = _with_marker_rows(self._params, processor.marker_ids)
            rows = self._params["language"]["token_embedding"].shape[0]
            text = dataclasses.replace(architecture.text, vocab_size=rows)
            architecture = dataclasses.replace(architecture, text=text)
        self.architecture = architecture
        self.kernels = placement.kernels(kernel, architecture, dtype)
        self._embed = self._compiled(self.kernels.kernels)
        self._mesh = placement.data_mesh(devices)
        if devices is not None and self._mesh is None:
            self._params = jax.device_put(self._params, devices[0])
        if self._mesh is not None:
            self._everywhere = placement.copied(self._params, self._mesh)
            self._params = placement.first_copy(self._everywhere)
            spread = placement.kernels(kernel, architecture, dtype, mesh=self._mesh)
            self._embed_spread = self._compiled(spread.kernels)
        self._shapes: dict[RowShape, None] = {}  # that were compiled, or soon will be
        self._hash: str | None = None

    def _compiled(self, kernels: Any) -> Any:
        return jax.jit(
            partial(
                embed,
                config=self.architecture,
                attention=self.attention,
                pooling=self.pooling,
                dtype=self._dtype,
                kernels=kernels,
            ),
            static_argnames=("items_per_row",),
        )

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
        video: VideoGeometry | None = None,
        kernel: str = "auto",
        devices: Sequence[jax.Device] | None = None,
    ) -> Self:
        """Loads a Hugging Face folder, or a Hub id through the Hub's cache.

        A setting left out is what the folder's `marvel.json` says, else bidirectional attention,
        M-RoPE, the mean and our template. `min_pixels` and `max_pixels` bound an image's area
        after resizing; in a folder without `marvel.json` its image processor's limits hold.
        `video` says which frames of a video are read and how large.
        `kernel` computes the attention: see `models.kernels.choice`; `devices` encode: see
        `Embedder`.

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
            video=video,
        )
        checkpoint = hub.load(path, dtype=placement.checked_dtype(dtype))
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
            video=settings.video,
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
            devices=devices,
        )

    @property
    def dimension(self) -> int:
        """The width of a vector."""
        return self.architecture.text.hidden_size

    @property
    def model_hash(self) -> str:
        """A content hash of the weights, in the type they are used in."""
        if self._hash is None:
            self._hash = placement.content_hash(self._params)
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
        steady: int | None = None,
        progress: bool | Progress = False,
        on_failure: OnFailure | None = None,
        known: Known | None = None,
        tally: Tally | None = None,
    ) -> np.ndarray:
        """Unit vectors float32 [N, D] in the items' order.

        Items with the same texts, instruction and bytes of pictures are encoded once, and their
        vectors are the same bit for bit.

        Args:
          items: any mix of text, images and videos. A sequence is read item by item, twice and
            more, and not kept: it may be larger than memory.
          instruction: for items that bring none of their own; it is read by the model and left
            out of the mean.
          batch_tokens: tokens a device and forward pass, padding included (an item longer than
            that goes alone); it bounds memory and does not change a vector.
          steady: in the place of `batch_tokens`, for a server: so many items a forward pass, in few
            shapes, so that queries of other lengths need no new compilation.
          progress: True for a progress bar, or a function of (items done, items in all).
          on_failure: told the place of an item with a picture that cannot be used, and the error;
            its vector is then zero. Without it, the error is raised.
          known: told what each item shows (see `item_content.content_key`; None: that could not be
            read), it says which need no vector, as bool [N], because the caller has it. Theirs
            stay zero.
          tally: counts tokens and padding as they are encoded.

        Raises:
          MarvelError: an image cannot be read (the message names the item and the file), or an
            item has no content.
        """
        if isinstance(items, Item):
            raise MarvelError("encode takes several items: put the one in a list.")
        if batch_tokens < 1:
            raise MarvelError(f"batch_tokens={batch_tokens}: give a positive number, as 4096.")
        listed = items if isinstance(items, Sequence) else list(items)

        def read(place: int) -> Item:
            return _instructed(listed[place], instruction)

        tally = Tally() if tally is None else tally
        vectors = np.zeros((len(listed), self.dimension), np.float32)
        failed: list[int] = []
        with _reporter(progress, total=len(listed)) as report, prefetch.workers() as pool:
            lengths = np.zeros((len(listed), 2), np.int64)
            filmed = np.zeros(len(listed), bool)
            contents: list[bytes | None] = []
            measured = prefetch.ahead(
                pool, partial(measure, read, self.processor), range(len(listed)), depth=64
            )
            for place, (length, video, content, error) in enumerate(measured):
                lengths[place], filmed[place] = length, video
                contents.append(content)
                if error is not None:
                    _tell(place, error, on_failure)
                    failed.append(place)
            first = first_copies(contents)
            copies = np.bincount(first, minlength=len(listed))
            needless = np.zeros(len(listed), bool) if known is None else known(contents)
            reused = int(needless.sum())
            tally.reuse(reused)
            done = len(failed) + reused
            if reused:
                report(done, len(listed))
            whole = np.flatnonzero((first == np.arange(len(listed))) & ~needless)
            whole = whole[~np.isin(whole, failed)]
            calls = self._calls(
                read, lengths, filmed, whole, pool, batch_tokens=batch_tokens, steady=steady
            )
            for call, found in self._run(calls):
                vectors[call.places] = found
                for place, error in call.failed:
                    for one in np.flatnonzero(first == place).tolist():
                        _tell(one, error, on_failure)
                tally.add(call, copies)
                done += int(copies[[*call.places.tolist(), *(one for one, _ in call.failed)]].sum())
                report(done, len(listed))
        return vectors[first]

    def _calls(
        self,
        read: Callable[[int], Item],
        lengths: np.ndarray,
        filmed: np.ndarray,
        places: np.ndarray,
        pool: Any,
        *,
        batch_tokens: int,
        steady: int | None,
    ) -> Iterator[Call]:
        """Forward passes over the items at these places; threads prepare them ahead."""
        devices = 1 if self._mesh is None else self._mesh.size
        merge_area = self.processor.geometry.merge_area
        for members in row_groups(lengths[places], filmed[places]):
            group = places[members]
            if steady is not None:
                shape, num_rows = steady_rows(
                    lengths[group], most_rows=steady, merge_area=merge_area, devices=devices
                )
            else:
                shape, num_rows = encoding_rows(
                    lengths[group],
                    batch_tokens=batch_tokens,
                    merge_area=merge_area,
                    devices=devices,
                    known=self._shapes,
                )
            self._shapes[shape] = None
            make = partial(
                prepare, read, self.processor, group=group, shape=shape, num_rows=num_rows
            )
            placements = row_batches(lengths[group], shape, num_rows=num_rows)
            yield from prefetch.ahead(pool, make, placements)

    def _run(self, calls: Iterable[Call]) -> Iterator[tuple[Call, np.ndarray]]:
        """Yields (call, vectors [n, D] of its items); the next call is under way meanwhile."""
        waiting: deque[tuple[Call, Any]] = deque()
        for call in calls:
            waiting.append((call, self._start(call)))
            if len(waiting) > 1:
                yield self._taken(*waiting.popleft())
        while waiting:
            yield self._taken(*waiting.popleft())

    def _start(self, call: Call) -> Any:
        if not len(call.places):
            return None
        if self._mesh is not None and len(call.rows.tokens) % self._mesh.size == 0:
            rows = jax.device_put(call.rows, batch_sharding(self._mesh))
            return self._embed_spread(self._everywhere, rows, items_per_row=call.items_per_row)
        return self._embed(self._params, call.rows, items_per_row=call.items_per_row)

    def _taken(self, call: Call, found: Any) -> tuple[Call, np.ndarray]:
        if found is None:
            return call, np.zeros((0, self.dimension), np.float32)
        return call, np.asarray(found.vectors).reshape(-1, self.dimension)[call.slots]


def _tell(place: int, error: ImageError, on_failure: OnFailure | None) -> None:
    if on_failure is None:
        raise error
    on_failure(place, error)


def _instructed(item: Item, instruction: str | None) -> Item:
    if not isinstance(item, Item):
        raise MarvelError(
            f"encode takes items, found {type(item).__name__}: wrap it, as Item.of(text=...) or "
            "Item.of(image=...)."
        )
    return item if item.instruction is not None else item.with_instruction(instruction)


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
