"""The batch that a step is compiled for: its shapes, and the true work in it."""

from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from marvel_jax.data import lengths
from marvel_jax.data.batch import Batch, Rows, RowShape, row_batches
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.data.lengths import LengthsIndex
from marvel_jax.data.mbeir_lengths import MbeirMix, mbeir_lengths
from marvel_jax.data.retention import TextRows, text_rows
from marvel_jax.data.taught import ListScores, QueryLists
from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.retrieval.embedder import encoding_rows
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.flops import Work
from marvel_jax.training.inputs import Inputs, open_inputs
from marvel_jax.training.objective_config import brought, labels, listed, retains
from marvel_jax.training.prepare import make_plan

Lengths = Literal["mbeir", "corpus"]

_LEAST_QUERIES = 20_000
_STEPS = 4  # that are packed; the one with the most rows counts


class Sizes(NamedTuple):
    """A global batch in numbers."""

    rows: int  # of a data shard
    row_counts: tuple[int, ...]  # of a data shard: each is a compilation of its own
    known_positives: int
    work: Work  # of the global batch, without padding
    queries: int
    candidates: int
    token_fill: float
    patch_fill: float
    source: str


def corpus_of(config: TrainConfig) -> Inputs:
    """The config's own data, for its lengths; the tokenizer must be in a folder here.

    Raises:
      MarvelError: it is not, or the data is not there.
    """
    source = config.model.source
    if source is not None and not Path(source).is_dir():
        raise MarvelError(
            f"--lengths corpus counts tokens with the tokenizer of model.source={source}, which is "
            "no folder here: name a local one (--set model.source=FOLDER), or use --lengths mbeir."
        )
    return open_inputs(config)


def train_sizes(config: TrainConfig, corpus: Inputs | None, *, shards: int) -> Sizes:
    """What the epoch plan makes of this config's global batch on so many data shards.

    Of a few steps, the one with the most rows. Without a corpus, lengths are invented as M-BEIR's.

    Raises:
      MarvelError: the batch does not divide among the shards, an item does not fit a row, or the
        objective is "rerank", whose batches are not planned.
    """
    data = config.data
    if config.objective == "rerank":
        raise MarvelError(
            "objective='rerank' cannot be planned: its rows hold pairs. Plan an embedder's stage "
            "(contrastive or distillation) of the same model and rows."
        )
    if data.global_batch % shards:
        below = data.global_batch // shards * shards
        raise MarvelError(
            f"data.global_batch={data.global_batch} is not a multiple of the {shards} data shards "
            f"of the mesh: use data.global_batch={below + shards}"
            + (f" or {below}" if below else "")
            + ", or fewer shards (mesh.tensor)."
        )
    plan = _epoch_plan(config, corpus, shards=shards)
    index = plan.index
    step = max((plan.step(number) for number in range(_STEPS)), key=lambda one: one.num_rows)
    here = step.candidates[step.candidates >= 0]
    items = np.concatenate([index.queries[step.queries], index.candidates[here]])
    return Sizes(
        rows=step.num_rows,
        row_counts=plan.row_counts,
        known_positives=step.positives.shape[1],
        work=_work(items),
        queries=data.global_batch,
        candidates=data.global_batch * brought(config),
        token_fill=1 - step.stats.padded_tokens,
        patch_fill=1 - step.stats.padded_patches,
        source=_named(index, corpus),
    )


def train_batch(
    config: TrainConfig, architecture: Qwen2VLConfig, sizes: Sizes, *, shards: int
) -> Batch:
    """The shapes of a global batch, as `data.pipeline` makes it."""
    queries, candidates, known = sizes.queries, sizes.candidates, sizes.known_positives
    return Batch(
        rows=rows_of(architecture, config.data.row, sizes.rows * shards),
        item_key=_array((sizes.rows * shards, config.data.row.items, 2), jnp.uint32),
        query_slot=_array((queries,), jnp.int32),
        candidate_slot=_array((candidates,), jnp.int32),
        candidate_id=_array((candidates, 2), jnp.uint32),
        candidate_query=_array((candidates,), jnp.int32),
        positive_ids=_array((queries, known, 2), jnp.uint32),
        positive_valid=_array((queries, known), jnp.bool_),
        own_positive=_array((queries, labels(config)), jnp.int32),
        query_valid=_array((queries,), jnp.bool_),
        candidate_valid=_array((candidates,), jnp.bool_),
        lists=_scores(queries, listed(config)) if listed(config) else None,
        texts=_texts(config, architecture, shards=shards) if retains(config) else None,
    )


def _scores(queries: int, depth: int) -> ListScores:
    scores = _array((queries, depth), jnp.float32)
    valid, weight = _array((queries, depth), jnp.bool_), _array((queries,), jnp.float32)
    return ListScores(scores, scores, scores, valid, weight)


def _texts(config: TrainConfig, architecture: Qwen2VLConfig, *, shards: int) -> TextRows:
    retention = config.retention
    assert retention is not None  # `retains` says so
    if retention.texts % shards:
        raise MarvelError(
            f"retention.texts={retention.texts} does not divide among {shards} data shards."
        )
    rows = shards * text_rows(retention.texts // shards, chunk=config.chunk_rows)
    shape = RowShape(tokens=retention.max_tokens, patches=0, items=1)
    return TextRows(rows_of(architecture, shape, rows), _array((rows, 1, 2), jnp.uint32))


def encode_sizes(
    config: TrainConfig, corpus: Inputs | None, architecture: Qwen2VLConfig, *, batch_tokens: int
) -> tuple[Sizes, RowShape]:
    """One call of the encoding of a pool, among those with pictures, and the shape of its rows."""
    index = _invented(config) if corpus is None else _index(corpus)
    items = index.candidates
    pictured = items[items[:, 1] > 0]
    group = pictured if len(pictured) else items
    merge = architecture.vision.spatial_merge_size**2
    shape, rows = encoding_rows(group, batch_tokens=batch_tokens, merge_area=merge)
    call = next(row_batches(group, shape, num_rows=rows))
    held = group[np.concatenate([np.asarray(row) for row in call])]
    sizes = Sizes(
        rows=rows,
        row_counts=(rows,),
        known_positives=0,
        work=_work(held),
        queries=0,
        candidates=len(held),
        token_fill=float(held[:, 0].sum()) / (rows * shape.tokens),
        patch_fill=float(held[:, 1].sum()) / max(rows * shape.patches, 1),
        source=_named(index, corpus),
    )
    return sizes, shape


def rows_of(architecture: Qwen2VLConfig, row: RowShape, rows: int) -> Rows:
    """The shapes of so many rows of stills."""
    tokens, patches = (rows, row.tokens), (rows, row.patches)
    return Rows(
        tokens=_array(tokens, jnp.int32),
        positions=_array((*tokens, 3), jnp.int32),
        segments=_array(tokens, jnp.int32),
        pooled=_array(tokens, jnp.bool_),
        patches=_array((*patches, architecture.vision.still_values), jnp.uint8),
        patch_hw=_array((*patches, 2), jnp.int32),
        patch_segments=_array(patches, jnp.int32),
        vision_index=_array(tokens, jnp.int32),
    )


def _epoch_plan(config: TrainConfig, corpus: Inputs | None, *, shards: int) -> Plan:
    """The plan of a run; with invented lengths, of one source that has them all."""
    if corpus is not None:
        return make_plan(config, corpus, shards=shards, cache=None)
    data = config.data
    plan = PlanConfig(
        global_batch=data.global_batch,
        seed=config.seed,
        row=data.row,
        task_weights=data.task_weights,
        positives_per_query=labels(config),
        hard_negatives=data.hard_negatives,
        chunk_rows=config.chunk_rows or 1,
        batches=data.batches,
        sub_batch=data.sub_batch,
        duplicates=data.duplicates,
    )
    try:
        index = _invented(config)
        return Plan(index, plan, num_shards=shards, lists=_invented_lists(index, config))
    except MarvelError as error:
        raise MarvelError(
            f"with the lengths of M-BEIR's mix: {error} To plan with the config's own data, where "
            "it is here: --lengths corpus."
        ) from error


def _index(corpus: Inputs) -> LengthsIndex:
    return lengths.index(corpus.source, corpus.processor, cache=None, hard_negatives=False)


def _invented(config: TrainConfig) -> LengthsIndex:
    data = config.data
    return mbeir_lengths(
        MbeirMix(
            queries=max(_LEAST_QUERIES, _STEPS * data.global_batch),
            positives=data.positives_per_query,
            hard_negatives=data.hard_negatives + listed(config),
            seed=config.seed,
            max_pixels=config.embedding.max_pixels,
            max_text=config.embedding.max_text_tokens,
        )
    )


def _invented_lists(index: LengthsIndex, config: TrainConfig) -> QueryLists | None:
    """The last K invented negatives of a query are its list."""
    depth, count = listed(config), len(index.queries)
    if not depth:
        return None
    candidates = index.negatives.reshape(count, -1)[:, -depth:]
    return QueryLists(
        rows=np.arange(count, dtype=np.int32)[:, None],
        ends=np.ones((count, 1)),
        candidates=candidates,
        scores=np.zeros((3, *candidates.shape), np.float32),
        weight=np.ones(count, np.float32),
    )


def _named(index: LengthsIndex, corpus: Inputs | None) -> str:
    """Where the lengths are from, for the reader of a plan."""
    if corpus is not None:
        return "lengths of the config's own data"
    return f"lengths of M-BEIR's mix, {len(index.queries):,} invented queries"


def _work(items: np.ndarray) -> Work:
    """The work in items of (tokens, patches) [N, 2]; each has one picture or none."""
    tokens, patches = items.astype(np.int64).T
    return Work(
        tokens=int(tokens.sum()),
        token_pairs=int((tokens**2).sum()),
        patches=int(patches.sum()),
        patch_pairs=int((patches**2).sum()),
    )


def _array(shape: tuple[int, ...], dtype: object) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)
