"""A model against one of the test sets beside M-BEIR: read, encode, rank, score, write."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import marvel_jax
from marvel_jax.data.items import Candidate, Item
from marvel_jax.data.protocols.protocol import LoadedSet, Test
from marvel_jax.files import write_json, write_jsonl
from marvel_jax.recipes.evaluation import Ticker
from marvel_jax.recipes.evaluation_inputs import aligned, failures
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates
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
) -> ProtocolScores:
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
                _Candidates(items),
                path,
                source_hash=hashes[name],
                dtype="float32" if apart else dtype,
                dimension=None if apart else dimension,
                tolerate=tolerate,
                progress=Ticker(say, name),
            )
        return stores[path]

    scored, submissions = [], []
    (workdir / "scores.json").unlink(missing_ok=True)
    for number, test in enumerate(data.tests):
        asking, sought = encode(test.asks, asks=True), encode(test.seeks, asks=False)
        query_ids = [str(item.id) for item in data.collections[test.asks]]
        unread, unseen = failures(sought.path), failures(asking.path)
        depth = max(DEPTH, *protocol.metric.cuts)
        ranked = rank(test, aligned(asking, query_ids), sought, depth=depth, missing=unread)
        if test.is_submission:
            path = workdir / "submissions" / f"{test.name}.json"
            write_json(path, _submission(query_ids, ranked, sought))
            submissions.append(str(path))
            continue
        _write_rankings(
            workdir / "rankings" / f"{test.name}.jsonl", query_ids, test, ranked, sought
        )
        missing = len(unread) + len(unseen)
        scored.append(
            score(test, protocol.metric, ranked, seed=seed_of(seed, number), missing=missing)
        )
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
        "marvel_jax": marvel_jax.__version__,
    }
    write_json(workdir / "scores.json", {**made.to_dict(), "about": about})
    return made


class _Candidates(Sequence[Candidate]):
    """Items as what is encoded, made when they are asked for."""

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        item = self._items[index]
        return Candidate(str(item.id), item, item.modality)


def _submission(
    query_ids: Sequence[str], ranked: Ranked, store: VectorStore
) -> dict[str, list[int | str]]:
    """Query id -> the ids of its results, as numbers where they are numbers (CIRCO's server)."""
    return {
        id: [_number(store.ids[row]) for row in rows[:DEPTH] if row >= 0]
        for id, rows in zip(query_ids, ranked.found.indices.tolist(), strict=True)
    }


def _number(id: str) -> int | str:
    return int(id) if id.isdigit() and str(int(id)) == id else id


def _write_rankings(
    path: Path, query_ids: Sequence[str], test: Test, ranked: Ranked, store: VectorStore
) -> None:
    """A line for each query: its right answers, and the first results with their cosines."""
    rows = zip(
        query_ids,
        test.answers,
        ranked.found.indices[:, :SHOWN].tolist(),
        ranked.found.scores[:, :SHOWN].tolist(),
        strict=True,
    )
    write_jsonl(
        path,
        (
            {
                "id": id,
                "right": list(answers.right),
                "found": [store.ids[row] for row in found if row >= 0],
                "scores": [score for row, score in zip(found, scores, strict=True) if row >= 0],
            }
            for id, answers, found, scores in rows
        ),
    )


def _interval(found: Any) -> str:
    return f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
