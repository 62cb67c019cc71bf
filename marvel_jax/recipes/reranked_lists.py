"""An evaluation's lists through a reranker: both pools at once, killed and gone on with."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.items import RetrievalSource
from marvel_jax.data.mbeir import MbeirFolder, MbeirSource
from marvel_jax.data.teacher import TeacherLists, read_teacher
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, hash_json, read_json_object, write_json
from marvel_jax.lazy import LazySequence
from marvel_jax.recipes.evaluation import Evaluated, Say, Ticker
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.rerank_lists import Retrieved, score_lists
from marvel_jax.retrieval.reranked_scores import Cost, Judgement
from marvel_jax.retrieval.store import VectorStore


def judge(
    reranker: Reranker,
    evaluated: Evaluated,
    layout: MbeirFolder,
    *,
    workdir: Path,
    top: int,
    batch_tokens: int,
    seed: int,
    say: Say,
) -> tuple[dict[str, Judgement], Cost]:
    """P(Yes) of every query's first `top` results, in both pools; a pair in both is scored once.

    What the reranker said is kept in `workdir/rerank`, by what it is and what it was asked.

    Raises:
      MarvelError: a query is in two sets, or a picture cannot be read.
    """
    source = layout.judged_source("test")
    lists = _Lists.of(evaluated, source, top=top)
    if len(lists) < len(source.queries):  # queries that could not be read have no results
        source = replace(source, queries=source.queries.choose(np.sort(lists.places)))
        order = np.argsort(np.argsort(lists.places))
        lists = replace(lists, places=order)
    settings = {"top": top, "seed": seed}
    origin = {
        "model_hash": evaluated.store.manifest.model_hash,
        "lists": lists.content_hash,
        "pool": "local and global",
        "settings": settings,
    }
    found, cost = scores_of(
        reranker,
        source,
        lists,
        folder=workdir / "rerank",
        origin=origin,
        pairs=len(lists.rows),
        batch_tokens=batch_tokens,
        seed=seed,
        say=say,
    )
    return lists.judgements(found, evaluated), cost


def scores_of(
    reranker: Reranker,
    source: RetrievalSource,
    lists: Sequence[Retrieved],
    *,
    folder: Path,
    origin: Mapping[str, Any],
    pairs: int,
    batch_tokens: int,
    seed: int,
    say: Say,
) -> tuple[TeacherLists, Cost]:
    """The scores of lists of so many pairs, one list for each query of the source.

    They are kept in `folder` by what the reranker is and by `origin`: what is there is read, what a
    killed run left is gone on with, and what is of another reranker or of other lists stays aside.

    Raises:
      MarvelError: a picture cannot be read, or a file of scores was changed.
    """
    out = folder / f"{hash_json([reranker.manifest_fields(), origin])}.jsonl"
    unfinished = f".{out.name}.unfinished"
    clock = _Clock(out.with_suffix(".seconds.json"), Ticker(say, "lists"))
    if not out.exists():
        kept = [*folder.glob("*.jsonl"), *folder.glob(".*.jsonl.unfinished")]
        aside = [file for file in kept if file.name != unfinished]
        if aside:
            say(
                f"left aside, for they are of another reranker or of other lists: "
                f"{len(aside)} files of scores in {folder}"
            )
        say(f"reranking {pairs:,} pairs of {len(lists):,} queries")
        score_lists(
            reranker,
            source,
            lists,
            out,
            origin=origin,
            seed=seed,
            batch_tokens=batch_tokens,
            progress=clock,
        )
    found = read_teacher(out, source, teacher_hash=reranker.model_hash)
    return found, Cost(pairs, clock.seconds)


@dataclass(frozen=True)
class _Lists(LazySequence[Retrieved]):
    """For each query the first results in its own pool, then those of the union that are not there.

    rows [n] and recall [n] hold all lists one after the other, list i from bounds[i] on; places [i]
    is the query's place in the source.
    """

    store: VectorStore
    rows: np.ndarray
    recall: np.ndarray
    bounds: np.ndarray
    places: np.ndarray
    owners: Mapping[str, np.ndarray]  # set -> the list of each of its queries; -1 = it has none
    top: int

    @classmethod
    def of(cls, evaluated: Evaluated, source: MbeirSource, *, top: int) -> "_Lists":
        place = {query.id: number for number, query in enumerate(source.queries)}
        rows: list[np.ndarray] = []
        recalls: list[np.ndarray] = []
        places: list[int] = []
        owners: dict[str, np.ndarray] = {}
        for name, one in evaluated.sets.items():
            rankings = evaluated.evaluation.rankings[name]
            owner = np.full(len(one.query_ids), -1, np.int64)
            for number, query_id in enumerate(one.query_ids):
                local, union = (
                    (ranking.indices[number, :top], ranking.scores[number, :top])
                    for ranking in rankings
                )
                more = (union[0] >= 0) & ~np.isin(union[0], local[0])
                own = local[0] >= 0
                found = np.concatenate([local[0][own], union[0][more]])
                if len(found):
                    owner[number] = len(places)
                    places.append(place[query_id])
                    rows.append(found)
                    recalls.append(np.concatenate([local[1][own], union[1][more]]))
            owners[name] = owner
        if len(set(places)) < len(places):
            raise MarvelError(
                f"{len(places) - len(set(places))} queries are in two test sets; a reranker's "
                "scores are kept by query. Rename them."
            )
        bounds = np.cumsum([0, *map(len, rows)])
        return cls(
            evaluated.store,
            np.concatenate(rows),
            np.concatenate(recalls),
            bounds,
            np.array(places),
            owners,
            top,
        )

    @property
    def content_hash(self) -> str:
        parts = (self.rows, self.recall, self.bounds)
        return hash_bytes(self.store.content_hash.encode(), *(part.tobytes() for part in parts))

    def __len__(self) -> int:
        return len(self.places)

    def make(self, index: int) -> Retrieved:
        """The list of this number."""
        own = slice(self.bounds[index], self.bounds[index + 1])
        names = Names(self.store, self.rows[own])
        return Retrieved(int(self.places[index]), names, self.recall[own].tolist())

    def judgements(self, found: TeacherLists, evaluated: Evaluated) -> dict[str, Judgement]:
        """P(Yes) beside each set's rankings, from the scores of these lists."""
        if (found.valid.sum(axis=1)[found.lines[self.places]] != np.diff(self.bounds)).any():
            raise MarvelError("The reranker's scores are of other lists: remove them.")
        judged = {}
        for name, owner in self.owners.items():
            rankings = evaluated.evaluation.rankings[name]
            both = [np.zeros((len(owner), self.top)) for _ in rankings]
            for number in np.flatnonzero(owner >= 0).tolist():
                own = slice(self.bounds[owner[number]], self.bounds[owner[number] + 1])
                p_yes = found.p_yes(int(found.lines[self.places[owner[number]]]))
                of_row = dict(zip(self.rows[own].tolist(), p_yes.tolist(), strict=False))
                for values, ranking in zip(both, rankings, strict=True):
                    first = ranking.indices[number, : self.top].tolist()
                    values[number, : len(first)] = [of_row.get(row, 0.0) for row in first]
            judged[name] = Judgement(*both)
        return judged


@dataclass(frozen=True)
class Names(LazySequence[str]):
    """The ids of rows, made when they are asked for."""

    store: VectorStore
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def make(self, index: int) -> str:
        """The id of the row at this place."""
        return self.store.ids[int(self.rows[index])]

    def __iter__(self) -> Iterator[str]:
        return (self.store.ids[row] for row in self.rows.tolist())


class _Clock:
    """Seconds spent on blocks that are on the disk, over all resumes."""

    def __init__(self, path: Path, progress: Callable[[int, int], None]) -> None:
        self._path, self._progress = path, progress
        self.seconds = float(read_json_object(path)["seconds"]) if path.is_file() else 0.0
        self._last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        now = time.perf_counter()
        self.seconds += now - self._last
        self._last = now
        write_json(self._path, {"seconds": self.seconds})
        self._progress(done, total)
