"""The lengths index of a source: tokens and patches of every item, counted once."""

import dataclasses
import uuid
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from marvel_jax import files
from marvel_jax.data.items import Candidate, Item, Query, RetrievalSource
from marvel_jax.data.processor import Processor
from marvel_jax.errors import MarvelError

_VERSION = 1
_THREADS = 4
_CHUNK = 1024

_Record = TypeVar("_Record", Query, Candidate)
_Result = TypeVar("_Result")


class LengthsIndex(NamedTuple):
    """What the epoch plan knows of a source without touching it again.

    Lengths are (tokens, patches); a query counts its longest instruction. The positives of query
    q are `positives[offsets[q]:offsets[q + 1]]`, as candidate indices.
    """

    queries: np.ndarray  # [Nq, 2] int32
    candidates: np.ndarray  # [Nc, 2] int32
    tasks: np.ndarray  # [Nq] int32: M-BEIR task id
    prompts: np.ndarray  # [Nq] int32: how many instructions there are to choose from
    offsets: np.ndarray  # [Nq + 1] int64
    positives: np.ndarray  # [sum] int32
    query_ids: np.ndarray  # [Nq] UTF-8 bytes
    candidate_ids: np.ndarray  # [Nc] UTF-8 bytes
    fingerprint: np.ndarray  # [] str: of the source and the processor


def index(source: RetrievalSource, processor: Processor, *, cache: Path | None) -> LengthsIndex:
    """Counts a source's tokens and patches; of images only the headers are read.

    With `cache`, a folder, the result is kept there under the fingerprints of both.

    Raises:
      MarvelError: a query without a positive, a positive that no candidate has, a query whose
        kind has no instruction in a source that has some, or an unreadable image.
    """
    key = files.hash_bytes(
        source.fingerprint.encode(), processor.fingerprint.encode(), str(_VERSION).encode()
    )
    path = Path(cache) / f"lengths-{key}.npz" if cache is not None else None
    if path is not None and path.is_file():
        found = _read(path)
        if found is not None:
            return found
    counted = _count(source, processor, key)
    if path is not None:
        _write(path, counted)
    return counted


def _count(source: RetrievalSource, processor: Processor, key: str) -> LengthsIndex:
    longest = {
        prompts_key: max(prompts, key=lambda prompt: _instruction_tokens(processor, prompt))
        for prompts_key, prompts in source.instructions.items()
        if prompts
    }

    def measure_query(query: Query) -> tuple[tuple[int, int], bytes, int, int, list[int]]:
        _check_query(query, source)
        prompt = longest.get(query.instruction_key)
        item = dataclasses.replace(query.item, instruction=prompt, id=query.id)
        lengths = processor.lengths(item)
        prompts = len(source.instructions.get(query.instruction_key, ()))
        positives = [_positive(source, query, name) for name in query.positives]
        unique = list(dict.fromkeys(positives))
        return lengths, query.id.encode(), query.task.id, prompts, unique

    def measure_candidate(candidate: Candidate) -> tuple[tuple[int, int], bytes]:
        item = dataclasses.replace(candidate.item, instruction=None, id=candidate.id)
        return processor.lengths(item), candidate.id.encode()

    queries = _in_chunks(measure_query, source.queries)
    candidates = _in_chunks(measure_candidate, source.candidates)
    counts = [len(positives) for *_, positives in queries]
    return LengthsIndex(
        queries=np.array([one[0] for one in queries], np.int32).reshape(-1, 2),
        candidates=np.array([one[0] for one in candidates], np.int32).reshape(-1, 2),
        tasks=np.array([one[2] for one in queries], np.int32),
        prompts=np.array([one[3] for one in queries], np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64),
        positives=np.array([index for one in queries for index in one[4]], np.int32),
        query_ids=np.array([one[1] for one in queries], np.bytes_),
        candidate_ids=np.array([one[1] for one in candidates], np.bytes_),
        fingerprint=np.array(key),
    )


def _in_chunks(measure: Callable[[_Record], _Result], records: Sequence[_Record]) -> list[_Result]:
    """Measures all records, read in slices, which sources can serve much faster than singles."""

    def measure_chunk(start: int) -> list[_Result]:
        return [measure(record) for record in records[start : start + _CHUNK]]

    with ThreadPoolExecutor(_THREADS) as pool:
        chunks = pool.map(measure_chunk, range(0, len(records), _CHUNK))
        return [one for chunk in chunks for one in chunk]


def _instruction_tokens(processor: Processor, prompt: str) -> int:
    # In every template the instruction's tokens do not depend on what stands around it.
    return processor.lengths(Item(parts=("a",), instruction=prompt))[0]


def _check_query(query: Query, source: RetrievalSource) -> None:
    if not query.positives:
        raise MarvelError(f"Query {query.id} has no positive: give it one, or leave it out.")
    if source.instructions and not source.instructions.get(query.instruction_key):
        dataset, asks, wants = query.instruction_key
        raise MarvelError(
            f"Query {query.id}: there is no instruction for data set {dataset}, query modality "
            f"{asks!r}, candidate modality {wants!r}. Add a line to the instructions."
        )


def _positive(source: RetrievalSource, query: Query, name: str) -> int:
    try:
        return source.candidate_index(name)
    except MarvelError as error:
        raise MarvelError(f"Query {query.id}: positive {name}: {error}") from error


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
