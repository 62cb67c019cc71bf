"""The lengths of queries and candidates as parts of a reranker's prompt, counted once a source."""

import dataclasses
import uuid
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marvel_jax import files
from marvel_jax.data.batch import item_key
from marvel_jax.data.items import Candidate, Query, RetrievalSource
from marvel_jax.data.keyed_lines import Offenders
from marvel_jax.data.lengths import Progress, in_chunks, joined_keys
from marvel_jax.data.rerank import PairProcessor
from marvel_jax.errors import MarvelError

_VERSION = 1


class PairLengths(NamedTuple):
    """What a plan of pairs knows of a source without touching it again.

    Lengths are (tokens, patches) of the parts of a prompt, a query's with the instruction that
    makes it longest; `listed_*` are tokens in a list-wise prompt. The positives of query q are
    `positives[offsets[q]:offsets[q + 1]]`, as places among the candidates, and its negatives,
    none of which is a positive, likewise.
    """

    queries: np.ndarray  # [Nq, 2] int32
    candidates: np.ndarray  # [Nc, 2] int32
    listed_queries: np.ndarray  # [Nq] int32
    listed_candidates: np.ndarray  # [Nc] int32
    tasks: np.ndarray  # [Nq] int32: M-BEIR task id
    datasets: np.ndarray  # [Nq] int32
    prompts: np.ndarray  # [Nq] int32: how many instructions there are to choose from
    offsets: np.ndarray  # [Nq + 1] int64
    positives: np.ndarray  # [sum] int32
    negative_offsets: np.ndarray  # [Nq + 1] int64
    negatives: np.ndarray  # [sum] int32
    refused_negatives: np.ndarray  # [] int64: known positives that were named as negatives
    query_ids: np.ndarray  # [Nq] UTF-8 bytes
    candidate_ids: np.ndarray  # [Nc] UTF-8 bytes
    query_keys: np.ndarray  # [Nq, 2] uint32
    candidate_keys: np.ndarray  # [Nc, 2] uint32
    fingerprint: np.ndarray  # [] str: of the source and the processor


def index_pairs(
    source: RetrievalSource,
    processor: PairProcessor,
    *,
    cache: Path | None,
    progress: Progress | None = None,
) -> PairLengths:
    """Counts a source's tokens and patches; of pictures only the headers are read.

    With `cache`, a folder, the result is kept there under the fingerprints of both. `progress` is
    told, now and then, how many of how many items are counted.

    Raises:
      MarvelError: queries without a positive, without a negative, with one that no candidate is,
        or without an instruction in a source that has some (all offenders are counted, the first
        few named); or an unreadable picture.
    """
    key = files.hash_bytes(
        source.fingerprint.encode(), processor.fingerprint.encode(), f"{_VERSION}".encode()
    )
    path = Path(cache) / f"pair-lengths-{key}.npz" if cache is not None else None
    if path is not None and path.is_file():
        found = _read(path)
        if found is not None:
            return found
    counted = _count(source, processor, key, progress)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.stem}-{uuid.uuid4().hex}.npz")
        np.savez(partial, **counted._asdict())
        partial.replace(path)
    return counted


class _QueryMeasures(NamedTuple):
    lengths: tuple[int, int]
    listed: int
    id: bytes
    key: bytes
    task: int
    dataset: int
    prompts: int
    positives: list[int]
    negatives: list[int]
    refused: int


class _CandidateMeasures(NamedTuple):
    lengths: tuple[int, int]
    listed: int
    id: bytes
    key: bytes


def _count(
    source: RetrievalSource,
    processor: PairProcessor,
    fingerprint: str,
    progress: Progress | None,
) -> PairLengths:
    instructions = source.instructions
    offenders = Offenders()

    def places(query: Query, names: Sequence[str], fault: str) -> list[int]:
        found = []
        for name in dict.fromkeys(names):
            try:
                found.append(source.candidate_index(name))
            except MarvelError:
                offenders.add(fault, f"{query.id} -> {name}")
        return found

    def measure_query(query: Query) -> _QueryMeasures:
        if instructions and query.instruction_key not in instructions:
            offenders.add("queries of a kind without instruction", query.id)
        asked = instructions.get(query.instruction_key, ())
        items = [
            dataclasses.replace(query.item, instruction=instruction, id=query.id)
            for instruction in asked or (None,)
        ]
        positives = places(query, query.positives, "positives that are no candidate")
        named = places(query, query.negatives, "negatives that are no candidate")
        negatives = [one for one in named if one not in positives]
        for fault, found in (("positive", positives), ("negative", negatives)):
            if not found:
                offenders.add(f"queries without a {fault}", query.id)
        return _QueryMeasures(
            lengths=max(processor.query_lengths(item) for item in items),
            listed=max(processor.query_lengths(item, listed=True)[0] for item in items),
            id=query.id.encode(),
            key=item_key("query", query.id).tobytes(),
            task=query.task.id,
            dataset=query.dataset,
            prompts=len(asked),
            positives=positives,
            negatives=negatives,
            refused=len(named) - len(negatives),
        )

    def measure_candidate(candidate: Candidate) -> _CandidateMeasures:
        item = dataclasses.replace(candidate.item, instruction=None, id=candidate.id)
        return _CandidateMeasures(
            lengths=processor.candidate_lengths(item),
            listed=processor.candidate_lengths(item, listed=True)[0],
            id=candidate.id.encode(),
            key=item_key("candidate", candidate.id).tobytes(),
        )

    total = len(source.queries) + len(source.candidates)
    queries = in_chunks(measure_query, source.queries, progress, 0, total)
    offenders.refuse(
        "The queries cannot be reranked",
        advice="Mine negatives for all of them (data.mined), or leave those out.",
    )
    candidates = in_chunks(
        measure_candidate, source.candidates, progress, len(source.queries), total
    )
    return PairLengths(
        queries=np.array([one.lengths for one in queries], np.int32).reshape(-1, 2),
        candidates=np.array([one.lengths for one in candidates], np.int32).reshape(-1, 2),
        listed_queries=np.array([one.listed for one in queries], np.int32),
        listed_candidates=np.array([one.listed for one in candidates], np.int32),
        tasks=np.array([one.task for one in queries], np.int32),
        datasets=np.array([one.dataset for one in queries], np.int32),
        prompts=np.array([one.prompts for one in queries], np.int32),
        offsets=np.cumsum([0, *(len(one.positives) for one in queries)], dtype=np.int64),
        positives=np.array([place for one in queries for place in one.positives], np.int32),
        negative_offsets=np.cumsum([0, *(len(one.negatives) for one in queries)], dtype=np.int64),
        negatives=np.array([place for one in queries for place in one.negatives], np.int32),
        refused_negatives=np.array(sum(one.refused for one in queries), np.int64),
        query_ids=np.array([one.id for one in queries], np.bytes_),
        candidate_ids=np.array([one.id for one in candidates], np.bytes_),
        query_keys=joined_keys([one.key for one in queries]),
        candidate_keys=joined_keys([one.key for one in candidates]),
        fingerprint=np.array(fingerprint),
    )


def _read(path: Path) -> PairLengths | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return PairLengths(**{field: stored[field] for field in PairLengths._fields})
    except (OSError, KeyError, ValueError, zipfile.BadZipFile):
        return None  # a run that was killed, or another version: count again
