"""The lengths index of a source: tokens and patches of every item, counted once."""

import dataclasses
import uuid
import zipfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from marvel_jax import files
from marvel_jax.data.batch import item_key
from marvel_jax.data.items import Candidate, Item, Query, RetrievalSource
from marvel_jax.data.processor import Processor
from marvel_jax.errors import MarvelError

_VERSION = 3
_THREADS = 4
_CHUNK = 1024

_Record = TypeVar("_Record", Query, Candidate)
_Result = TypeVar("_Result")
Progress = Callable[[int, int], None]  # (items counted, items in all)
Instructions = Mapping[tuple[int, str, str], tuple[str, ...]]


class LengthsIndex(NamedTuple):
    """What the epoch plan knows of a source without touching it again.

    Lengths are (tokens, patches); a query counts its longest instruction. The positives of query
    q are `positives[offsets[q]:offsets[q + 1]]`, as candidate indices; its hard negatives likewise,
    without those that are also its positives (`refused_negatives` counts them). Where hard
    negatives were not asked for, `negative_offsets` is empty.
    """

    queries: np.ndarray  # [Nq, 2] int32
    candidates: np.ndarray  # [Nc, 2] int32
    tasks: np.ndarray  # [Nq] int32: M-BEIR task id
    datasets: np.ndarray  # [Nq] int32: `Query.dataset`
    prompts: np.ndarray  # [Nq] int32: how many instructions there are to choose from
    offsets: np.ndarray  # [Nq + 1] int64
    positives: np.ndarray  # [sum] int32
    negative_offsets: np.ndarray  # [Nq + 1] int64, or [0]
    negatives: np.ndarray  # [sum] int32
    refused_negatives: np.ndarray  # [] int64
    query_ids: np.ndarray  # [Nq] UTF-8 bytes
    candidate_ids: np.ndarray  # [Nc] UTF-8 bytes
    query_keys: np.ndarray  # [Nq, 2] uint32: `item_key` of each
    candidate_keys: np.ndarray  # [Nc, 2] uint32
    fingerprint: np.ndarray  # [] str: of the source and the processor


def index(
    source: RetrievalSource,
    processor: Processor,
    *,
    cache: Path | None,
    hard_negatives: bool = False,
    progress: Progress | None = None,
) -> LengthsIndex:
    """Counts a source's tokens and patches; of images only the headers are read.

    With `cache`, a folder, the result is kept there under the fingerprints of both. Hard negatives
    are looked up only where they are asked for. `progress` is told, now and then, how many of how
    many items are counted.

    Raises:
      MarvelError: a query without a positive, a positive (or hard negative) that no candidate has,
        a query whose kind has no instruction in a source that has some, or an unreadable image.
    """
    key = files.hash_bytes(
        source.fingerprint.encode(),
        processor.fingerprint.encode(),
        f"{_VERSION} {hard_negatives}".encode(),
    )
    path = Path(cache) / f"lengths-{key}.npz" if cache is not None else None
    if path is not None and path.is_file():
        found = _read(path)
        if found is not None:
            return found
    counted = _count(source, processor, key, hard_negatives, progress)
    if path is not None:
        _write(path, counted)
    return counted


class _QueryMeasures(NamedTuple):
    lengths: tuple[int, int]
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
    id: bytes
    key: bytes


def _count(
    source: RetrievalSource,
    processor: Processor,
    fingerprint: str,
    hard_negatives: bool,
    progress: Progress | None,
) -> LengthsIndex:
    instructions = source.instructions
    longest = {
        prompts_key: max(prompts, key=lambda prompt: _instruction_tokens(processor, prompt))
        for prompts_key, prompts in instructions.items()
        if prompts
    }

    def measure_query(query: Query) -> _QueryMeasures:
        _check_query(query, instructions)
        prompt = longest.get(query.instruction_key)
        item = dataclasses.replace(query.item, instruction=prompt, id=query.id)
        positives = _find(source, query, query.positives, "positive")
        named = _find(source, query, query.negatives, "hard negative") if hard_negatives else []
        negatives = [one for one in named if one not in positives]
        return _QueryMeasures(
            lengths=processor.lengths(item),
            id=query.id.encode(),
            key=item_key("query", query.id).tobytes(),
            task=query.task.id,
            dataset=query.dataset,
            prompts=len(instructions.get(query.instruction_key, ())),
            positives=positives,
            negatives=negatives,
            refused=len(named) - len(negatives),
        )

    def measure_candidate(candidate: Candidate) -> _CandidateMeasures:
        item = dataclasses.replace(candidate.item, instruction=None, id=candidate.id)
        key = item_key("candidate", candidate.id).tobytes()
        return _CandidateMeasures(processor.lengths(item), candidate.id.encode(), key)

    total = len(source.queries) + len(source.candidates)
    queries = in_chunks(measure_query, source.queries, progress, 0, total)
    candidates = in_chunks(
        measure_candidate, source.candidates, progress, len(source.queries), total
    )
    negatives = [one.negatives for one in queries]
    return LengthsIndex(
        queries=np.array([one.lengths for one in queries], np.int32).reshape(-1, 2),
        candidates=np.array([one.lengths for one in candidates], np.int32).reshape(-1, 2),
        tasks=np.array([one.task for one in queries], np.int32),
        datasets=np.array([one.dataset for one in queries], np.int32),
        prompts=np.array([one.prompts for one in queries], np.int32),
        offsets=_offsets([one.positives for one in queries]),
        positives=np.array([place for one in queries for place in one.positives], np.int32),
        negative_offsets=_offsets(negatives) if hard_negatives else np.zeros(0, np.int64),
        negatives=np.array([place for one in negatives for place in one], np.int32),
        refused_negatives=np.array(sum(one.refused for one in queries), np.int64),
        query_ids=np.array([one.id for one in queries], np.bytes_),
        candidate_ids=np.array([one.id for one in candidates], np.bytes_),
        query_keys=joined_keys([one.key for one in queries]),
        candidate_keys=joined_keys([one.key for one in candidates]),
        fingerprint=np.array(fingerprint),
    )


def _offsets(lists: Sequence[Sequence[int]]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(one) for one in lists], dtype=np.int64)]).astype(
        np.int64
    )


def joined_keys(keys: Sequence[bytes]) -> np.ndarray:
    """[N, 2] uint32: the keys of N items, eight bytes each."""
    return np.frombuffer(b"".join(keys), np.uint32).reshape(-1, 2).copy()


def in_chunks(
    measure: Callable[[_Record], _Result],
    records: Sequence[_Record],
    progress: Progress | None,
    before: int,
    total: int,
) -> list[_Result]:
    """Measures all records, read in slices, which sources can serve much faster than singles.

    `progress` hears of `before` and of those measured, out of `total`.
    """

    def measure_chunk(start: int) -> list[_Result]:
        return [measure(record) for record in records[start : start + _CHUNK]]

    measured: list[_Result] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for chunk in pool.map(measure_chunk, range(0, len(records), _CHUNK)):
            measured += chunk
            if progress is not None:
                progress(before + len(measured), total)
    return measured


def _instruction_tokens(processor: Processor, prompt: str) -> int:
    # In every template the instruction's tokens do not depend on what stands around it.
    return processor.lengths(Item(parts=("a",), instruction=prompt))[0]


def _check_query(query: Query, instructions: Instructions) -> None:
    if not query.positives:
        raise MarvelError(f"Query {query.id} has no positive: give it one, or leave it out.")
    if instructions and query.instruction_key not in instructions:
        dataset, asks, wants = query.instruction_key
        raise MarvelError(
            f"Query {query.id}: there is no instruction for data set {dataset}, query modality "
            f"{asks!r}, candidate modality {wants!r}. Add a line to the instructions."
        )


def _find(source: RetrievalSource, query: Query, names: Sequence[str], kind: str) -> list[int]:
    """The candidates of some ids, each once."""
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(source.candidate_index(name))
        except MarvelError as error:
            raise MarvelError(f"Query {query.id}: {kind} {name}: {error}") from error
    return found


def _read(path: Path) -> LengthsIndex | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            return LengthsIndex(**{field: stored[field] for field in LengthsIndex._fields})
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # damaged or of an older layout: it is only a cache, so count again


def _write(path: Path, index: LengthsIndex) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial-{uuid.uuid4().hex[:8]}")
    with partial.open("wb") as stream:
        np.savez(stream, **index._asdict())
    partial.replace(path)
