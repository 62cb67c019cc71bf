"""A model against every test set of an M-BEIR folder: encode, index, search, score."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from marvel_jax.data.mbeir import MbeirFolder, TestSet
from marvel_jax.files import hash_files
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates, encode_queries
from marvel_jax.retrieval.protocols import Evaluation, RetrievalSet, evaluate
from marvel_jax.retrieval.scann_index import ScannIndex, ScannUnavailableError
from marvel_jax.retrieval.store import VectorStore

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluated:
    """The scores, and what a report needs to show examples of them."""

    evaluation: Evaluation
    store: VectorStore
    sets: Mapping[str, RetrievalSet]
    test_sets: Mapping[str, TestSet]


def evaluate_embedder(
    embedder: Embedder,
    layout: MbeirFolder,
    *,
    workdir: Path,
    seed: int,
    scann: bool = True,
    say: Say = lambda line: None,
) -> Evaluated:
    """Encodes the union pool into `workdir/store` and the queries into `workdir/queries/`, builds
    `workdir/index`, and scores every set.

    What is there already, whole and of the same model, is used again.
    """
    test_sets = {one.name: one for one in layout.test_sets()}
    sets = {name: RetrievalSet.of(one) for name, one in test_sets.items()}
    pool = layout.pool("test")
    say(f"encoding {len(pool):,} candidates")
    store = encode_candidates(
        embedder,
        pool,
        workdir / "store",
        source_hash=hash_files(*(file.path for file in pool.files)),
        progress=Ticker(say, "candidates"),
    )
    say(f"encoding {sum(len(one.queries) for one in test_sets.values()):,} queries")
    vectors: dict[str, np.ndarray] = {
        name: encode_queries(
            embedder,
            one.queries,
            layout.instructions,
            workdir / "queries" / f"seed-{seed}" / name,
            seed=seed,
            source_hash=hash_files(*(file.path for file in one.queries.files)),
            progress=Ticker(say, f"queries of {name}"),
        ).vectors()
        for name, one in test_sets.items()
    }
    index = open_or_build(workdir / "index", store, say=say) if scann else None
    modality = {candidate.id: candidate.modality for candidate in pool}
    evaluation = evaluate(
        list(sets.values()),
        vectors,
        store,
        instruction_choice=f"one of the task's instructions, by the query's id and seed {seed}",
        index=index,
        modality_of=modality.__getitem__,
        seed=seed,
        progress=lambda name: say(f"searching for {name}"),
    )
    return Evaluated(evaluation, store, sets, test_sets)


def open_or_build(path: Path, store: VectorStore, *, say: Say) -> ScannIndex | None:
    """The ScaNN index of a store; None, and a line that says so, where ScaNN has no wheel."""
    try:
        if path.is_dir():
            return ScannIndex.open(path, store)
        say("building the ScaNN index")
        return ScannIndex.build(store, path=path)
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
    title = f"{'task':<14}{'queries':>8}{'pool':>8}  {'local':<22}{'global':<10}{'chance':<9}"
    lines = [title + ("untrained" if untrained else "")]
    before = {one.name: one for one in untrained.sets} if untrained else {}
    for one in evaluation.sets:
        local = one.local_pool.hit[one.k]
        line = (
            f"{one.task:<14}{one.num_queries:>8,}{one.local_pool.size:>8,}  "
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
