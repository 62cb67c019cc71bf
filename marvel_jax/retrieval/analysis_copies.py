"""The score where copies take one place, beside the standard one.

Pools repeat themselves: a caption, a passage or a picture is there under several ids, of which
the answers name one. A model cannot tell copies apart, so it can lose a hit to the very thing
that was asked for. Here a list keeps the first of each group of copies, and it is right where any
of the group is; k then counts groups. It never replaces the protocol's score.

Two candidates are copies where
- their content is the same: texts by their characters, pictures by the bytes of their files; or
- their vectors are within 1e-6 of each other (Euclidean), in a store of float32 or bfloat16.
  (Coarser types give one code to different contents.)
Copies score alike, to the precision that the model computed in: of one content, vectors that were
computed in other rows of a forward pass differ by some 1e-7 in float32 and some 1e-3 in bfloat16.
So only results whose scores are that near (`SAME_SCORE`) are compared, and right answers beyond the
list's end only with those at its end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from marvel_jax.retrieval.analysis import Candidates, JudgedSet
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.metrics import Interval, bootstrap_interval, relevance
from marvel_jax.retrieval.store import VectorStore

SAME_SCORE = {"float32": 1e-5, "bfloat16": 4e-3}
SAME_VECTOR = 1e-6
_QUERIES = 1024  # whose pairs are held together: 1,225 each where all of 50 scores are alike
_PAIRS = 4096  # compared at a time: 2 x 4096 x 3584 float32 is 112 MiB
_COARSE = ("int8", "binary")

Pairs = frozenset[tuple[int, int]]


class CopyScores(NamedTuple):
    """One set in one pool: hit@k with copies in one place beside the protocol's.

    change: the mean over queries of the difference, with its interval. queries: those whose first
    k results hold a copy of another result, or of a right answer.
    """

    name: str
    pool: Literal["local", "global"]
    k: int
    standard: float
    collapsed: Interval
    change: Interval
    queries: int


@dataclass(frozen=True)
class Copies:
    """All sets, in both pools, and the means over sets; copies score within `same_score`."""

    sets: tuple[CopyScores, ...]
    same_score: float

    def mean(self, pool: str) -> tuple[float, float]:
        """The protocol's score and the collapsed one, as means over sets."""
        chosen = [one for one in self.sets if one.pool == pool]
        standard = float(np.mean([one.standard for one in chosen]))
        return standard, float(np.mean([one.collapsed.mean for one in chosen]))

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "same_score": self.same_score,
            "same_vector": SAME_VECTOR,
            "sets": [
                one._asdict()
                | {"collapsed": one.collapsed._asdict(), "change": one.change._asdict()}
                for one in self.sets
            ],
        }


def copies(
    sets: Sequence[JudgedSet],
    candidates: Candidates,
    *,
    compute: str = "float32",
    seed: int = 0,
) -> Copies:
    """Every set's score with copies in one place.

    `compute` is the type that the vectors were computed in, `seed` that of the bootstrap.
    """
    found, near = [], SAME_SCORE[compute]
    for number, one in enumerate(sets):
        draws = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        lists: tuple[tuple[Literal["local", "global"], TopK], ...] = (
            ("local", one.local),
            ("global", one.union),
        )
        for pool, ranking in lists:
            relevant = one.answers(pool)
            same: Pairs = frozenset()
            for start in range(0, len(ranking.indices), _QUERIES):
                part = slice(start, start + _QUERIES)
                some = TopK(ranking.scores[part], ranking.indices[part])
                pairs = _alike(some, relevant[part], k=one.k, near=near)
                same |= same_pairs(pairs, candidates.store, content=candidates.content)
            standard, collapsed, touched = collapse(ranking, relevant, k=one.k, same=same)
            found.append(
                CopyScores(
                    name=one.name,
                    pool=pool,
                    k=one.k,
                    standard=float(standard.mean()),
                    collapsed=bootstrap_interval(collapsed, seed=draws),
                    change=bootstrap_interval(collapsed - standard, seed=draws),
                    queries=int(touched.sum()),
                )
            )
    return Copies(tuple(found), near)


def same_pairs(
    pairs: np.ndarray, store: VectorStore, *, content: Callable[[np.ndarray], np.ndarray]
) -> Pairs:
    """Those of the pairs of rows, int64 [P, 2], that are copies (the module says when)."""
    pairs = pairs[(pairs < len(store)).all(axis=1)]  # an answer without a vector has no row
    same = np.zeros(len(pairs), bool)
    fine = store.manifest.dtype not in _COARSE
    for start in range(0, len(pairs) if fine else 0, _PAIRS):
        part = pairs[start : start + _PAIRS]
        apart = store.vectors(part[:, 0]) - store.vectors(part[:, 1])
        same[start : start + _PAIRS] = np.linalg.norm(apart, axis=1) <= SAME_VECTOR
    left = np.flatnonzero(~same)
    if left.size:
        keys = content(pairs[left].ravel()).reshape(-1, 2)
        same[left] = keys[:, 0] == keys[:, 1]
    return frozenset((int(first), int(second)) for first, second in pairs[same])


def collapse(
    ranking: TopK, relevant: Sequence[np.ndarray], *, k: int, same: Pairs
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hit@k as it is, hit@k where copies take one place, and which queries have copies: [Q] each.

    Args:
      ranking: longer than k where there is more, so that the places that copies free are filled.
      relevant: for each query, the rows of its right answers.
      k: the cut.
      same: pairs of rows (first < second) that are copies.
    """
    right = relevance(ranking.indices, relevant)
    standard: np.ndarray = np.any(right[:, :k], axis=1).astype(np.float64)
    collapsed, touched = standard.copy(), np.zeros(len(standard), bool)
    if not same:
        return standard, collapsed, touched
    partners: dict[int, set[int]] = {}
    for first, second in same:
        partners.setdefault(first, set()).add(second)
        partners.setdefault(second, set()).add(first)
    known = np.fromiter(partners, np.int64)
    for query in np.flatnonzero(np.isin(ranking.indices, known).any(axis=1)).tolist():
        rows = [row for row in ranking.indices[query].tolist() if row >= 0]
        answers = set(relevant[query].tolist())
        seen: set[int] = set()
        places, found, copied = 0, False, False
        for rank, row in enumerate(rows):
            group = _group(row, partners)
            if row in seen:
                copied |= rank < k
                continue
            seen |= group
            places += 1
            if places > k:
                break
            found |= not answers.isdisjoint(group)
            copied |= rank < k and len(group & (answers | set(rows))) > 1
        collapsed[query], touched[query] = float(found), copied
    return standard, collapsed, touched


def _group(row: int, partners: dict[int, set[int]]) -> set[int]:
    """A row with its copies, and theirs."""
    group, unvisited = {row}, [row]
    while unvisited:
        for other in partners.get(unvisited.pop(), ()):
            if other not in group:
                group.add(other)
                unvisited.append(other)
    return group


def _alike(ranking: TopK, relevant: Sequence[np.ndarray], *, k: int, near: float) -> np.ndarray:
    """Int64 [P, 2]: pairs of rows (first < second) that some query scores within `near`."""
    found = [np.empty((0, 2), np.int64)]
    for rows, scores, answers in zip(ranking.indices, ranking.scores, relevant, strict=True):
        length = int((rows >= 0).sum())
        if not length:
            continue
        # Scores fall: of each place, where those that are near it end.
        falls = -scores[:length].astype(np.float64)
        ends = np.searchsorted(falls, falls + near, side="right")
        counts = ends - np.arange(length) - 1
        first = np.repeat(np.arange(length), counts)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
        found.append(np.stack([rows[first], rows[second]], axis=1))
        # Only where copies before it can move the list's end into the first k.
        start = int(np.argmax(ends == length))
        if length == len(rows) and start - int((counts[:start] > 0).sum()) < k:
            beyond = np.setdiff1d(answers, rows)
            both = np.concatenate([rows[start:], beyond])
            one, other = np.triu_indices(len(both), k=1)
            found.append(np.stack([both[one], both[other]], axis=1)[other >= length - start])
    pairs = np.sort(np.concatenate(found).astype(np.int64), axis=1)
    return np.unique(pairs, axis=0)
