"""Recall and reranker joined into one score: the weight fitted on validation, judged on test.

A weight never comes from the queries that it is judged on: what was fitted remembers its queries,
in its file too, and judging refuses to meet one of them again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from marvel_jax.data.items import Image, Query, RetrievalSource, Video
from marvel_jax.data.teacher import TeacherLists
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_json
from marvel_jax.retrieval import metrics

Form = Literal["add", "alpha"]
Scope = Literal["task", "global"]

GRIDS: dict[str, tuple[float, ...]] = {
    "add": tuple(step / 20 for step in range(41)),
    "alpha": tuple(step / 20 for step in range(21)),
}
"""The weights that are tried: 0 to 2 and 0 to 1, in steps of 0.05."""

RECALL_ALONE = {"add": 0.0, "alpha": 1.0}
"""The weight with which the reranker says nothing."""


@dataclass(frozen=True)
class Reranked:
    """A set's retrieved lists, best first, with what the reranker says of each candidate.

    k: the cut of the set's score, hit@k. candidates: int [Q, K] rows of the corpus, -1 = none at
    the end of a list. recall: float [Q, K] cosines. p_yes: float [Q, K] P(Yes). relevant: each
    query's right answers, as rows. keys: `query_key` of each, what tells it from others; None takes
    the set's name and the id.
    """

    name: str
    k: int
    query_ids: Sequence[str]
    candidates: np.ndarray
    recall: np.ndarray
    p_yes: np.ndarray
    relevant: Sequence[np.ndarray]
    keys: Sequence[str] | None = None

    @classmethod
    def of(
        cls,
        name: str,
        source: RetrievalSource,
        lists: TeacherLists,
        *,
        k: int,
        places: Sequence[int] | None = None,
    ) -> "Reranked":
        """A set from a file of a reranker's scores (`data.teacher.read_teacher`).

        Args:
          name: of the set, e.g. "mscoco_task0".
          source: whose queries were scored; their positives are the right answers.
          lists: the scores.
          k: the cut of the set's score.
          places: which queries of the source belong to the set; None is all.
        """
        chosen = range(len(source.queries)) if places is None else places
        queries = [source.queries[place] for place in chosen]
        rows = lists.lines[np.array(chosen, np.int64)]
        return cls(
            name=name,
            k=k,
            query_ids=[query.id for query in queries],
            candidates=lists.candidates[rows],
            recall=lists.recall[rows],
            p_yes=lists.p_yes(rows),
            relevant=[
                np.array([source.candidate_index(one) for one in query.positives])
                for query in queries
            ],
            keys=[query_key(query) for query in queries],
        )

    def __post_init__(self) -> None:
        queries, shape = len(self.query_ids), self.candidates.shape
        if self.recall.shape != shape or self.p_yes.shape != shape or len(shape) != 2:
            raise MarvelError(
                f"{self.name}: candidates {shape}, recall {self.recall.shape} and p_yes "
                f"{self.p_yes.shape} must be of one shape [queries, candidates]."
            )
        if shape[0] != queries or len(self.relevant) != queries or not queries:
            raise MarvelError(
                f"{self.name}: {queries} query ids, {shape[0]} lists, answers for "
                f"{len(self.relevant)}: expected one of each for at least one query."
            )
        if not 1 <= self.k <= shape[1]:
            raise MarvelError(f"{self.name}: hit@{self.k} of lists of {shape[1]} candidates.")
        if self.keys is not None and len(self.keys) != queries:
            raise MarvelError(f"{self.name}: {queries} queries, but {len(self.keys)} keys of them.")
        there = self.candidates >= 0
        if not np.isfinite(np.where(there, self.recall + self.p_yes, 0.0)).all():
            raise MarvelError(f"{self.name}: a similarity or P(Yes) is not finite.")

    @property
    def identities(self) -> tuple[str, ...]:
        """What each query is told from others by."""
        own = (f"{self.name}:{id}" for id in self.query_ids)
        return tuple(own if self.keys is None else self.keys)


def query_key(query: Query) -> str:
    """A hash of what a query is: data set, task, words, pictures by file name, right answers.

    Ids tell nothing: M-BEIR counts queries from 1 in every split. Neither do words alone: captions
    repeat, with other answers. The folder of a picture may be a copy, so it does not count.
    """
    parts = [part if isinstance(part, str) else _file_name(part) for part in query.item.parts]
    return hash_json([query.dataset, query.task.id, parts, sorted(query.positives)])


def _file_name(visual: Image | Video) -> list[str]:
    named = isinstance(visual.source, str | Path)
    return [Path(str(visual.source)).name if named else visual.describe()]


@dataclass(frozen=True)
class FusionWeights:
    """What `fit` found. `fitted_on` holds what the validation queries are (`query_key`)."""

    form: Form
    scope: Scope
    weights: Mapping[str, float]  # by set; all the same with the scope "global"
    score: Mapping[str, float]  # hit@k of each set on validation, with its weight
    grid: tuple[float, ...]
    fitted_on: frozenset[str]

    def of(self, name: str) -> float:
        """The weight of a set; with the scope "global" of any, fitted on or not.

        Raises:
          MarvelError: none was fitted for it.
        """
        if self.scope == "global":
            return next(iter(self.weights.values()))
        if name not in self.weights:
            raise MarvelError(
                f"{name}: no fusion weight was fitted for this set, only for "
                f"{', '.join(self.weights)}. Fit it on its validation split, or fit one weight "
                "for all with scope='global'."
            )
        return self.weights[name]

    def refuse_fitted(self, name: str, query_ids: Sequence[str], keys: Iterable[str]) -> None:
        """Refuses to be judged on queries of the set `name` that it was fitted on.

        Raises:
          MarvelError: one of the keys is of a query that it was fitted on.
        """
        if not self.fitted_on:
            return
        shared = [id for id, key in zip(query_ids, keys, strict=True) if key in self.fitted_on]
        if shared:
            raise MarvelError(
                f"{name}: {len(shared)} of {len(query_ids)} queries were used to fit the weight "
                f"({', '.join(shared[:5])}): judge on a split of other queries."
            )

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> "FusionWeights":
        """From what `to_file` made.

        Raises:
          KeyError, TypeError: it is not that.
        """
        return cls(
            form=found["form"],
            scope=found["scope"],
            weights=dict(found["weights"]),
            score=dict(found["validation_score"]),
            grid=tuple(found["grid"]),
            fitted_on=frozenset(found["fitted_on"]),
        )

    def to_file(self) -> dict[str, Any]:
        """As JSON has it, with what the queries are: 20 bytes each."""
        return {**self.to_dict(), "fitted_on": sorted(self.fitted_on)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; of the queries their number."""
        return {
            "form": self.form,
            "scope": self.scope,
            "weights": dict(self.weights),
            "validation_score": dict(self.score),
            "grid": list(self.grid),
            "validation_queries": len(self.fitted_on),
        }


def fuse(recall: np.ndarray, p_yes: np.ndarray, *, weight: float, form: Form) -> np.ndarray:
    """Float64 scores: `add` is recall + w * P(Yes), `alpha` is w * recall + (1 - w) * P(Yes).

    Raises:
      MarvelError: an unknown form, or a weight that the form cannot have.

    Source: U-MARVEL (specification 5.6): the code adds, the paper mixes with alpha.
    """
    _check_weight(weight, form)
    recall, p_yes = recall.astype(np.float64), p_yes.astype(np.float64)
    if form == "add":
        return recall + weight * p_yes
    return weight * recall + (1.0 - weight) * p_yes


def reorder(lists: Reranked, *, weight: float, form: Form) -> np.ndarray:
    """Int [Q, K]: the candidates ordered by their fused scores; equal ones as they were."""
    scores = fuse(lists.recall, lists.p_yes, weight=weight, form=form)
    scores = np.where(lists.candidates < 0, -np.inf, scores)
    order = np.argsort(-scores, axis=1, kind="stable")
    return np.take_along_axis(lists.candidates, order, axis=1)


def fit(
    validation: Sequence[Reranked],
    *,
    form: Form = "add",
    scope: Scope = "task",
    grid: Sequence[float] | None = None,
    sure: bool = False,
    seed: int = 0,
) -> FusionWeights:
    """The weight with the best hit@k on validation: one for each set, or one for all.

    With the scope "global" it is the mean over sets that counts. Of equally good weights it is
    the one that trusts the reranker least, so where reranking changes nothing the order of recall
    stays.

    Args:
      validation: lists of validation queries, never those that are judged.
      form: add or alpha, see `fuse`.
      scope: task or global.
      grid: the weights to try; None takes `GRIDS[form]`.
      sure: where the 95% bootstrap interval of the best weight's gain on validation holds 0,
        recall alone is kept: the best of many weights gains something by luck.
      seed: of that bootstrap.

    Raises:
      MarvelError: no set, a set twice, or a grid that the form cannot have.
    """
    names = [one.name for one in validation]
    if not names or len(set(names)) < len(names):
        raise MarvelError(f"fit needs validation sets of different names, found {names}.")
    tried = tuple(GRIDS[form] if grid is None else grid)
    if not tried:
        raise MarvelError("grid is empty: give at least one weight.")
    for weight in tried:
        _check_weight(weight, form)
    alone = RECALL_ALONE[form]
    if sure and alone not in tried:
        raise MarvelError(f"sure=True compares with recall alone: put {alone:g} into the grid.")
    # From the least trust in the reranker on: argmax takes the first of the best.
    tried = tuple(sorted(tried, key=lambda weight: abs(weight - alone)))
    by_query = [[hits(one, weight=weight, form=form) for weight in tried] for one in validation]
    means = np.array([[values.mean() for values in own] for own in by_query])
    if scope == "global":
        best = np.full(len(names), int(means.mean(axis=0).argmax()))
    else:
        best = means.argmax(axis=1)
    if sure:
        gains = np.stack(
            [
                metrics.bootstrap_means(own[place] - own[0], seed=seed + row)
                for row, (own, place) in enumerate(zip(by_query, best, strict=True))
            ]
        )
        if scope == "global":
            gains = np.broadcast_to(gains.mean(axis=0), gains.shape)
        clear = [metrics.interval_of(0.0, one).low > 0 for one in gains]
        best = np.where(clear, best, 0)
    return FusionWeights(
        form=form,
        scope=scope,
        weights={name: tried[place] for name, place in zip(names, best, strict=True)},
        score={name: float(means[row, best[row]]) for row, name in enumerate(names)},
        grid=tuple(sorted(tried)),
        fitted_on=frozenset(key for one in validation for key in one.identities),
    )


def hits(lists: Reranked, *, weight: float, form: Form) -> np.ndarray:
    """Float [Q]: whether each query has a right answer among its first k, so ordered."""
    ranking = reorder(lists, weight=weight, form=form)
    return metrics.hit_at_k(ranking, lists.relevant, lists.k)


def _check_weight(weight: float, form: str) -> None:
    if form not in GRIDS:
        raise MarvelError(f"form={form!r} is no fusion: choose add or alpha.")
    if not np.isfinite(weight) or weight < 0 or (form == "alpha" and weight > 1):
        allowed = "0 to 1" if form == "alpha" else "0 or more"
        raise MarvelError(f"weight={weight} with form={form!r}: expected {allowed}.")
