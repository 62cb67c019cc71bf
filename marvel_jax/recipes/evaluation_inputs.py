"""What an evaluation reads: query vectors, what could not be read, earlier rankings, modalities."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from marvel_jax.data.items import Candidate
from marvel_jax.data.mbeir import MbeirFolder, TestSet, read_dataset_names
from marvel_jax.data.mbeir_sets import DATASETS, parse_choice
from marvel_jax.data.records import IdTable, Records
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files, hash_json, read_jsonl
from marvel_jax.retrieval import evaluation_folder
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import Instructions, encode_queries
from marvel_jax.retrieval.encode_shards import failures_path
from marvel_jax.retrieval.retrieval_sets import DEPTH, QueryVectors, Rankings, RetrievalSet
from marvel_jax.retrieval.store import VectorStore

HELD_OUT = ("nights_task4", "oven_task6", "oven_task8", "infoseek_task6", "infoseek_task8")
"""The sets that the published held-out protocol keeps from training."""


def encode_test_queries(
    embedder: Embedder,
    test_set: TestSet,
    instructions: Instructions,
    path: Path,
    *,
    seed: int,
    tolerate: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> VectorStore:
    """A test set's queries under the instructions that `seed` chooses, as a store."""
    return encode_queries(
        embedder,
        test_set.queries,
        instructions,
        path,
        seed=seed,
        source_hash=hash_files(*(file.path for file in test_set.queries.files)),
        progress=progress,
        tolerate=tolerate,
    )


def aligned(store: VectorStore, query_ids: Sequence[str]) -> QueryVectors:
    """A store of queries, one row each; with zeros for those that could not be encoded."""
    if len(store) == len(query_ids):
        return store
    vectors = np.zeros((len(query_ids), store.dimension), np.float32)
    absent = failures(store.path)
    there = np.array([id not in absent for id in query_ids])
    vectors[there] = store.vectors(store.rows_of([id for id in query_ids if id not in absent]))
    return vectors


def failures(store: Path) -> frozenset[str]:
    """The ids that could not be encoded into a store, as its encoding recorded them."""
    path = failures_path(store)
    return (
        frozenset(str(row["id"]) for _, row in read_jsonl(path)) if path.is_file() else frozenset()
    )


def held_out_sets(
    layout: MbeirFolder, test_sets: Sequence[TestSet], names: Sequence[str]
) -> set[str]:
    """The sets that `names` choose: "nights", "nights_task4" or "task4"; "published" is U-MARVEL's
    held-out protocol.

    Raises:
      MarvelError: a name chooses no set.
    """
    if not names:
        return set()
    table = layout.root / "instructions" / "query_instructions.tsv"
    numbers = {**DATASETS, **read_dataset_names(table)}
    datasets = np.array([one.queries[0].dataset for one in test_sets])
    tasks = np.array([one.task.id for one in test_sets])
    chosen: set[str] = set()
    whole = [HELD_OUT if name == "published" else (name,) for name in names]
    for name in itertools.chain.from_iterable(whole):
        found = np.flatnonzero(parse_choice(name, numbers).of(datasets, tasks))
        if not found.size:
            raise MarvelError(
                f"--held-out {name}: there is no such test set, only "
                f"{', '.join(one.name for one in test_sets)}."
            )
        chosen |= {test_sets[place].name for place in found.tolist()}
    return chosen


def origin_of(test_set: TestSet, store: VectorStore, queries: VectorStore) -> str:
    """A hash of what a set's rankings are made from: all vectors, and which are its pool."""
    return hash_json(
        {
            "store": store.content_hash,
            "queries": queries.content_hash,
            "pool": hash_files(*(file.path for file in test_set.pool.files)),
            "depth": DEPTH,
        }
    )


def found_before(
    workdir: Path, sets: Mapping[str, RetrievalSet], origins: Mapping[str, str]
) -> dict[str, Rankings]:
    """Rankings of an earlier run that were made from the same vectors and pools."""
    known = {}
    for name, one in sets.items():
        try:
            found = evaluation_folder.read_rankings(workdir, name)
        except MarvelError:
            continue  # not there, or not whole: it is made again
        if found.origin == origins[name] and found.query_ids == list(one.query_ids):
            known[name] = found.retrieved
    return known


def modality_of(pool: Records[Candidate]) -> Callable[[str], str]:
    """Candidate id -> modality, read from the pool's files when it is asked for."""
    table = IdTable(pool, "did")

    def found(id: str) -> str:
        place = table.find(id)
        if place is None:
            raise MarvelError(f"{id} is a row of the store, but in none of {table.paths}.")
        return pool[place].modality

    return found
