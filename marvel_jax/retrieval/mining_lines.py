"""The line of each mined query: its ranking judged, negatives chosen, what is missing drawn."""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np

from marvel_jax.data.items import Query, RetrievalSource
from marvel_jax.data.keyed_lines import shortest_digits
from marvel_jax.data.mined import MinedLine
from marvel_jax.data.teacher import TeacherLists
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.mining_pools import CandidateTable, ContentKeys
from marvel_jax.retrieval.mining_rules import (
    GUARDS,
    Ranked,
    Strategies,
    Strategy,
    choose,
    stream,
    too_similar,
)
from marvel_jax.retrieval.store import VectorStore

_NUMBERS = 1 << 22  # of float64 vectors at a time: 32 MiB
_TRIES = 64  # draws from the pool for each negative that is missing


class _Asked(NamedTuple):
    """One query, what it found and what is known to answer it."""

    query: Query
    place: int  # in the source's queries
    vector: np.ndarray  # [D]
    rows: np.ndarray  # [n] of the pool, best first
    similarities: np.ndarray  # [n] float32
    positives: np.ndarray  # [m] rows
    best: float  # similarity of the best positive


class LineMaker:
    """Turns search results into lines of mined negatives."""

    def __init__(
        self,
        source: RetrievalSource,
        pool: VectorStore,
        table: CandidateTable,
        *,
        strategies: Strategies,
        seed: int,
        keys: ContentKeys | None,
        teacher: TeacherLists | None,
        record: Literal["all", "chosen"],
    ) -> None:
        """Arguments as `mining.mine` has them; without `keys` copies are not looked for."""
        self._source = source
        self._pool = pool
        self._table = table
        self._strategies = strategies
        self._seed = seed
        self._keys = keys
        self._teacher = teacher
        self._record = record

    def lines(
        self,
        places: Sequence[int],
        vectors: np.ndarray,
        found: TopK,
        subset: np.ndarray | None,
    ) -> Iterator[MinedLine]:
        """The lines of some queries, in order.

        Args:
          places: of the queries in the source.
          vectors: float32 [Q, D], theirs.
          found: the search's result for them.
          subset: rows of the pool that were searched, from which what is missing is drawn; None
            is all.
        """
        asked = [self._source.queries[place] for place in places]
        positives = [self._positives(query) for query in asked]
        best = _best_similarity(vectors, self._pool, positives)
        for number, query in enumerate(asked):
            there = found.indices[number] >= 0
            one = _Asked(
                query,
                places[number],
                vectors[number],
                found.indices[number][there],
                found.scores[number][there],
                positives[number],
                float(best[number]),
            )
            yield self._line(one, subset)

    def _positives(self, query: Query) -> np.ndarray:
        if not query.positives:
            raise MarvelError(f"Query {query.id} has no positive: give it one, or leave it out.")
        return np.unique([self._source.candidate_index(one) for one in query.positives])

    def _line(self, asked: _Asked, subset: np.ndarray | None) -> MinedLine:
        query = asked.query
        strategy = self._strategies.of(query.dataset, query.task.id)
        ranked = self._ranked(asked).first(strategy.depth)
        rng = stream(self._seed, query.id)
        choice = choose(ranked, strategy, rng)
        count = len(choice.reasons)
        rows, scores = asked.rows[:count].tolist(), asked.similarities[:count].tolist()
        ranks: list[int | None] = list(range(1, count + 1))
        reasons, chosen = list(choice.reasons), list(choice.chosen)
        place_of = {row: place for place, row in enumerate(rows)}
        taboo = {row for row, why in zip(rows, reasons, strict=True) if why in GUARDS}
        given = np.array([*asked.positives.tolist(), *(rows[place] for place in chosen)])
        taboo.update(given.tolist())
        for row, similarity in self._draw(
            asked, choice.missing, strategy, rng, given=given, taboo=taboo, subset=subset
        ):
            place = place_of.get(row)
            if place is None:
                place = len(rows)
                rows.append(row)
                scores.append(similarity)
                ranks.append(None)
                reasons.append("pool")
            reasons[place] = "pool"
            chosen.append(place)
        shown = range(len(rows)) if self._record == "all" else chosen
        ids = self._table.ids_of(rows)
        return MinedLine(
            qid=query.id,
            task=f"{query.dataset}:{query.task.id}",
            negatives=tuple(ids[place] for place in chosen),
            positive_similarity=shortest_digits(asked.best),
            positive_rank=ranked.positive_rank,
            candidates=tuple(ids[place] for place in shown),
            similarities=tuple(shortest_digits(scores[place]) for place in shown),
            ranks=tuple(ranks[place] for place in shown),
            modalities=tuple(self._table.modality(rows[place]) for place in shown),
            reasons=tuple(reasons[place] for place in shown),
        )

    def _ranked(self, asked: _Asked) -> Ranked:
        rows = asked.rows
        copy = copy_of_positive = np.zeros(len(rows), bool)
        if self._keys is not None:
            own = self._keys(rows)
            copy_of_positive = np.isin(own, self._keys(asked.positives))
            _, first = np.unique(own, return_index=True)
            copy = ~np.isin(np.arange(len(rows)), first)
        return Ranked(
            similarities=asked.similarities,
            positive=np.isin(rows, asked.positives),
            copy_of_positive=copy_of_positive,
            copy=copy,
            right_modality=self._table.is_modality(rows, asked.query.task.candidate_modality),
            positive_similarity=asked.best,
            p_yes=self._p_yes(asked),
        )

    def _p_yes(self, asked: _Asked) -> np.ndarray | None:
        """The reranker's P(Yes) of each result, NaN where it gave none."""
        if self._teacher is None:
            return None
        line = int(self._teacher.lines[asked.place])
        scores = np.full(len(asked.rows), np.nan)
        _, here, there = np.intersect1d(
            asked.rows, self._teacher.candidates[line], return_indices=True
        )
        scores[here] = self._teacher.p_yes(line)[there]
        return scores

    def _draw(
        self,
        asked: _Asked,
        wanted: int,
        strategy: Strategy,
        rng: np.random.Generator,
        *,
        given: np.ndarray,
        taboo: set[int],
        subset: np.ndarray | None,
    ) -> list[tuple[int, float]]:
        """Random candidates of the pool (row, similarity) that no filter forbids; maybe fewer.

        None of the rows `taboo`, and no copy of the rows `given`, positives and negatives.
        """
        if not wanted:
            return []
        size = len(self._pool) if subset is None else len(subset)
        tries = _TRIES * wanted
        lots = rng.permutation(size) if size <= tries else rng.integers(size, size=tries)
        rows = lots if subset is None else subset[lots]
        rows = np.array([row for row in dict.fromkeys(rows.tolist()) if row not in taboo], int)
        drawn: list[tuple[int, float]] = []
        seen = set() if self._keys is None else set(self._keys(given).tolist())
        step = 4 * wanted  # mostly the first few will do
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            scores = _similarities(asked.vector[None], self._pool, np.zeros(len(part), int), part)
            allowed = np.ones(len(part), bool)
            for mask in too_similar(scores, strategy, positive_similarity=asked.best).values():
                allowed &= ~mask
            for row, score in zip(part[allowed].tolist(), scores[allowed].tolist(), strict=True):
                if len(drawn) == wanted:
                    return drawn
                if self._keys is not None:
                    key = int(self._keys(np.array([row]))[0])
                    if key in seen:
                        continue
                    seen.add(key)
                drawn.append((row, score))
        return drawn


def _best_similarity(
    vectors: np.ndarray, pool: VectorStore, positives: Sequence[np.ndarray]
) -> np.ndarray:
    """Float32 [Q]: each query's similarity to the best of its positives."""
    owners = np.repeat(np.arange(len(positives)), [len(one) for one in positives])
    best = np.full(len(positives), -np.inf, np.float32)
    if len(positives):
        scores = _similarities(vectors, pool, owners, np.concatenate(positives))
        np.maximum.at(best, owners, scores)
    return best


def _similarities(
    vectors: np.ndarray, pool: VectorStore, owners: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Float32 [n]: of query `owners[i]` and candidate `rows[i]`, as exact search scores them."""
    scores = np.empty(len(rows), np.float32)
    step = max(1, _NUMBERS // vectors.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        products = pool.vectors(rows[part]).astype(np.float64)
        products *= vectors[owners[part]].astype(np.float64)
        scores[part] = products.sum(axis=1).astype(np.float32)
    return scores
