"""InfoNCE over every candidate of the global batch, with copies of known positives masked."""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from marvel_jax.errors import MarvelError
from marvel_jax.losses.forms import FORMS, mean_over_labels
from marvel_jax.losses.labels import CandidateLabels, QueryLabels
from marvel_jax.losses.ring import Ring, ring_statistics
from marvel_jax.losses.rows import Sums, Terms, add_up, label_sums, query_sums

FormName = Literal["softmax", "sigmoid", "llave", "focal", "focal_abs", "diht"]
Implementation = Literal["dense", "gather", "ring"]


class ContrastiveLoss(NamedTuple):
    """Scalars, float32: means over the valid queries that have a label."""

    loss: jax.Array
    accuracy: jax.Array  # share of queries with a label that scores above every negative
    positive_similarity: jax.Array  # mean cosine of query and labels


def info_nce(
    queries: jax.Array,
    candidates: jax.Array,
    *,
    temperature: jax.Array,
    own_positive: jax.Array,
    candidate_id: jax.Array,
    candidate_query: jax.Array,
    positive_ids: jax.Array,
    positive_valid: jax.Array,
    query_valid: jax.Array,
    candidate_valid: jax.Array,
    symmetric: bool = False,
    in_batch_negatives: bool = True,
    form: FormName = "softmax",
    bias: jax.Array | None = None,
    implementation: Implementation = "dense",
    mesh: Mesh | None = None,
    axes: tuple[str, ...] = ("data", "fsdp"),
    tile: int = 1024,
) -> ContrastiveLoss:
    """The contrastive loss of one global batch, the same number on any mesh.

    Every valid candidate of the batch stands in every query's denominator, hard negatives of
    other queries too, except copies of the query's known positives. With several labels a query's
    loss is the mean of -log p over them, each with the other labels out of its denominator. What
    a form other than softmax does is told in `losses.forms`. All in float32.

    `dense` is plain array code over [B, C], the oracle. `gather` takes each shard's queries
    against all candidates, [tile, C] at a time. `ring` passes the queries round (`losses.ring`):
    its memory grows neither with the batch at a fixed B per device nor with hard negatives; it
    knows the softmax form only. `gather` and `ring` want the rows of shard i of `queries` and
    `candidates` on shard i of the mesh.

    `ring`, and `gather` without in-batch negatives, where no candidate travels, want a query's
    labels on its own shard: a label elsewhere gives a loss of NaN. Without in-batch negatives so
    does a valid candidate away from the query that brought it. `gather` with in-batch negatives
    finds a label on any shard.

    The temperature may be learned; it is used as it is, and training keeps it within
    `OptimizerConfig.temperature_min` and `temperature_max`.

    Args:
      queries: [B, D] unit vectors, any float type; float32 needs no copy.
      candidates: [C, D] unit vectors.
      temperature: scalar that divides the cosines.
      own_positive: [B, P] int32, the rows of `candidates` that are the query's labels; -1 = none.
      candidate_id: [C, 2] uint32 hash of each candidate's id.
      candidate_query: [C] int32, the row of `queries` that brought the candidate as a label or a
        hard negative; it counts only without in-batch negatives.
      positive_ids: [B, M, 2] uint32 hashes of every known positive of the query.
      positive_valid: [B, M] bool, False where `positive_ids` is padding.
      query_valid: [B] bool; an invalid query has no term and is in no label's denominator.
      candidate_valid: [C] bool; an invalid candidate is in no denominator and is no label.
      symmetric: adds, with equal weight, each label's loss over all queries of the batch that do
        not hold it for a positive.
      in_batch_negatives: False leaves each query its own labels and the candidates it brought.
      form: softmax, sigmoid (SigLIP), llave, focal, focal_abs or diht.
      bias: scalar added to the logits of the sigmoid form, which needs it; SigLIP starts at -10.
      implementation: dense, gather or ring.
      mesh: for gather and ring.
      axes: the mesh axes over which the batch is split, major first; the rest hold copies.
      tile: rows (gather), rows and columns (ring) of the similarities that exist at one time.

    Raises:
      MarvelError: options that do not go together, or shapes that do not fit each other or the
        mesh.

    Source: van den Oord et al. 2018; in-batch form as in U-MARVEL (specification 1.8 to 1.10).
    """
    _check_options(
        form, bias, implementation, symmetric=symmetric, in_batch=in_batch_negatives, tile=tile
    )
    query_labels = QueryLabels(
        own=own_positive,
        positive_ids=positive_ids,
        positive_valid=positive_valid,
        valid=query_valid,
        row=jnp.arange(queries.shape[0], dtype=jnp.int32),
    )
    candidate_labels = CandidateLabels(
        id=candidate_id,
        valid=candidate_valid,
        query=candidate_query,
        row=jnp.arange(candidates.shape[0], dtype=jnp.int32),
    )
    _check_shapes(queries, candidates, query_labels, candidate_labels)
    arrays = (
        queries.astype(jnp.float32),
        candidates.astype(jnp.float32),
        query_labels,
        candidate_labels,
        jnp.asarray(temperature, jnp.float32),
        jnp.asarray(0.0 if bias is None else bias, jnp.float32),
    )
    dense = implementation == "dense"
    split_over: tuple[str, ...] = () if dense else axes

    def shard_sums(
        queries: jax.Array,
        candidates: jax.Array,
        query_labels: QueryLabels,
        candidate_labels: CandidateLabels,
        temperature: jax.Array,
        bias: jax.Array,
    ) -> Sums:
        """The sums of one shard; of the whole batch for `dense`."""
        inputs = (queries, candidates, query_labels, candidate_labels)
        if implementation == "ring" and in_batch_negatives:
            assert mesh is not None
            ring = Ring(axes, _shards(mesh, axes), tile, columns=symmetric)
            return _ring_sums(*inputs, temperature, ring=ring)
        return _row_sums(
            *inputs,
            terms=Terms(form, temperature, bias),
            symmetric=symmetric,
            in_batch=in_batch_negatives,
            tile=queries.shape[0] if dense else tile,
            axes=split_over,
        )

    def all_sums(*arrays: Any) -> Sums:
        # One sum of all four: apart, they could meet the ring's own traffic on fake CPU devices,
        # where jax 0.10 takes one collective for another.
        return Sums(*jax.lax.psum(jnp.stack(shard_sums(*arrays)), axes))

    if dense:
        sums = shard_sums(*arrays)
    else:
        mesh = _check_mesh(mesh, axes, implementation, queries.shape[0], candidates.shape[0])
        split, whole = PartitionSpec(axes), PartitionSpec()
        specs = (split, split, split, split, whole, whole)
        sums = jax.shard_map(all_sums, mesh=mesh, in_specs=specs, out_specs=whole)(*arrays)

    count = jnp.maximum(sums.queries, 1.0)
    return ContrastiveLoss(sums.loss / count, sums.hits / count, sums.similarity / count)


def _row_sums(
    queries: jax.Array,
    candidates: jax.Array,
    query_labels: QueryLabels,
    candidate_labels: CandidateLabels,
    *,
    terms: Terms,
    symmetric: bool,
    in_batch: bool,
    tile: int,
    axes: tuple[str, ...],
) -> Sums:
    """A shard's queries against the candidates of all shards, or of its own without in_batch."""

    def everyone(tree: Any) -> Any:
        if not (axes and in_batch):
            return tree
        return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, axes, tiled=True), tree)

    all_candidates, all_labels = everyone((candidates, candidate_labels))
    sums = query_sums(
        queries,
        all_candidates,
        query_labels,
        all_labels,
        terms=terms,
        in_batch=in_batch,
        tile=tile,
    )
    if symmetric:
        all_queries, all_query_labels = everyone((queries, query_labels))
        backward = label_sums(
            query_labels,
            all_candidates,
            all_labels,
            all_queries,
            all_query_labels,
            terms=terms,
            tile=tile,
        )
        sums = sums._replace(loss=sums.loss + backward)
    if axes and not in_batch:
        _, _, lost = _find_labels(query_labels, candidate_labels)
        home = candidate_labels.query - query_labels.row[0]
        strayed = (candidate_labels.query >= 0) & ((home < 0) | (home >= queries.shape[0]))
        poison = (lost & query_labels.valid[:, None]).any()
        poison |= (strayed & candidate_labels.valid).any()
        sums = sums._replace(loss=jnp.where(poison, jnp.nan, sums.loss))
    return sums


def _ring_sums(
    queries: jax.Array,
    candidates: jax.Array,
    query_labels: QueryLabels,
    candidate_labels: CandidateLabels,
    temperature: jax.Array,
    *,
    ring: Ring,
) -> Sums:
    scale = ring.varying(1.0 / temperature)
    statistics = ring_statistics(ring, queries, candidates, scale, query_labels, candidate_labels)
    row, here, lost = _find_labels(query_labels, candidate_labels)
    has_label = here & candidate_labels.valid[row]
    terms = jax.nn.softplus(statistics.lse[:, None] - statistics.label)
    if ring.columns:
        terms += jax.nn.softplus(statistics.column_lse[row] - statistics.label)
    terms = jnp.where(lost, jnp.nan, terms)
    return add_up(
        mean_over_labels(terms, has_label | lost),
        jax.lax.stop_gradient(statistics.best) * temperature,
        statistics.label * temperature,
        has_label | lost,
        query_labels.valid,
    )


def _find_labels(
    queries: QueryLabels, candidates: CandidateLabels
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Own labels [b, P] among a shard's candidates: (row or 0, is here, is on another shard)."""
    row = queries.own - candidates.row[0]
    here = (row >= 0) & (row < candidates.row.shape[0])
    return jnp.where(here, row, 0), here, (queries.own >= 0) & ~here


def _shards(mesh: Mesh, axes: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in axes)


def _check_options(
    form: str,
    bias: jax.Array | None,
    implementation: str,
    *,
    symmetric: bool,
    in_batch: bool,
    tile: int,
) -> None:
    if form not in FORMS:
        raise MarvelError(f"form={form!r} is no form of the loss: choose one of {list(FORMS)}.")
    if implementation not in ("dense", "gather", "ring"):
        raise MarvelError(
            f"implementation={implementation!r} is none: choose dense, gather or ring."
        )
    if implementation == "ring" and form != "softmax":
        raise MarvelError(
            f"implementation='ring' knows form='softmax' only, not form={form!r}: "
            "take implementation='gather'."
        )
    if (form == "sigmoid") != (bias is not None):
        found = "needs a bias (SigLIP starts at -10)" if bias is None else "has no bias"
        raise MarvelError(f"form={form!r} {found}: give `bias` with form='sigmoid' only.")
    if symmetric and form == "sigmoid":
        raise MarvelError(
            "symmetric=True with form='sigmoid': the sigmoid form is the same in both "
            "directions; leave symmetric=False."
        )
    if symmetric and not in_batch:
        raise MarvelError(
            "symmetric=True with in_batch_negatives=False: a label then has no query but its "
            "own to stand against; leave symmetric=False."
        )
    if tile < 1:
        raise MarvelError(f"tile={tile}: it is a positive number of rows, as 1024.")


def _check_shapes(
    queries: jax.Array, candidates: jax.Array, q: QueryLabels, c: CandidateLabels
) -> None:
    b, count = queries.shape[0], candidates.shape[0]
    if q.own.ndim != 2 or q.own.shape[1] < 1:
        raise MarvelError(
            f"own_positive has shape {q.own.shape}: it is [{b}, P], one or more each."
        )
    positives = q.positive_ids.shape[1]
    wanted = {
        "candidates": (candidates.shape, (count, queries.shape[1])),
        "own_positive": (q.own.shape, (b, q.own.shape[1])),
        "positive_ids": (q.positive_ids.shape, (b, positives, 2)),
        "positive_valid": (q.positive_valid.shape, (b, positives)),
        "query_valid": (q.valid.shape, (b,)),
        "candidate_id": (c.id.shape, (count, 2)),
        "candidate_query": (c.query.shape, (count,)),
        "candidate_valid": (c.valid.shape, (count,)),
    }
    for name, (found, expected) in wanted.items():
        if found != expected:
            raise MarvelError(
                f"{name} has shape {found} where queries {queries.shape} and {count} candidates "
                f"ask for {expected}."
            )


def _check_mesh(
    mesh: Mesh | None, axes: tuple[str, ...], implementation: str, b: int, count: int
) -> Mesh:
    if mesh is None:
        raise MarvelError(f"implementation={implementation!r} needs a mesh; `dense` needs none.")
    missing = [axis for axis in axes if axis not in mesh.shape]
    if missing or not axes:
        raise MarvelError(
            f"axes={axes}: the mesh has the axes {tuple(mesh.shape)}; name those that split the "
            "batch."
        )
    shards = _shards(mesh, axes)
    if b % shards or count % shards:
        raise MarvelError(
            f"{b} queries and {count} candidates do not split evenly over the {shards} shards of "
            f"axes {axes}: give a multiple of {shards} of each."
        )
    return mesh
