"""Our embedder behind mteb's encoder interface, so that mteb's tasks run on it."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from marvel_jax.data.items import Image, Item, Part
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.embedder import Embedder

MODALITIES = ("image", "text")
"""What a batch of mteb's may hold; both together are one fused item, the picture first."""


class MtebEncoder:
    """`mteb.evaluate(MtebEncoder(embedder), tasks)`: text, pictures, and both in one item.

    A query is led by its task's instruction: `instructions` has them by task name and by task type;
    a task that is in neither brings mteb's own prompt, if it has one. Documents have none. Where a
    task does not tell queries from documents (similarity, clustering), every text is led.

    Source: the `EncoderProtocol` of mteb 2.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        name: str = "marvel-jax/model",
        instructions: Mapping[str, str] | None = None,
        batch_tokens: int = 4096,
    ) -> None:
        """`name` is what results are kept under, as "organisation/model"."""
        if name.count("/") != 1:
            raise MarvelError(f"name={name!r}: mteb wants organisation/model, as marvel-jax/mine.")
        self.embedder = embedder
        self._name = name
        self._instructions = dict(instructions or {})
        self._batch_tokens = batch_tokens

    @cached_property
    def mteb_model_meta(self) -> Any:
        """What mteb writes beside the scores; the revision is the hash of weights and settings."""
        from mteb.models.model_meta import ModelMeta, ScoringFunction

        return ModelMeta(
            loader=None,
            name=self._name,
            revision=self.embedder.model_hash,
            release_date=None,
            languages=None,
            n_parameters=None,
            memory_usage_mb=None,
            max_tokens=None,
            embed_dim=self.embedder.dimension,
            license=None,
            open_weights=None,
            public_training_code=None,
            public_training_data=None,
            framework=["JAX"],
            similarity_fn_name=ScoringFunction.COSINE,
            use_instructions=True,
            training_datasets=None,
            modalities=list(MODALITIES),
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **options: Any,
    ) -> np.ndarray:
        """Unit vectors float32 [N, D] of mteb's batches, in their order.

        Raises:
          MarvelError: a batch holds audio or video, or an item holds nothing.
        """
        items = [item for batch in inputs for item in _items(batch, str(task_metadata.name))]
        return self.embedder.encode(
            items,
            instruction=self.instruction(task_metadata, prompt_type),
            batch_tokens=self._batch_tokens,
        )

    def instruction(self, task_metadata: Any, prompt_type: Any = None) -> str | None:
        """What leads the inputs of a task; None for documents."""
        kind = None if prompt_type is None else str(getattr(prompt_type, "value", prompt_type))
        if kind == "document":
            return None
        for key in (task_metadata.name, task_metadata.type):
            if key in self._instructions:
                return self._instructions[key]
        prompt = task_metadata.prompt
        if isinstance(prompt, Mapping):
            prompt = prompt.get("query")
        if prompt:
            return str(prompt)
        from mteb.abstasks.abstask import get_abstask_prompt

        return get_abstask_prompt(task_metadata.name) or None

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines [N, M]."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Cosines [N] of each with its own."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def _items(batch: Mapping[str, Any], task: str) -> list[Item]:
    for kind in ("audio", "video"):
        if batch.get(kind) is not None:
            raise MarvelError(f"mteb task {task} holds {kind}: only text and images are read here.")
    columns = [batch[name] for name in MODALITIES if batch.get(name) is not None]
    if not columns:
        raise MarvelError(f"mteb task {task}: a batch has neither text nor image: {sorted(batch)}.")
    return [Item(parts=_parts(cells, task)) for cells in zip(*columns, strict=True)]


def _parts(cells: tuple[Any, ...], task: str) -> tuple[Part, ...]:
    parts: list[Part] = []
    for cell in cells:
        if cell is None:
            continue
        if not isinstance(cell, str):
            parts.append(Image(cell, name=f"a picture of {task}"))
        elif cell.strip():
            parts.append(cell)
    # mteb's text tasks hold a few empty texts; they still want a vector.
    return tuple(parts) or (" ",)
