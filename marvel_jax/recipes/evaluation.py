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
from marvel_jax.recipes import kept_parts
from marvel_jax.recipes.kept_parts import MEASURED, PARAPHRASES, RERANKED, KeptParts
from marvel_jax.retrieval import evaluation_folder, retrieval_sets
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates
from marvel_jax.retrieval.evaluation_folder import SetRankings
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.protocols import (
    DEPTH,
    ApproximateScores,
    Evaluation,
    Rankings,
    RetrievalSet,
    evaluate,
)
from marvel_jax.retrieval.report_scores import read_approximate
from marvel_jax.retrieval.retrieval_sets import QueryVectors
from marvel_jax.retrieval.scann_index import ScannIndex, ScannUnavailableError
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import StoreType

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluated:
    """The scores, and what a report or a reranker goes on from.

    about: what evaluation.json says. missing: ids of candidates without a vector. origins: by set,
    what its rankings were made from. kept: what stands beside the scores, of this or of earlier
    commands.
    """

    evaluation: Evaluation
    store: VectorStore
    sets: Mapping[str, RetrievalSet]
    test_sets: Mapping[str, TestSet]
    about: Mapping[str, Any]
    missing: frozenset[str]
    origins: Mapping[str, str]
    kept: KeptParts


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
    told: Mapping[str, Any] | None = None,
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
      told: what evaluation.json says besides: `options` of the command, and what else it chose.
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
    kept = KeptParts(workdir, kept_parts.origin_of(sets, origins, seed=seed))
    if kept.dropped:
        say(f"left out, for they are of other lists: {', '.join(kept.dropped)} of an earlier run")
    choice = f"one of the task's instructions, by the query's id and seed {seed}"
    known |= _searched(workdir, sets, vectors, store, missing, origins, but=known, say=say)
    measured = _measured(kept, index)
    evaluation = evaluate(
        list(sets.values()),
        vectors,
        store,
        instruction_choice=choice,
        index=index,
        modality_of=inputs.modality_of(pool),
        missing=missing,
        rankings=known,
        approximate=measured,
        seed=seed,
    )
    if index is not None and measured is None:
        scores = evaluation.to_dict()["approximate"]
        kept.put(MEASURED, {"index": index.manifest_hash, "scores": scores})
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
        **(told or {}),
        "reranker": None,
        "marvel_jax": marvel_jax.__version__,
    }
    evaluated = Evaluated(evaluation, store, sets, test_sets, about, missing, origins, kept)
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
    """Searches the sets that were not, and writes their lists at once, the local ones set by set:
    what follows may fail or be killed without losing hours of search.
    """
    rows = {
        name: retrieval_sets.rows_of(one, store, missing=missing)
        for name, one in sets.items()
        if name not in but
    }
    if not rows:
        return {}
    evaluation_folder.begin(workdir)
    local = {}
    for name in rows:
        lists = evaluation_folder.read_local(workdir, name, origin=origins[name])
        if lists is not None and len(lists.indices) == len(sets[name].query_ids):
            local[name] = lists

    def keep(name: str, lists: TopK) -> None:
        evaluation_folder.write_local(workdir, name, lists, origin=origins[name])

    found = retrieval_sets.search(
        [sets[name] for name in rows],
        vectors,
        store,
        rows,
        local=local,
        keep=keep,
        progress=lambda what: say(f"searching, {what}"),
    )
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
    part: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes what of the evaluation folder is not there yet; returns the scores.

    `reranked` holds by set the orders of a reranker and `part` the scores of it; without them, and
    for all else that stands beside the scores, what was kept of earlier commands stays.
    """
    kept = evaluated.kept
    part = None if part is None else kept_parts.as_json(part)
    stay = reranked is None and kept.get(RERANKED) is not None
    left = _unwritten(workdir, evaluated, reranked, any_order=stay)
    if left and stay:  # some orders are gone, so all of them go
        left = _unwritten(workdir, evaluated, reranked, any_order=False)
    if (left and part is None) or (part is not None and part != kept.get(RERANKED)):
        kept.drop(RERANKED)  # comes again when its orders are written
    scores, about = evaluated.evaluation.to_dict(), dict(evaluated.about)
    parts = {RERANKED: part or kept.get(RERANKED), PARAPHRASES: kept.get(PARAPHRASES)}
    commands = [about.pop("options", [])]
    for name in (PARAPHRASES, RERANKED):
        found = parts[name]
        if found is not None:
            scores[name] = found["scores"]
            commands.append(found["options"])
    about["commands"] = [one for at, one in enumerate(commands) if one not in commands[:at]]
    about["reranker"] = (parts[RERANKED] or {}).get("about")
    if left:
        evaluation_folder.begin(workdir)
        for lists in left:
            evaluation_folder.write_rankings(
                workdir,
                lists.name,
                k=lists.k,
                query_ids=lists.query_ids,
                retrieved=lists.retrieved,
                relevant=lists.relevant,
                relevant_local=lists.relevant_local,
                reranked=lists.reranked,
                origin=lists.origin,
            )
    if part is not None and part != kept.get(RERANKED):
        kept.put(RERANKED, part)
    if left or not evaluation_folder.says(workdir, scores=scores, about=about):
        evaluation_folder.begin(workdir)
        evaluation_folder.write(workdir, scores=scores, about=about)
    return scores


def _unwritten(
    workdir: Path,
    evaluated: Evaluated,
    reranked: Mapping[str, Mapping[str, Rankings]] | None,
    *,
    any_order: bool,
) -> list[SetRankings]:
    """The sets whose lists are not in the folder as they are to be."""
    found = []
    for name, one in evaluated.sets.items():
        lists = SetRankings(
            name,
            one.k,
            list(one.query_ids),
            evaluated.evaluation.rankings[name],
            evaluated.evaluation.rows[name].relevant,
            evaluated.evaluation.rows[name].relevant_local,
            (reranked or {}).get(name, {}),
            evaluated.origins[name],
        )
        if not evaluation_folder.holds(workdir, lists, any_order=any_order):
            found.append(lists)
    return found


def _measured(kept: KeptParts, index: ScannIndex | None) -> ApproximateScores | None:
    """What an earlier run measured of this index, which takes as long as a search."""
    part = kept.get(MEASURED)
    if index is None or part is None or part["index"] != index.manifest_hash:
        return None
    return read_approximate(part["scores"])


def open_or_build(path: Path, store: VectorStore, *, say: Say) -> ScannIndex | None:
    """The ScaNN index of a store; None, and a line that says so, where ScaNN has no wheel."""
    try:
        if path.is_dir():
            progress = Ticker(say, "bytes of the index verified")
            return ScannIndex.open(path, store, progress=progress)
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
