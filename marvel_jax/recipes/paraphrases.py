"""Every paraphrase of the instructions: how far a score hangs on the one that is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.mbeir import MbeirFolder, TestSet
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object, write_json
from marvel_jax.recipes import evaluation_inputs as inputs
from marvel_jax.recipes.evaluation import Evaluated, Say, Ticker
from marvel_jax.retrieval import metrics, retrieval_sets
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import Instructions

_DATASET = 1_000_000_000


@dataclass(frozen=True)
class Spread:
    """A score under each paraphrase, and over them.

    deviation: the standard deviation over all paraphrases, which is what one drawn at random adds.
    """

    values: tuple[float, ...]
    mean: float
    deviation: float
    lowest: float
    highest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one set's scores, a paraphrase each."""
        found = np.array(values)
        return cls(
            tuple(found.tolist()),
            float(found.mean()),
            float(found.std()),
            float(found.min()),
            float(found.max()),
        )

    @classmethod
    def mean_of(cls, spreads: Sequence["Spread"]) -> "Spread":
        """Of the mean over sets, where every set draws its paraphrase by itself."""
        variance = sum(one.deviation**2 for one in spreads)
        return cls(
            (),
            float(np.mean([one.mean for one in spreads])),
            float(np.sqrt(variance) / len(spreads)),
            float(np.mean([one.lowest for one in spreads])),
            float(np.mean([one.highest for one in spreads])),
        )


@dataclass(frozen=True)
class SetParaphrases:
    """hit@k of one set under each paraphrase of its instruction, in both pools."""

    name: str
    instructions: tuple[str, ...]
    local_pool: Spread
    global_pool: Spread


@dataclass(frozen=True)
class Paraphrases:
    """All sets, and the mean over them."""

    sets: tuple[SetParaphrases, ...]
    mean_local: Spread
    mean_global: Spread

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "sets": [
                {
                    "name": one.name,
                    "instructions": list(one.instructions),
                    "local_pool": _plain(one.local_pool),
                    "global_pool": _plain(one.global_pool),
                }
                for one in self.sets
            ],
            "mean_local": _plain(self.mean_local),
            "mean_global": _plain(self.mean_global),
        }

    def lines(self) -> list[str]:
        """As a table for a person."""
        rows = [f"{'every paraphrase':<22}{'number':>7}  {'local':<32}global"]
        rows += [
            f"{one.name:<22}{len(one.instructions):>7}  {_text(one.local_pool):<32}"
            f"{_text(one.global_pool)}"
            for one in self.sets
        ]
        rows.append(f"{'mean':<31}{_text(self.mean_local):<32}{_text(self.mean_global)}")
        return rows


def score_paraphrases(
    embedder: Embedder,
    evaluated: Evaluated,
    layout: MbeirFolder,
    *,
    workdir: Path,
    tolerate: int = 0,
    say: Say,
) -> Paraphrases:
    """Every set under its first paraphrase, under its second, and so on; only queries are encoded.

    Vectors go to `workdir/queries/instruction-N`, finished scores to `workdir/paraphrases.json`.

    Raises:
      MarvelError: a set has no instruction, or what encoding or searching refuses.
    """
    prompts = {
        name: _prompts(one, layout.instructions) for name, one in evaluated.test_sets.items()
    }
    known = _Known(workdir / "paraphrases.json")
    for number in range(max(_count(keys) for keys in prompts.values())):
        asked = [name for name, keys in prompts.items() if _count(keys) > number]
        vectors, origins = {}, {}
        for name in asked:
            found = inputs.encode_test_queries(
                embedder,
                evaluated.test_sets[name],
                {key: (some[number % len(some)],) for key, some in prompts[name].items()},
                workdir / "queries" / f"instruction-{number}" / name,
                seed=0,
                tolerate=tolerate,
                progress=Ticker(say, f"queries of {name}, instruction {number + 1}"),
            )
            vectors[name] = inputs.aligned(found, evaluated.sets[name].query_ids)
            origins[name] = inputs.origin_of(evaluated.test_sets[name], evaluated.store, found)
        left = [evaluated.sets[name] for name in asked if not known.has(name, origins[name])]
        rows = evaluated.evaluation.rows
        rankings = retrieval_sets.search(
            left,
            vectors,
            evaluated.store,
            rows,
            depth=max((one.k for one in left), default=1),
            progress=partial(_tell, say, number),
        )
        for one in left:
            hits = [
                float(metrics.judge(ranking.indices, relevant).hit(one.k).mean())
                for ranking, relevant in zip(
                    rankings[one.name], rows[one.name].by_pool, strict=True
                )
            ]
            known.add(one.name, origins[one.name], hits)
        known.keep({name: (number, origins[name]) for name in asked})
    sets = [
        SetParaphrases(
            name,
            next(iter(keys.values())),
            Spread.of([known.hits(name, number)[0] for number in range(_count(keys))]),
            Spread.of([known.hits(name, number)[1] for number in range(_count(keys))]),
        )
        for name, keys in prompts.items()
    ]
    return Paraphrases(
        tuple(sets),
        Spread.mean_of([one.local_pool for one in sets]),
        Spread.mean_of([one.global_pool for one in sets]),
    )


class _Known:
    """hit@k in both pools by set and by what the rankings are made from, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._hits: dict[str, dict[str, list[float]]] = (
            read_json_object(path) if path.is_file() else {}
        )
        self._origins: dict[tuple[str, int], str] = {}

    def has(self, name: str, origin: str) -> bool:
        return origin in self._hits.get(name, {})

    def add(self, name: str, origin: str, hits: list[float]) -> None:
        self._hits.setdefault(name, {})[origin] = hits

    def keep(self, origins: Mapping[str, tuple[int, str]]) -> None:
        self._origins |= {(name, number): origin for name, (number, origin) in origins.items()}
        write_json(self._path, self._hits)

    def hits(self, name: str, number: int) -> list[float]:
        return self._hits[name][self._origins[name, number]]


def _prompts(test_set: TestSet, instructions: Instructions) -> Instructions:
    """The paraphrases of each kind of query in a set: one kind, where it has one data set."""
    task = test_set.task
    datasets = np.unique(test_set.queries.ids("qid") // _DATASET).tolist()
    found = {}
    for dataset in datasets:
        key = (dataset, task.query_modality, task.candidate_modality)
        if not instructions.get(key):
            raise MarvelError(
                f"{test_set.name}: there is no instruction for data set {dataset}, query modality "
                f"{task.query_modality!r}, candidate modality {task.candidate_modality!r}. Add a "
                "line to the instructions."
            )
        found[key] = instructions[key]
    return found


def _count(prompts: Instructions) -> int:
    return max(len(some) for some in prompts.values())


def _tell(say: Say, number: int, what: str) -> None:
    say(f"searching, instruction {number + 1}, {what}")


def _plain(spread: Spread) -> dict[str, Any]:
    return {**vars(spread), "values": list(spread.values)}


def _text(spread: Spread) -> str:
    return (
        f"{spread.mean:.3f} +- {spread.deviation:.3f} ({spread.lowest:.3f} to {spread.highest:.3f})"
    )
