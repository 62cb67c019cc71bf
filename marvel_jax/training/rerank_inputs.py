"""What a reranker's run reads: its processor, its source and its plan, from the config."""

from pathlib import Path
from typing import TYPE_CHECKING

from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.epoch_plan import PlanConfig
from marvel_jax.data.images import ImageGeometry
from marvel_jax.data.items import RetrievalSource
from marvel_jax.data.rerank import PairProcessor
from marvel_jax.data.rerank_lengths import PairLengths, Progress, index_pairs
from marvel_jax.data.rerank_negatives import with_listed_negatives
from marvel_jax.data.rerank_plan import Draws, Frames, RerankPlan
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.reranker_settings import RerankerSettings

if TYPE_CHECKING:
    from marvel_jax.training.config import TrainConfig
    from marvel_jax.training.rerank_config import RerankConfig

_PATCH_CACHE_BYTES = 256 << 20


def reranker_settings(config: "TrainConfig") -> RerankerSettings:
    """What is kept beside the weights; the pixel limits are those of `config.embedding`."""
    rerank = _rerank(config)
    return RerankerSettings(
        prompt=rerank.prompt,
        min_pixels=config.embedding.min_pixels,
        max_pixels=config.embedding.max_pixels,
        max_text_tokens=rerank.max_text_tokens,
    )


def pair_processor(
    folder: Path, config: "TrainConfig", architecture: Qwen2VLConfig
) -> PairProcessor:
    """The processor of a tokenizer's folder with the run's prompt and pixel limits."""
    vision, rerank = architecture.vision, _rerank(config)
    return PairProcessor(
        ChatTokenizer.from_folder(folder),
        ImageGeometry(
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
            min_pixels=config.embedding.min_pixels,
            max_pixels=config.embedding.max_pixels,
        ),
        prompt=rerank.prompt,
        max_text_tokens=rerank.max_text_tokens,
        whole_reply=rerank.whole_reply,
        cache_bytes=_PATCH_CACHE_BYTES,
    )


def listed_source(
    source: RetrievalSource, mined: Path | str | None, *, top: int, model_hash: str | None
) -> RetrievalSource:
    """The source whose negatives are the mined lists; without a mined file the source as it is.

    Raises:
      MarvelError: the file does not fit the source, or is not of the model `model_hash`
        (`with_listed_negatives`).
    """
    if mined is None:
        return source
    return with_listed_negatives(source, mined, top=top, model_hash=model_hash)


def make_rerank_plan(
    source: RetrievalSource,
    processor: PairProcessor,
    config: "TrainConfig",
    *,
    shards: int,
    cache: Path | None,
    progress: Progress | None = None,
) -> RerankPlan:
    """The pairs, answers and packing of every step, from the config and the parts' lengths.

    Raises:
      MarvelError: a query without a negative, or what `RerankPlan` refuses.
    """
    data, rerank = config.data, _rerank(config)
    index: PairLengths = index_pairs(source, processor, cache=cache, progress=progress)
    plan_config = PlanConfig(
        global_batch=data.global_batch,
        seed=config.seed,
        row=data.row,
        task_weights=data.task_weights,
        chunk_rows=config.chunk_rows or 1,
        parts=tuple(part.share for part in data.mixture),
        batches=data.batches,
        sub_batch=data.sub_batch,
    )
    return RerankPlan(
        index,
        plan_config,
        draws=Draws(rerank.negatives, rerank.listed),
        frames=Frames.of(processor, rerank.listed),
        num_shards=shards,
    )


def _rerank(config: "TrainConfig") -> "RerankConfig":
    found: RerankConfig | None = config.rerank
    assert found is not None  # TrainConfig asks for it with objective "rerank"
    return found
