"""The vectors of an evaluation, searched once more: smaller, approximately, or fewer of them."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object, write_json
from marvel_jax.recipes.evaluation_inputs import aligned
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.stages import Search
from marvel_jax.retrieval import evaluation_folder, metrics
from marvel_jax.retrieval.analysis import JudgedSet
from marvel_jax.retrieval.analysis_tradeoff import RECALL_AT, found_of
from marvel_jax.retrieval.evaluation_folder import EvaluationFolder
from marvel_jax.retrieval.exact import TopK, rescore, top_k
from marvel_jax.retrieval.report_scores import judged_sets, read_scores
from marvel_jax.retrieval.scann_config import ScannConfig
from marvel_jax.retrieval.scann_index import ScannIndex
from marvel_jax.retrieval.scann_measure import measure
from marvel_jax.retrieval.searcher import ExactSearcher, Searcher
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_convert import convert

Say = Callable[[str], None]

_TIMED = 512
_DRAWS = 2000  # of the bootstrap


def search_again(stage: Search, folder: Path, *, say: Say = lambda line: None) -> Outcome:
    """Writes `folder/scores.json`: hit@k of every set, bytes, milliseconds and recall@10.

    Recall is the share of the evaluation's own ten nearest; of a drawn pool there is none.

    Raises:
      MarvelError: the evaluation's vectors are not there or are those of another one, or the store
        is too small for what is asked.
    """
    found = _evaluation(stage)
    store = VectorStore.open(found.store_path, check="layout")
    sets = judged_sets(found, read_scores(found.scores, where=found.path))
    asked = {one.name: _queries(found, one) for one in sets}
    drawn = None if stage.pool is None else _draw(store, pool=stage.pool, seed=stage.seed)
    with _kept(stage, store, folder / "store") as kept, _opened(stage, kept, folder) as searcher:
        say(f"searching {stage.pool or len(kept):,} vectors, {kept.dtype} of {kept.dimension}")
        scores = _scores(stage, searcher, sets, asked, drawn)
    write_json(folder / Search.outputs["scores"], scores)
    facts = {"global": scores["mean"]["mean"], "recall": scores["recall"]}
    recall = "" if scores["recall"] is None else f", recall@{RECALL_AT} {scores['recall']:.4f}"
    line = f"mean hit {facts['global']:.3f} in {scores['candidates']:,} candidates{recall}"
    return Outcome(facts, [line])


def with_answers(
    found: TopK, queries: np.ndarray, store: VectorStore, answers: Sequence[np.ndarray], *, k: int
) -> TopK:
    """The k best of what was found in some pool and of each query's own right answers.

    Exactly what a search of the pool with these answers in it finds, for each query by itself:
    answers of other queries stay out. Answers behind the store's last row have no vector.
    """
    held = [rows[rows < len(store)] for rows in answers]
    width = max((len(rows) for rows in held), default=0)
    added = np.full((len(held), width), -1, found.indices.dtype)
    for number, rows in enumerate(held):
        new = np.setdiff1d(rows, found.indices[number])  # each candidate once
        added[number, : len(new)] = new
    both = np.concatenate([found.indices, added], axis=1)
    return rescore(queries, store, both, k=k, rank=store.id_rank)


def _evaluation(stage: Search) -> EvaluationFolder:
    if not Path(stage.vectors).is_dir():
        raise MarvelError(
            f"{stage.name}: {stage.vectors} is gone, the vectors of the evaluation that is to be "
            "searched again: remove that stage's folder, so that it runs again."
        )
    found = evaluation_folder.read(stage.vectors)
    if found.scores["sets"] != read_json_object(stage.scores).get("sets"):
        raise MarvelError(
            f"{stage.name}: scores={stage.scores} are not those of vectors={stage.vectors}: name "
            "the outputs of one evaluation."
        )
    return found


def _queries(found: EvaluationFolder, one: JudgedSet) -> np.ndarray:
    """float32 [Q, D] in the order of the set; zeros for what could not be encoded."""
    store = VectorStore.open(found.queries_path(one.name), check="layout")
    vectors = aligned(store, one.query_ids)
    if isinstance(vectors, VectorStore):
        return vectors.vectors(vectors.rows_of(list(one.query_ids)))
    return vectors


def _draw(store: VectorStore, *, pool: int, seed: int) -> np.ndarray:
    """The first `pool` rows of one shuffle, so that pools of one seed lie in one another."""
    if pool > len(store):
        raise MarvelError(f"pool={pool}: the evaluation has {len(store)} candidates; give fewer.")
    return np.sort(np.random.default_rng(seed).permutation(len(store))[:pool])


@contextmanager
def _kept(stage: Search, store: VectorStore, scratch: Path) -> Iterator[VectorStore]:
    """The store as it is to be kept; a converted one is removed when it has been searched."""
    dimension = stage.dimension or store.dimension
    if (stage.dtype, dimension) == (store.dtype, store.dimension):
        yield store
        return
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        yield convert(store, scratch, dtype=stage.dtype, dimension=dimension)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _opened(stage: Search, store: VectorStore, folder: Path) -> Iterator[Searcher]:
    if not stage.scann:
        yield ExactSearcher(store)
        return
    path = folder / "index"
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield ScannIndex.build(store, ScannConfig(search_leaves=stage.leaves), path=path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _scores(
    stage: Search,
    searcher: Searcher,
    sets: Sequence[JudgedSet],
    asked: dict[str, np.ndarray],
    drawn: np.ndarray | None,
) -> dict[str, Any]:
    store = searcher.store
    pool = len(store) if drawn is None else len(drawn)

    def search(queries: np.ndarray, k: int) -> TopK:
        if drawn is None:
            return searcher.search(queries, k)
        return top_k(queries, store, k, subset=drawn)

    told: list[dict[str, Any]] = []
    recalls, timed, means = [], [], np.zeros(_DRAWS)
    for number, one in enumerate(sets):
        # A query of zeros could not be read: it finds nothing, and has no direction to truncate.
        there = np.flatnonzero(asked[one.name].any(axis=1))
        queries = store.fit(asked[one.name][there])
        depth = min(max(RECALL_AT, one.k), pool)
        found = search(queries, depth)
        if drawn is not None:
            answers = [one.relevant[place] for place in there.tolist()]
            found = with_answers(found, queries, store, answers, k=one.k)
        indices = np.full((len(one.query_ids), found.indices.shape[1]), -1, np.int32)
        indices[there] = found.indices
        recalls.append(found_of(indices, one.union.indices).mean())
        timed.append(queries)
        hit = metrics.hit_at_k(indices, one.relevant, one.k)
        drawn_means = metrics.bootstrap_means(hit, seed=stage.seed + number, draws=_DRAWS)
        means += drawn_means
        interval = metrics.interval_of(float(hit.mean()), drawn_means)
        told.append(
            {
                "name": one.name,
                "task": one.task,
                "k": one.k,
                "num_queries": len(one.query_ids),
                "hit": interval._asdict(),
            }
        )
    every = np.concatenate(timed)
    some = every[:: max(1, len(every) // _TIMED)][:_TIMED]
    speed = measure(lambda part: search(part, min(RECALL_AT, pool)), some)
    mean = float(np.mean([one["hit"]["mean"] for one in told]))
    return {
        "search": searcher.description,
        "candidates": pool,
        "dtype": store.dtype,
        "dimension": store.dimension,
        "bytes_per_vector": store.bytes_per_vector,
        "gigabytes": store.bytes_per_vector * pool / 1e9,
        "milliseconds": speed.batched,
        "milliseconds_alone": speed.single,
        "recall": float(np.mean(recalls)) if drawn is None else None,
        "mean": metrics.interval_of(mean, means / len(sets))._asdict(),
        "sets": told,
    }
