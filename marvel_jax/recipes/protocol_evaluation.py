"""A model against one of the test sets beside M-BEIR: read, encode, rank, score, write."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import marvel_jax
from marvel_jax.data.protocols.protocol import LoadedSet, Test
from marvel_jax.data.protocols.source import Candidates
from marvel_jax.files import write_json, write_jsonl
from marvel_jax.recipes.evaluation import Ticker
from marvel_jax.recipes.evaluation_inputs import aligned, failures
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.protocols import plain, seed_of
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import StoreType
from marvel_jax.retrieval.zero_shot import (
    DEPTH,
    GroupScores,
    Ranked,
    TestScores,
    group,
    rank,
    score,
)

SHOWN = 10
"""Results of a query that `rankings/NAME.jsonl` holds; a submission has `DEPTH`."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class ProtocolScores:
    """What a set's tests scored, means over groups of them, and the submissions written."""

    protocol: str
    tests: tuple[TestScores, ...]
    groups: tuple[GroupScores, ...]
    submissions: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        found: dict[str, Any] = plain(dataclasses.asdict(self))
        return found

    def lines(self) -> list[str]:
        """For a person: a test a line, means, and where submissions are."""
        lines = []
        if self.tests:
            labels = list(self.tests[0].scores)
            head = "".join(f"{label:<24}" for label in labels)
            lines.append(f"{'test':<20}{'queries':>8}{'pool':>10}  {head}chance")
        for one in self.tests:
            scores = "".join(f"{_interval(found):<24}" for found in one.scores.values())
            chance = f"{one.chance[one.main]:.3f}" if one.main in one.chance else "-"
            pool = f"{one.pool:,.0f}" if one.pool == round(one.pool) else f"{one.pool:,.1f}"
            lines.append(f"{one.name:<20}{one.num_queries:>8,}{pool:>10}  {scores}{chance}")
        for some in self.groups:
            count = f"{len(some.tests)}" + (f" of {some.of}" if some.of != len(some.tests) else "")
            lines.append(
                f"{f'mean, {some.name}' if some.name != 'mean' else 'mean':<28}"
                f"{count:>10}  {_interval(some.score)}"
            )
        lines += [f"to be judged elsewhere: {path}" for path in self.submissions]
        return lines


class RankedTest(NamedTuple):
    """What a test's queries found among the candidates of `store`.

    score_seed: of its bootstrap.
    """

    test: Test
    query_ids: Sequence[str]
    ranked: Ranked
    store: VectorStore
    score_seed: int


@dataclass(frozen=True)
class EvaluatedProtocol:
    """A set's scores, and what a reranker goes on from; `about` is what scores.json says of it."""

    loaded: LoadedSet
    scores: ProtocolScores
    tests: tuple[RankedTest, ...]
    about: Mapping[str, Any]


def evaluate_protocol(
    embedder: Embedder,
    loaded: LoadedSet,
    *,
    workdir: Path,
    seed: int = 0,
    model: str | None = None,
    dtype: StoreType = "float32",
    dimension: int | None = None,
    tolerate: int = 0,
    say: Say = lambda line: None,
) -> EvaluatedProtocol:
    """Scores every test of a set.

    Leaves in `workdir`: `vectors/NAME`, a store of each collection (and `queries/NAME` where the
    vectors sought are stored in fewer bytes); `rankings/TEST.jsonl`; `submissions/TEST.json`;
    `scores.json`. Stores of the same model and content are used again, so a killed run goes on.

    Args:
      embedder: the model.
      loaded: the set, as `Protocol.load` reads it.
      workdir: the evaluation's folder.
      seed: of the bootstrap.
      model: the model's name for readers.
      dtype: of the stored candidates; queries stay float32.
      dimension: how many numbers of each candidate's vector are kept; None keeps all.
      tolerate: items of each collection that may have unreadable pictures.
      say: told what is done.

    Raises:
      MarvelError: what encoding or ranking refuses.
    """
    protocol, root, data, hashes = loaded
    small = dtype != "float32" or dimension is not None
    stores: dict[Path, VectorStore] = {}

    def encode(name: str, *, asks: bool) -> VectorStore:
        apart = asks and small
        path = workdir / ("queries" if apart else "vectors") / name.replace(" ", "_")
        if path not in stores:
            items = data.collections[name]
            say(f"encoding {len(items):,} {name}")
            stores[path] = encode_candidates(
                embedder,
                Candidates(items),
                path,
                source_hash=hashes[name],
                dtype="float32" if apart else dtype,
                dimension=None if apart else dimension,
                tolerate=tolerate,
                progress=Ticker(say, name),
            )
        return stores[path]

    scored, submissions, tests = [], [], []
    (workdir / "scores.json").unlink(missing_ok=True)
    for number, test in enumerate(data.tests):
        asking, sought = encode(test.asks, asks=True), encode(test.seeks, asks=False)
        query_ids = [str(item.id) for item in data.collections[test.asks]]
        unread, unseen = failures(sought.path), failures(asking.path)
        depth = max(DEPTH, *protocol.metric.cuts)
        ranked = rank(test, aligned(asking, query_ids), sought, depth=depth, missing=unread)
        found = RankedTest(test, query_ids, ranked, sought, seed_of(seed, number))
        tests.append(found)
        if test.is_submission:
            submissions.append(write_submission(workdir, found))
            continue
        write_rankings(workdir, found)
        missing = len(unread) + len(unseen)
        scored.append(score(test, protocol.metric, ranked, seed=found.score_seed, missing=missing))
    made = ProtocolScores(
        protocol.name,
        tuple(one for one, _ in scored),
        group(protocol.groups, scored),
        tuple(submissions),
    )
    about = {
        "model": model or "",
        "model_hash": embedder.model_hash,
        "data": str(root),
        "content": hashes,
        "seed": seed,
        "dtype": dtype,
        "dimension": dimension,
        "reranker": None,
        "marvel_jax": marvel_jax.__version__,
    }
    write_json(workdir / "scores.json", {**made.to_dict(), "about": about})
    return EvaluatedProtocol(loaded, made, tuple(tests), about)


def write_submission(
    workdir: Path, found: RankedTest, *, order: str = "", lists: TopK | None = None
) -> str:
    """Writes submissions/TEST.json, or TEST.ORDER.json of the lists in another order.

    Query id -> the ids of its results, as numbers where they are numbers (CIRCO's server).
    """
    name = f"{found.test.name}.{order}.json" if order else f"{found.test.name}.json"
    path = workdir / "submissions" / name
    indices = (lists or found.ranked.found).indices
    results = {
        id: [_number(found.store.ids[row]) for row in rows[:DEPTH] if row >= 0]
        for id, rows in zip(found.query_ids, indices.tolist(), strict=True)
    }
    write_json(path, results)
    return str(path)


def _number(id: str) -> int | str:
    return int(id) if id.isdigit() and str(int(id)) == id else id


def write_rankings(
    workdir: Path, found: RankedTest, *, orders: Mapping[str, TopK] | None = None
) -> None:
    """Writes rankings/TEST.jsonl: for each query its right answers, and the first results with
    their cosines, then by name those of other orders with the scores of these.

    A result behind those that were reordered has the score null.
    """
    ids = found.store.ids

    def first(lists: TopK, query: int) -> dict[str, Any]:
        rows, scores = (part[query, :SHOWN].tolist() for part in (lists.indices, lists.scores))
        there = [(row, score) for row, score in zip(rows, scores, strict=True) if row >= 0]
        return {
            "found": [ids[row] for row, _ in there],
            "scores": [score if np.isfinite(score) else None for _, score in there],
        }

    write_jsonl(
        workdir / "rankings" / f"{found.test.name}.jsonl",
        (
            {
                "id": id,
                "right": list(answers.right),
                **first(found.ranked.found, query),
                **{order: first(lists, query) for order, lists in (orders or {}).items()},
            }
            for query, (id, answers) in enumerate(
                zip(found.query_ids, found.test.answers, strict=True)
            )
        ),
    )


def _interval(found: Any) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
