"""A reranker on top of one of the test sets beside M-BEIR: judge, order again, score, write."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.items import Video
from marvel_jax.data.protocols.protocol import LoadedSet
from marvel_jax.data.protocols.source import TestSource
from marvel_jax.data.teacher import TeacherLists
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, write_json
from marvel_jax.lazy import LazySequence
from marvel_jax.recipes.protocol_evaluation import (
    EvaluatedProtocol,
    RankedTest,
    Say,
    write_rankings,
    write_submission,
)
from marvel_jax.recipes.reranked_lists import Names, scores_of
from marvel_jax.recipes.reranking import RerankOptions, given_weights
from marvel_jax.retrieval.fusion import FusionWeights
from marvel_jax.retrieval.protocols import plain
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.rerank_lists import Retrieved
from marvel_jax.retrieval.reranked_scores import Cost
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.zero_shot_reranked import (
    RerankedGroup,
    RerankedTest,
    group_orders,
    reorder,
    score_orders,
)


@dataclass(frozen=True)
class RerankedProtocol:
    """What a set's tests scored after a reranker, and what it took.

    submissions: of tests whose answers are kept from us, in the fused order. cost: of all tests.
    """

    tests: tuple[RerankedTest, ...]
    groups: tuple[RerankedGroup, ...]
    weights: FusionWeights
    submissions: tuple[str, ...]
    cost: Cost
    num_queries: int

    @property
    def seconds_a_query(self) -> float:
        """Of all tests; 0 where no query had a result."""
        return self.cost.seconds / self.num_queries if self.num_queries else 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        pace = {
            "pairs_per_second": self.cost.pairs_per_second,
            "seconds_a_query": self.seconds_a_query,
        }
        return {
            "cost": {**self.cost._asdict(), **pace},
            "weights": self.weights.to_dict(),
            "tests": [plain(dataclasses.asdict(one)) for one in self.tests],
            "groups": [plain(dataclasses.asdict(one)) for one in self.groups],
            "submissions": list(self.submissions),
        }

    def lines(self) -> list[str]:
        """For a person: a test a line beside retrieval, means, and what the reranker took."""
        lines = []
        if self.tests:
            lines.append(
                f"{'test':<20}{'metric':<10}{'retrieval':<11}{'reranked':<10}{'fused':<8}"
                f"{'weight':<8}change"
            )
        for one in self.tests:
            scores = (one.retrieval, one.reranked[one.main], one.fused[one.main])
            lines.append(
                f"{one.name:<20}{one.main:<10}{_columns(*(each.mean for each in scores))}"
                f"{one.weight:<8.2f}{_change(one)}"
            )
        for some in self.groups:
            name = f"mean, {some.name}" if some.name != "mean" else "mean"
            count = f"{len(some.tests)}" + (f" of {some.of}" if some.of != len(some.tests) else "")
            scores = (some.retrieval, some.reranked, some.fused)
            lines.append(
                f"{f'{name}, {count}':<30}{_columns(*(each.mean for each in scores))}"
                f"{'':<8}{_change(some)}"
            )
        cost = self.cost
        lines.append(
            f"reranker: {cost.pairs:,} pairs in {cost.seconds:,.1f} s "
            f"({cost.pairs_per_second:,.1f} pairs/s, {self.seconds_a_query:.3f} s a query)"
        )
        lines += [f"to be judged elsewhere, fused: {path}" for path in self.submissions]
        return lines


def check_reranking(options: RerankOptions, loaded: LoadedSet) -> FusionWeights:
    """The weights for a set's tests; refuses, before anything is encoded, what cannot be.

    Each test has a pool of its own, so of a `marvel run`'s weights those for local pools count.

    Raises:
      MarvelError: a weight is fitted for other sets only or is out of range, or an item holds a
        video.
    """
    for test in loaded.data.tests:
        for name in (test.asks, test.seeks):
            for item in loaded.data.collections[name]:
                if any(isinstance(part, Video) for part in item.parts):
                    raise MarvelError(
                        f"--reranker: item {item.id!r} of {name} is a video, and a reranker reads "
                        f"none. Leave it off: {loaded.protocol.title} is scored by retrieval alone."
                    )
    weights = given_weights(options, [test.name for test in loaded.data.tests])
    if weights is None:
        raise MarvelError(
            f"--fit-split {options.fit_split}: {loaded.protocol.title} has no split to fit a "
            "weight on. Give --weights."
        )
    return weights["local"]


def rerank_protocol(
    reranker: Reranker,
    evaluated: EvaluatedProtocol,
    options: RerankOptions,
    *,
    model: str,
    workdir: Path,
    seed: int = 0,
    say: Say,
) -> RerankedProtocol:
    """Scores the first results of every query, and orders them again; goes on where it stopped.

    Adds to what `evaluate_protocol` left in `workdir`: `rerank/TEST`, what the reranker said;
    `reranked` and `fused` in `rankings/TEST.jsonl`; `submissions/TEST.fused.json`; and `reranked`
    in `scores.json`.

    Raises:
      MarvelError: what `check_reranking` refuses, or what the reranker cannot read.
    """
    loaded = evaluated.loaded
    weights = check_reranking(options, loaded)
    tests, scored, submissions = [], [], []
    costs, asked = [], 0
    for one in evaluated.tests:
        weight = weights.of(one.test.name)
        p_yes, cost = _judge(reranker, loaded, one, options, workdir=workdir, seed=seed, say=say)
        costs.append(cost)
        asked += len(one.query_ids)
        orders = reorder(one.test, one.ranked, p_yes, weight=weight, form=weights.form)
        if one.test.is_submission:
            path = write_submission(workdir, one, order="fused", lists=orders["fused"])
            submissions.append(path)
            continue
        write_rankings(workdir, one, orders=orders)
        metric = loaded.protocol.metric
        parts = score_orders(one.test, metric, one.ranked, orders, seed=one.score_seed)
        scored.append(parts)
        tests.append(RerankedTest.of(parts, top=p_yes.shape[1], weight=weight, cost=cost))
    made = RerankedProtocol(
        tuple(tests),
        group_orders(loaded.protocol.groups, scored),
        weights,
        tuple(submissions),
        Cost(sum(cost.pairs for cost in costs), sum(cost.seconds for cost in costs)),
        asked,
    )
    about = {
        "model": model,
        "hash": reranker.model_hash,
        "top": options.top,
        "weights": options.origin_of_weights,
    }
    content = {**evaluated.scores.to_dict(), "reranked": made.to_dict()}
    write_json(
        workdir / "scores.json", {**content, "about": {**evaluated.about, "reranker": about}}
    )
    return made


def _judge(
    reranker: Reranker,
    loaded: LoadedSet,
    one: RankedTest,
    options: RerankOptions,
    *,
    workdir: Path,
    seed: int,
    say: Say,
) -> tuple[np.ndarray, Cost]:
    """P(Yes), float [Q, top], of a test's lists; 0 where there is no result.

    `top` is 50 unless it was told otherwise, M-BEIR's: so a gallery of at most 50 is reranked as a
    whole, and CIRCO's mAP@50 looks at nothing else. (U-MARVEL's own scripts take the first 10 of
    most sets, of CIRCO 50, to save time: `--top 10`.)
    """
    rows = one.ranked.found.indices[:, : options.top]
    p_yes = np.zeros(rows.shape)
    places = np.flatnonzero((rows >= 0).any(axis=1))  # a query that could not be read has none
    if not len(places):
        return p_yes, Cost(0, 0.0)
    lists = _Lists(one.store, rows[places], one.ranked.found.scores[places, : rows.shape[1]])
    test = one.test
    source = TestSource.of(loaded, test, places.tolist())
    found, cost = scores_of(
        reranker,
        source,
        lists,
        folder=workdir / "rerank" / test.name,
        origin={
            "model_hash": one.store.manifest.model_hash,
            "lists": lists.content_hash(places),
            "pool": source.fingerprint,
            "settings": {"top": options.top, "set": loaded.protocol.name, "test": test.name},
        },
        pairs=sum(len(lists.rows_of(number)) for number in range(len(lists))),
        batch_tokens=options.batch_tokens,
        seed=seed,
        say=say,
    )
    p_yes[places] = _by_rank(lists, source, found)
    return p_yes, cost


@dataclass(frozen=True)
class _Lists(LazySequence[Retrieved]):
    """The first results of some queries: rows of the store and cosines, [n, top], -1 = none."""

    store: VectorStore
    rows: np.ndarray
    recall: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def rows_of(self, index: int) -> np.ndarray:
        """Where in the list its results are, each once: a gallery may name one twice."""
        rows = self.rows[index]
        first = np.sort(np.unique(rows, return_index=True)[1])
        return first[rows[first] >= 0]

    def make(self, index: int) -> Retrieved:
        """The list of this number."""
        there = self.rows_of(index)
        names = Names(self.store, self.rows[index, there])
        return Retrieved(index, names, self.recall[index, there].tolist())

    def content_hash(self, places: np.ndarray) -> str:
        """Of who was asked with what. The order does not count: a pair's score hangs on nothing
        else, and on another device nearly equal results may change places.
        """
        parts = (places.astype(np.int64), np.sort(self.rows, axis=1).astype(np.int64))
        return hash_bytes(self.store.content_hash.encode(), *(part.tobytes() for part in parts))


def _by_rank(lists: _Lists, source: TestSource, found: TeacherLists) -> np.ndarray:
    """P(Yes) beside the lists, [n, top], from the file of scores."""
    at: Sequence[int] = lists.store.ids.rows_of([one.id for one in source.candidates]).tolist()
    p_yes = np.zeros(lists.rows.shape)
    for number, rows in enumerate(lists.rows.tolist()):
        line = int(found.lines[number])
        candidates, said = found.candidates[line].tolist(), found.p_yes(line).tolist()
        of_row = {
            at[place]: value for place, value in zip(candidates, said, strict=True) if place >= 0
        }
        if of_row.keys() != {row for row in rows if row >= 0}:
            raise MarvelError("The reranker's scores are of other lists: remove them.")
        p_yes[number] = [of_row.get(row, 0.0) for row in rows]
    return p_yes


def _columns(retrieval: float, reranked: float, fused: float) -> str:
    return f"{retrieval:<11.3f}{reranked:<10.3f}{fused:<8.3f}"


def _change(one: RerankedTest | RerankedGroup) -> str:
    change = one.change_fused
    return f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] {one.verdict}"
