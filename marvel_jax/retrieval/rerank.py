"""A reranker: a query and a candidate in, the logits of Yes and No out, one forward pass each."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.data.items import Item
from marvel_jax.data.rerank import PairProcessor, Place
from marvel_jax.data.rerank_sequence import Branched, Part
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub, peft
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.lora import LoraConfig
from marvel_jax.models.qwen2_vl import answer_logits, head_rows
from marvel_jax.reranker_settings import RerankerSettings
from marvel_jax.retrieval import placement, prefetch
from marvel_jax.retrieval.rerank_rows import PackedPairs, Plan, Unit, packed, plan_units
from marvel_jax.settings import check_tokenizer

Progress = Callable[[int, int], None]  # (pairs done, pairs in all)

_CACHE_BYTES = 256 << 20  # the same candidates come up for many queries


class Scores(NamedTuple):
    """Raw logits, float32 [N], of the two answers."""

    yes: np.ndarray
    no: np.ndarray

    @property
    def p_yes(self) -> np.ndarray:
        """P(Yes) among the two, float64 [N]."""
        odds = self.yes.astype(np.float64) - self.no
        return np.asarray(np.exp(-np.logaddexp(0.0, -odds)))


class Reranker:
    """Scores pairs with one set of weights and one prompt.

    Any Qwen2-VL serves: one that was trained to rerank, or an instruct model as it is.
    """

    def __init__(
        self,
        params: dict[str, Any],
        architecture: Qwen2VLConfig,
        processor: PairProcessor,
        *,
        adapters: dict[str, Any] | None = None,
        lora: LoraConfig | None = None,
        dtype: str = "float32",
        kernel: str = "auto",
        share_queries: bool | None = None,
    ) -> None:
        """`adapters` and `lora` are applied unmerged.

        `share_queries` puts candidates behind their query's prefix, which then is computed once and
        not for each; None does so where attention is XLA's, the one kernel that can.

        Raises:
          MarvelError: weights without a head, an unknown dtype or kernel, or `share_queries` with a
            kernel that cannot.
        """
        checked = placement.checked_dtype(dtype)
        self.processor, self.architecture = processor, architecture
        self._dtype = dtype
        self._params = jax.tree.map(lambda leaf: jnp.asarray(leaf, checked), params)
        head_rows(self._params, architecture)  # a model without a head is told now
        self._adapters, self._lora = adapters, lora
        self.kernels = placement.kernels(kernel, architecture, dtype)
        can_share = self.kernels.kernels.language.name == "xla"
        if share_queries and not can_share:
            raise MarvelError(
                f"share_queries=True with attention kernel {self.kernels.kernels.language.name!r}: "
                "only 'xla' can have candidates branch off one query. Leave it None."
            )
        self.share_queries = can_share if share_queries is None else share_queries
        self._logits = jax.jit(
            partial(
                answer_logits,
                config=architecture,
                dtype=checked,
                lora=lora,
                kernels=self.kernels.kernels,
            ),
            static_argnames=("answers", "attention"),
        )
        self._hash: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        *,
        prompt: str | None = None,
        adapters: str | Path | None = None,
        dtype: str = "float32",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        max_text_tokens: int | None = None,
        kernel: str = "auto",
        share_queries: bool | None = None,
    ) -> Self:
        """Loads a Hugging Face folder, or a Hub id through the Hub's cache.

        A setting left out is what the folder's `marvel.json` says; in a folder of others the prompt
        is "marvel", and pictures have at most 235,200 pixels. `adapters`, a folder or Hub id in
        PEFT's layout, are used unmerged.

        Raises:
          MarvelError: the folder or id cannot be had or holds an embedder; a weight is missing,
            unknown or of another shape, the head is missing; or an unknown prompt.
        """
        path = hub.resolve(folder)
        settings = RerankerSettings.read(
            path,
            prompt=prompt,
            min_pixels=min_pixels,
            max_pixels=max_pixels,
            max_text_tokens=max_text_tokens,
        )
        processor = PairProcessor.from_folder(
            path,
            prompt=settings.prompt,
            min_pixels=settings.min_pixels,
            max_pixels=settings.max_pixels,
            max_text_tokens=settings.max_text_tokens,
            cache_bytes=_CACHE_BYTES,
        )
        checkpoint = hub.load(path, dtype=placement.checked_dtype(dtype))
        check_tokenizer(
            processor.tokenizer.special,
            image_token_id=checkpoint.config.image_token_id,
            vocab_size=checkpoint.config.text.vocab_size,
            name=str(path),
        )
        found = None
        if adapters is not None:
            found = peft.load_adapters(hub.resolve(adapters), checkpoint.config)
        return cls(
            checkpoint.params,
            checkpoint.config,
            processor,
            adapters=None if found is None else found.params,
            lora=None if found is None else found.lora,
            dtype=dtype,
            kernel=kernel,
            share_queries=share_queries,
        )

    @property
    def model_hash(self) -> str:
        """A content hash of the weights, adapters included, in the type they are used in."""
        if self._hash is None:
            self._hash = placement.content_hash((self._params, self._adapters))
        return self._hash

    def manifest_fields(self) -> dict[str, Any]:
        """What decides a logit besides the pair; files of scores are checked against it."""
        return {
            "teacher_hash": self.model_hash,
            "prompt": self.processor.prompt,
            "dtype": self._dtype,
            "pair_processor_hash": self.processor.fingerprint,
        }

    def score(
        self,
        pairs: Iterable[tuple[Item, Item]],
        *,
        batch_tokens: int = 8192,
        steady: int | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """The logits of (query, candidate) pairs, in their order.

        Pairs of the same query object that stand together share its prefix. What is scored beside a
        pair does not change its logits.

        Args:
          pairs: queries with their instructions, candidates without.
          batch_tokens: tokens a forward pass, padding included; it bounds memory.
          steady: in the place of `batch_tokens`, for a server: so many pairs a forward pass, each
            in a row of its own, in few shapes, so that other lengths need no new compilation.
          progress: told (pairs done, pairs in all).

        Raises:
          MarvelError: a picture cannot be read (the message names the item and the file), or what
            is given are no pairs of items.
        """
        listed = [_pair(one) for one in pairs]
        logits = np.zeros((len(listed), 2), np.float32)
        if not listed:
            return Scores(*logits.T)
        queries, owners = _distinct([query for query, _ in listed])
        candidates, of_pair = _distinct([candidate for _, candidate in listed])
        processor, done = self.processor, 0
        prefixes = np.array([processor.query_lengths(item) for item in queries])
        branches = np.array([processor.candidate_lengths(item) for item in candidates])[of_pair]
        prefixes[:, 0] += processor.head_tokens
        branches[:, 0] += processor.tail_tokens

        def make(unit: Unit) -> Branched:
            parts = [processor.candidate(listed[pair][1]) for pair in unit.pairs]
            return self._together(processor.query(queries[unit.query]), parts)

        pictured = (prefixes[owners, 1] + branches[:, 1]) > 0
        # Text alone never enters the vision tower, so it goes in rows of its own.
        for group in (np.flatnonzero(~pictured), np.flatnonzero(pictured)):
            if not len(group):
                continue
            plan = plan_units(
                prefixes,
                branches,
                owners,
                group,
                share=self.share_queries,
                batch_tokens=batch_tokens,
                merge_area=processor.geometry.merge_area,
                steady=steady,
            )
            for found, values in self._run(plan, make, processor.answer_ids):
                logits[found.pairs] = values
                done += len(found.pairs)
                if progress is not None:
                    progress(done, len(listed))
        return Scores(*np.ascontiguousarray(logits.T))

    def choose(
        self, lists: Iterable[tuple[Item, Sequence[Item]]], *, batch_tokens: int = 8192
    ) -> list[np.ndarray]:
        """List-wise: the logits, float32 [K], of the numbers of each list's 2 to 5 candidates.

        One forward pass a list: the reply is given up to its number ("Ans: (").

        Raises:
          MarvelError: a list of fewer or more candidates, or what `score` raises.
        """
        asked = [(query, list(candidates)) for query, candidates in lists]
        if not asked:
            return []
        parts = [self._listed(query, candidates) for query, candidates in asked]
        lengths = np.array([(len(one.item.tokens), len(one.item.patches)) for one in parts])
        found: list[np.ndarray] = [np.zeros(0, np.float32)] * len(asked)
        for group in (np.flatnonzero(lengths[:, 1] == 0), np.flatnonzero(lengths[:, 1])):
            if not len(group):
                continue
            plan = plan_units(
                np.zeros_like(lengths),
                lengths,
                np.arange(len(lengths)),
                group,
                share=False,
                batch_tokens=batch_tokens,
                merge_area=self.processor.geometry.merge_area,
            )
            run = self._run(plan, lambda unit: parts[unit.query], self.processor.number_ids)
            for batch, values in run:
                for pair, row in zip(batch.pairs.tolist(), values, strict=True):
                    found[pair] = row[: len(asked[pair][1])]
        return found

    def _listed(self, query: Item, candidates: Sequence[Item]) -> Branched:
        processor = self.processor
        places: list[Place] = ["inner" for _ in candidates[1:]]
        places.append("last")
        parts = [
            processor.candidate(_bare(item), place=place)
            for item, place in zip(candidates, places, strict=False)
        ]
        prompted = processor.listed(processor.query(query, listed=True), parts)
        branches = np.zeros(len(prompted.item.tokens), np.int32)
        return Branched(prompted.item, branches, np.array([prompted.answer], np.int32))

    def _together(self, query: Part, candidates: Sequence[Part]) -> Branched:
        if self.share_queries:
            return self.processor.branched(query, candidates)
        (candidate,) = candidates
        prompted = self.processor.pair(query, candidate)
        branches = np.zeros(len(prompted.item.tokens), np.int32)
        return Branched(prompted.item, branches, np.array([prompted.answer], np.int32))

    def _run(
        self, plan: Plan, make: Callable[[Unit], Branched], answers: tuple[int, ...]
    ) -> Iterator[tuple[PackedPairs, np.ndarray]]:
        """Yields rows and their pairs' logits [n, A]; rows are prepared ahead by threads."""
        attention = "branching" if self.share_queries else "causal"
        with prefetch.workers() as pool:
            for found in prefetch.ahead(pool, lambda build: build(), packed(plan, make)):
                logits = self._logits(
                    self._params,
                    found.rows,
                    places=found.places,
                    answers=answers,
                    adapters=self._adapters,
                    attention=attention,
                )
                yield found, np.asarray(logits)[found.row, found.column]


def _pair(pair: Any) -> tuple[Item, Item]:
    if not isinstance(pair, tuple | list) or [isinstance(one, Item) for one in pair] != [True] * 2:
        raise MarvelError(
            "score takes pairs (query, candidate) of items: wrap them, as Item.of(text=...) or "
            "Item.of(image=...)."
        )
    return pair[0], _bare(pair[1])


def _bare(candidate: Item) -> Item:
    """A candidate has no instruction: what it is does not hang on who asks."""
    return candidate if candidate.instruction is None else candidate.with_instruction(None)


def _distinct(items: Sequence[Item]) -> tuple[list[Item], np.ndarray]:
    """Each object once, and which of them each item is."""
    places: dict[int, int] = {}
    numbers = np.array([places.setdefault(id(item), len(places)) for item in items])
    first = np.unique(numbers, return_index=True)[1]
    return [items[place] for place in first.tolist()], numbers
