"""What a run reads, opened from its config: source, tokenizer, architecture and weights."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import optax
from jax.sharding import Mesh

from marvel_jax.data import sources
from marvel_jax.data.chat import ChatTokenizer
from marvel_jax.data.emoji import TOKENIZER_FOLDER
from marvel_jax.data.images import ImageGeometry
from marvel_jax.data.items import RetrievalSource
from marvel_jax.data.mixture import Mixture, Part
from marvel_jax.data.processor import Processor
from marvel_jax.data.retention import TextStream
from marvel_jax.data.sources import SourceConfig
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files
from marvel_jax.models import hub
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.parallel import hosts
from marvel_jax.settings import EmbeddingSettings, check_tokenizer
from marvel_jax.training.config import DataConfig, TrainConfig
from marvel_jax.training.objective_config import retains
from marvel_jax.training.rerank_inputs import listed_source, pair_processor
from marvel_jax.training.state import (
    Placed,
    create_state,
    initial_values,
    storage_dtype,
    weight_sharding,
)

# Small pictures that a run meets again and again are decoded once.
_PATCH_CACHE_BYTES = 256 << 20


class Inputs(NamedTuple):
    """Everything a run needs before its first step, but the weights themselves."""

    source: RetrievalSource
    processor: Processor
    tokenizer_folder: Path
    architecture: Qwen2VLConfig
    weights_folder: Path | None  # None = from scratch
    weights_hash: str | None  # content of its weight files; None = from scratch
    texts: TextStream | None = None  # of the next-token loss


def open_inputs(config: TrainConfig) -> Inputs:
    """Opens source, tokenizer and architecture, and holds them against each other.

    Raises:
      MarvelError: one is missing, or the tokenizer does not fit the architecture.
    """
    source = open_source(config.data, rerank=config if config.objective == "rerank" else None)
    weights_folder = weights_hash = None
    if config.model.source is not None:
        folder = weights_folder = hub.resolve(config.model.source)
        architecture = Qwen2VLConfig.from_folder(folder)
        # Once for all processes: every byte is read.
        weights_hash = hosts.from_main(lambda: hash_weights(folder))
    else:
        folder = _tokenizer_folder(config.data)
        assert config.model.scratch is not None  # ModelConfig checks it
        architecture = config.model.scratch
    processor = _processor(folder, config, architecture)
    if weights_folder is None:
        architecture = fit_to_tokenizer(architecture, processor)
    else:
        check_tokenizer(
            processor.tokenizer.special,
            image_token_id=architecture.image_token_id,
            vocab_size=architecture.text.vocab_size,
            name=str(folder),
        )
    merge_area = processor.geometry.merge_area
    if config.data.row.patches % merge_area:
        whole = -(-config.data.row.patches // merge_area) * merge_area
        raise MarvelError(
            f"data.row.patches={config.data.row.patches} is not a multiple of {merge_area}, the "
            f"patches of one visual token: use {whole}."
        )
    texts = open_texts(config, processor)
    return Inputs(source, processor, folder, architecture, weights_folder, weights_hash, texts)


def open_texts(config: TrainConfig, processor: Processor) -> TextStream | None:
    """The texts of the run's next-token loss, if it has one.

    Raises:
      MarvelError: the file is missing, or lines of it are of no known form.
    """
    retention = config.retention
    if retention is None or not retains(config):
        return None
    return TextStream(
        Path(retention.path),
        processor.tokenizer,
        per_step=retention.texts,
        max_tokens=retention.max_tokens,
        seed=config.seed,
        chunk=config.chunk_rows,
    )


def _processor(folder: Path, config: TrainConfig, architecture: Qwen2VLConfig) -> Any:
    if config.objective != "rerank":
        return make_processor(folder, config.embedding, architecture)
    return pair_processor(folder, config, architecture)


def _tokenizer_folder(data: DataConfig) -> Path:
    """Where the tokenizer of a model from scratch is."""
    if data.tokenizer is None and data.path is None:
        raise MarvelError(
            "A model from scratch takes its tokenizer from a folder with tokenizer.json: name it "
            "in data.tokenizer, since a data.mixture has several corpora."
        )
    folder = Path(data.tokenizer or Path(data.path or "") / TOKENIZER_FOLDER)
    if not (folder / "tokenizer.json").is_file():
        raise MarvelError(
            f"{folder}/tokenizer.json does not exist: a model from scratch takes the corpus's "
            "tokenizer. Put one there, name another in data.tokenizer, or start from weights with "
            "model.source."
        )
    return folder


def hash_weights(folder: Path) -> str:
    """The content hash of a model folder's weight files."""
    return hash_files(*sorted(folder.glob("*.safetensors")))


def place_state(
    config: TrainConfig, inputs: Inputs, optimizer: optax.GradientTransformation, mesh: Mesh
) -> Placed:
    """The state before the first step, on the mesh; weights are read straight into their shards.

    Raises:
      MarvelError: the weights do not fit their config.json, or what `state.create_state` refuses.
    """
    weights = temperature = None
    if inputs.weights_folder is not None:
        checkpoint = hub.load_sharded(
            inputs.weights_folder,
            sharding=weight_sharding(config, inputs.architecture, mesh),
            dtype=lambda path: storage_dtype(path, config),
        )
        weights, temperature = checkpoint.params, checkpoint.temperature
    params, frozen = initial_values(
        config, inputs.architecture, weights=weights, temperature=temperature
    )
    return create_state(params, frozen, optimizer, config, inputs.architecture, mesh)


def open_source(config: DataConfig, *, rerank: TrainConfig | None = None) -> RetrievalSource:
    """Opens the training queries and candidates in the form that the config names.

    `rerank` is the run of a reranker, for which a mined file is a list to draw from.

    Raises:
      MarvelError: what is wrong with every source, in one message.
    """
    opened, faults = [], []
    for number, part in enumerate(config.sources):
        field = f"data.mixture[{number}]" if config.mixture else "data"
        try:
            opened.append(Part(part.label, _open_part(part, field, config, rerank)))
        except MarvelError as error:
            faults.append(str(error))
    if faults:
        raise MarvelError(" ".join(faults))
    return Mixture(opened) if config.mixture else opened[0].source


def _open_part(
    part: SourceConfig, field: str, data: DataConfig, rerank: TrainConfig | None
) -> RetrievalSource:
    top = None if rerank is None or rerank.rerank is None else rerank.rerank.top
    if rerank is None or top is None:
        return sources.open_source(
            part, field=field, retrieved_by=data.retrieved_by, taught_by=data.taught_by
        )
    source = sources.open_source(dataclasses.replace(part, mined=None), field=field)
    return listed_source(source, part.mined, top=top, model_hash=data.retrieved_by)


def make_processor(
    folder: Path, embedding: EmbeddingSettings, architecture: Qwen2VLConfig
) -> Processor:
    """The processor of a tokenizer's folder with the run's pixel limits and template."""
    vision = architecture.vision
    geometry = ImageGeometry(
        patch_size=vision.patch_size,
        merge_size=vision.spatial_merge_size,
        temporal_patch_size=vision.temporal_patch_size,
        min_pixels=embedding.min_pixels,
        max_pixels=embedding.max_pixels,
    )
    return Processor(
        ChatTokenizer.from_folder(folder),
        geometry,
        template=embedding.template,
        positions=embedding.positions,
        max_text_tokens=embedding.max_text_tokens,
        instruction=embedding.instruction,
        prompt=embedding.prompt,
        cache_bytes=_PATCH_CACHE_BYTES,
    )


def fit_to_tokenizer(architecture: Qwen2VLConfig, processor: Processor) -> Qwen2VLConfig:
    """The architecture to initialise, with the tokenizer's size and special ids."""
    tokenizer = processor.tokenizer
    return dataclasses.replace(
        architecture,
        text=dataclasses.replace(architecture.text, vocab_size=tokenizer.size),
        image_token_id=tokenizer.special("<|image_pad|>"),
        video_token_id=tokenizer.special("<|video_pad|>"),
        vision_start_token_id=tokenizer.special("<|vision_start|>"),
        vision_end_token_id=tokenizer.special("<|vision_end|>"),
        bos_token_id=tokenizer.special("<|endoftext|>"),
        eos_token_id=tokenizer.special("<|im_end|>"),
    )
