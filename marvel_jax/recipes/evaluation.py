"""A model against every test set of an M-BEIR folder: encode, index, search, score."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import marvel_jax
from marvel_jax.data.mbeir import MbeirFolder, TestSet
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files
from marvel_jax.recipes import evaluation_inputs as inputs
from marvel_jax.retrieval import evaluation_folder, retrieval_sets
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates
from marvel_jax.retrieval.protocols import DEPTH, Evaluation, Rankings, RetrievalSet, evaluate
from marvel_jax.retrieval.retrieval_sets import QueryVectors
from marvel_jax.retrieval.scann_index import ScannIndex, ScannUnavailableError
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import StoreType

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluated:
    """The scores, and what a report or a reranker goes on from.

    about: what evaluation.json says. missing: ids of candidates without a vector. origins: by set,
    what its rankings were made from.
    """

    evaluation: Evaluation
    store: VectorStore
    sets: Mapping[str, RetrievalSet]
    test_sets: Mapping[str, TestSet]
    about: Mapping[str, Any]
    missing: frozenset[str]
    origins: Mapping[str, str]


def evaluate_embedder(
    embedder: Embedder,
    layout: MbeirFolder,
    *,
    workdir: Path,
    seed: int,
    scann: bool = True,
    model: str | None = None,
    held_out: Sequence[str] = (),
    dtype: StoreType = "float32",
    dimension: int | None = None,
    tolerate: int = 0,
    say: Say = lambda line: None,
) -> Evaluated:
    """Encodes the union pool into `workdir/store` and the queries into `workdir/queries/`, builds
    `workdir/index`, scores every set and leaves an evaluation folder (`evaluation_folder`).

    What is there already, whole and of the same model and data, is used again: another seed
    encodes only queries, a run that was killed goes on.

    Args:
      embedder: the model.
      layout: the test sets and the pools.
      workdir: the evaluation's folder.
      seed: chooses each query's instruction; also of the bootstrap.
      scann: whether to measure ScaNN beside exact search.
      model: the model's name for readers.
      held_out: sets that the model was not trained on, as `mbeir_sets.parse_choice` reads them.
      dtype: of the stored candidates; queries stay float32.
      dimension: how many numbers of each candidate's vector are kept; None keeps all.
      tolerate: candidates, and queries of a set, that may be unreadable: never found, and counted.
      say: told what is done.

    Raises:
      MarvelError: what encoding, searching or scoring refuses.
    """
    test_sets = {one.name: one for one in layout.test_sets()}
    for one in test_sets.values():
        if not len(one.queries):
            raise MarvelError(f"{one.queries.files[0].path} holds no query: remove the file.")
    held = inputs.held_out_sets(layout, list(test_sets.values()), held_out)
    sets = {name: RetrievalSet.of(one, held_out=name in held) for name, one in test_sets.items()}
    pool = layout.pool("test")
    say(f"encoding {len(pool):,} candidates")
    store = encode_candidates(
        embedder,
        pool,
        workdir / "store",
        source_hash=hash_files(*(file.path for file in pool.files)),
        progress=Ticker(say, "candidates"),
        dtype=dtype,
        dimension=dimension,
        tolerate=tolerate,
    )
    missing = inputs.failures(workdir / "store")
    if len(store) + len(missing) != len(pool):
        raise MarvelError(
            f"{store.path} holds {len(store):,} vectors and {len(missing):,} candidates could not "
            f"be read, but the pool has {len(pool):,}: remove the store and encode again."
        )
    say(f"encoding {sum(len(one.queries) for one in test_sets.values()):,} queries")
    vectors, origins = {}, {}
    for name, one in test_sets.items():
        found = inputs.encode_test_queries(
            embedder,
            one,
            layout.instructions,
            workdir / "queries" / f"seed-{seed}" / name,
            seed=seed,
            tolerate=tolerate,
            progress=Ticker(say, f"queries of {name}"),
        )
        vectors[name] = inputs.aligned(found, sets[name].query_ids)
        origins[name] = inputs.origin_of(one, store, found)
    index = open_or_build(workdir / "index", store, say=say) if scann else None
    known = inputs.found_before(workdir, sets, origins)
    if known:
        say(f"{len(known)} of {len(sets)} sets were searched before")
    choice = f"one of the task's instructions, by the query's id and seed {seed}"
    known |= _searched(workdir, sets, vectors, store, missing, origins, but=known, say=say)
    evaluation = evaluate(
        list(sets.values()),
        vectors,
        store,
        instruction_choice=choice,
        index=index,
        modality_of=inputs.modality_of(pool),
        missing=missing,
        rankings=known,
        seed=seed,
    )
    about = {
        "model": model or "",
        "model_hash": embedder.model_hash,
        "data": str(layout.root),
        "seed": seed,
        "instruction_choice": choice,
        "depth": DEPTH,
        "sets": list(sets),
        "held_out": sorted(held),
        "missing": len(missing),
        "store": store.content_hash,
        "dtype": store.dtype,
        "dimension": store.dimension,
        "reranker": None,
        "marvel_jax": marvel_jax.__version__,
    }
    evaluated = Evaluated(evaluation, store, sets, test_sets, about, missing, origins)
    save(workdir, evaluated)
    return evaluated


def _searched(
    workdir: Path,
    sets: Mapping[str, RetrievalSet],
    vectors: Mapping[str, QueryVectors],
    store: VectorStore,
    missing: frozenset[str],
    origins: Mapping[str, str],
    *,
    but: Mapping[str, Rankings],
    say: Say,
) -> dict[str, Rankings]:
    """Searches the sets that were not, and writes their rankings at once: what follows (intervals,
    ScaNN) may fail or be killed without losing hours of search.
    """
    rows = {
        name: retrieval_sets.rows_of(one, store, missing=missing)
        for name, one in sets.items()
        if name not in but
    }
    if not rows:
        return {}
    found = retrieval_sets.search(
        [sets[name] for name in rows],
        vectors,
        store,
        rows,
        progress=lambda what: say(f"searching, {what}"),
    )
    evaluation_folder.begin(workdir)
    for name, rankings in found.items():
        evaluation_folder.write_rankings(
            workdir,
            name,
            k=sets[name].k,
            query_ids=sets[name].query_ids,
            retrieved=rankings,
            relevant=rows[name].relevant,
            relevant_local=rows[name].relevant_local,
            origin=origins[name],
        )
    return found


def save(
    workdir: Path,
    evaluated: Evaluated,
    *,
    reranked: Mapping[str, Mapping[str, Rankings]] | None = None,
    scores: Mapping[str, Any] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Writes the evaluation folder; `reranked` holds by set the orders of a reranker, `scores` and
    `about` what comes beside the evaluation's own.
    """
    evaluation = evaluated.evaluation
    evaluation_folder.begin(workdir)
    for name, one in evaluated.sets.items():
        evaluation_folder.write_rankings(
            workdir,
            name,
            k=one.k,
            query_ids=one.query_ids,
            retrieved=evaluation.rankings[name],
            relevant=evaluation.rows[name].relevant,
            relevant_local=evaluation.rows[name].relevant_local,
            reranked=(reranked or {}).get(name),
            origin=evaluated.origins[name],
        )
    evaluation_folder.write(
        workdir,
        scores={**evaluation.to_dict(), **(scores or {})},
        about={**evaluated.about, **(about or {})},
    )


def open_or_build(path: Path, store: VectorStore, *, say: Say) -> ScannIndex | None:
    """The ScaNN index of a store; None, and a line that says so, where ScaNN has no wheel."""
    try:
        if path.is_dir():
            return ScannIndex.open(path, store)
        say("building the ScaNN index")
        return ScannIndex.build(store, path=path, say=say)
    except ScannUnavailableError as error:
        say(str(error))
        return None


class Ticker:
    """Turns (done, total) into a line now and then."""

    def __init__(self, say: Say, noun: str, *, every: float = 5.0) -> None:
        self._say = say
        self._noun = noun
        self._every = every
        self._started = self._last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Reports if `every` seconds have passed."""
        now = time.perf_counter()
        if now - self._last >= self._every and done:
            self._last = now
            pace = done / (now - self._started)
            left = (total - done) / pace
            self._say(f"  {done:,} of {total:,} {self._noun}, {pace:,.0f}/s, {left:.0f} s left")


def score_table(evaluation: Evaluation, *, untrained: Evaluation | None = None) -> list[str]:
    """The scores as lines of text: a task a line, local and global pool, chance beside them."""
    # Sets of one kind are told apart by their names.
    named = len({one.task for one in evaluation.sets}) < len(evaluation.sets)
    name_title = f"{'set':<20}" if named else ""
    title = f"{'task':<14}{name_title}"
    title += f"{'queries':>8}{'pool':>10}  {'local':<22}{'global':<10}{'chance':<9}"
    lines = [title + ("untrained" if untrained else "")]
    before = {one.name: one for one in untrained.sets} if untrained else {}
    for one in evaluation.sets:
        local = one.local_pool.hit[one.k]
        line = (
            f"{one.task:<14}{f'{one.name:<20}' if named else ''}"
            f"{one.num_queries:>8,}{one.local_pool.size:>10,}  "
            f"{f'{local.mean:.3f} [{local.low:.3f}, {local.high:.3f}]':<22}"
            f"{one.global_pool.hit[one.k].mean:<10.3f}{one.local_pool.chance[one.k]:<9.4f}"
        )
        if one.name in before:
            line += f"{before[one.name].local_pool.hit[one.k].mean:.4f}"
        lines.append(line)
    lines.append(
        f"mean hit: local {evaluation.mean_local.mean:.3f}, "
        f"global {evaluation.mean_global.mean:.3f}"
    )
    if evaluation.approximate:
        found = evaluation.approximate
        lines.append(
            f"ScaNN: recall@10 against exact {found.recall:.4f}; {found.speed.batched:.3f} ms a "
            f"query in a batch (exact {found.exact_speed.batched:.3f})"
        )
    return lines
