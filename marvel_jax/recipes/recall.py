"""What a model retrieves for the queries of a test split, as lists that a reranker scores."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.keyed_lines import KeyedWriter, pool_hash, queries_hash
from marvel_jax.data.mbeir import MbeirFolder, MbeirSource, TestSet
from marvel_jax.data.mined import KIND, VERSION
from marvel_jax.data.records import IdTable
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files
from marvel_jax.recipes.evaluation import Ticker
from marvel_jax.recipes.searched_pool import Rows, SearchedPool
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_queries
from marvel_jax.retrieval.retrieval_sets import RetrievalSet, queries_at_once
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_types import StoreType

POOLS = ("local", "global")

_NO_ANSWER = -1.0  # the least cosine, for the best of answers none of which has a vector


def write_lists(
    embedder: Embedder,
    layout: MbeirFolder,
    *,
    split: str,
    depth: int,
    seed: int,
    vectors: Path,
    out: Mapping[str, Path],
    dtype: StoreType = "float32",
    dimension: int | None = None,
    tolerate: int = 0,
    say: Callable[[str], None],
) -> int:
    """Writes the best `depth` candidates of every query into `out["local"]` and `out["global"]`.

    The local pool is the set's own, as the protocol has it. The files have the form of mined
    negatives that record every result and choose none, so that `retrieval.rerank_lists` reads
    them and no training takes them. Returns the number of queries.

    The candidates are stored as `dtype` of `dimension` numbers, and up to `tolerate` of them may
    be unreadable: nothing finds those. Of the queries none may be.

    Raises:
      MarvelError: a query is in two sets, or the files there were made otherwise.
    """
    sets = layout.test_sets(split)
    count = sum(len(one.queries) for one in sets)
    ids = {query.id for one in sets for query in one.queries}
    if len(ids) < count:
        raise MarvelError(f"{layout.root}: {count - len(ids)} queries of {split} occur twice.")
    if all(out[name].exists() for name in POOLS):
        return count
    source = layout.judged_source(split)
    pool = SearchedPool.encode(
        embedder,
        layout.judged_pool(split),
        vectors,
        dtype=dtype,
        dimension=dimension,
        tolerate=tolerate,
        say=say,
    )

    def modality(id: str) -> str:
        return source.candidates[source.candidate_index(id)].modality

    pools = {one.name: IdTable(one.pool, "did") for one in sets}
    for name in POOLS:
        if out[name].exists():
            continue
        writer = KeyedWriter(out[name], _manifest(embedder, source, name, depth, seed))
        done = {row["qid"] for row in writer.done()}
        for one in sets:
            queries = encode_queries(
                embedder,
                one.queries,
                layout.instructions,
                vectors / "queries" / f"seed-{seed}" / one.name,
                seed=seed,
                source_hash=hash_files(*(file.path for file in one.queries.files)),
                progress=Ticker(say, f"queries of {one.name}"),
            )
            chosen = None
            if name == "local":
                chosen = pool.rows(RetrievalSet.of(one).pool)
            block = queries_at_once(queries.dimension)  # a block reads the store once
            for start in range(0, len(queries), block):
                rows = np.arange(start, min(start + block, len(queries)))
                left = [row for row in rows.tolist() if queries.ids[row] not in done]
                if left:
                    own = pools[one.name] if name == "local" else None
                    writer.append(
                        _lines(one, queries, np.array(left), pool, chosen, own, depth, modality)
                    )
        writer.finish({"counts": {"queries": count}})
    return count


def _manifest(
    embedder: Embedder, source: MbeirSource, pool: str, depth: int, seed: int
) -> dict[str, Any]:
    return {
        "kind": KIND,
        "version": VERSION,
        **embedder.manifest_fields(),
        "source_fingerprint": source.fingerprint,
        "queries_hash": queries_hash(source),
        "pool_hash": pool_hash(source),
        "search": "exact",
        "settings": {"pool": pool, "record": "all", "depth": depth, "seed": seed},
    }


def _lines(
    test_set: TestSet,
    queries: VectorStore,
    rows: np.ndarray,
    pool: SearchedPool,
    chosen: Rows | None,
    own: IdTable | None,
    depth: int,
    modality: Callable[[str], str],
) -> Iterator[dict[str, Any]]:
    vectors = queries.vectors(rows)
    found = pool.nearest(vectors, depth, among=chosen)
    for row, vector, (ids, scores) in zip(rows.tolist(), vectors, found, strict=True):
        query = test_set.queries[row]
        answers = sorted(test_set.qrels[query.id])
        there = [id for id in answers if own is None or own.find(id) is not None]
        best = pool.cosines(there, vector)
        right = [place for place, id in enumerate(ids, start=1) if id in test_set.qrels[query.id]]
        yield {
            "qid": query.id,
            "task": f"{query.dataset}:{query.task.id}",
            "negatives": [],
            "positive_similarity": float(best.max(initial=_NO_ANSWER)),
            "positive_rank": right[0] if right else None,
            "candidates": ids,
            "similarities": scores,
            "ranks": list(range(1, len(ids) + 1)),
            "modalities": [modality(id) for id in ids],
            "reasons": ["left"] * len(ids),
        }
