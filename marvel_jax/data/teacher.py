"""A reranker's judgement on disk, and as arrays: lists of candidates with raw logits.

A line is {"qid", "did": [K], "yes": [K], "no": [K], "recall": [K]}: the logits of "Yes" and "No"
as the reranker gave them and the cosine of the model that retrieved the list, float32 each, so
that every form of teacher and of fusion can be taken from one file. JSON lines, because a scorer
that is killed goes on behind its last line and because they take little: 9 digits bring a float32
back bit for bit, and 50 candidates of 133,000 queries are some 350 MB.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data.items import RetrievalSource
from marvel_jax.data.keyed_lines import (
    KeyedWriter,
    Offenders,
    check_origin,
    read_manifest,
    shortest_digits,
)
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_jsonl

KIND, VERSION = "teacher scores", 1

_NUMBERS = ("yes", "no", "recall")
_ADVICE = "Nothing is trained on it: score this source again."


class TeacherLists(NamedTuple):
    """n lists of up to K candidates, and which of them each query of the source has."""

    lines: np.ndarray  # [queries] int32, the list of each query of the source
    candidates: np.ndarray  # [n, K] int32, places in the source's candidates; -1 = none
    yes: np.ndarray  # [n, K] float32, 0 where there is no candidate
    no: np.ndarray  # [n, K] float32
    recall: np.ndarray  # [n, K] float32
    manifest: Mapping[str, Any]

    @property
    def valid(self) -> np.ndarray:
        """[n, K] bool: where there is a candidate."""
        return self.candidates >= 0

    def p_yes(self, line: int | slice | np.ndarray = slice(None)) -> np.ndarray:
        """Float64 [K] of one list, or [n, K] of several: P(Yes) = sigmoid(yes - no)."""
        odds = self.yes[line].astype(np.float64) - self.no[line]
        return np.asarray(np.exp(-np.logaddexp(0.0, -odds)))


def teacher_writer(path: Path | str, manifest: Mapping[str, Any]) -> KeyedWriter:
    """A writer of lines as `teacher_line` makes them, which goes on where a killed one stopped.

    The manifest should hold `teacher_hash` (the reranker's weights), `model_hash` (of the model
    that retrieved), `queries_hash`, `pool_hash`, `source_fingerprint` and the settings: the pool
    of the lists, the prompt, the depth.
    """
    return KeyedWriter(path, {"kind": KIND, "version": VERSION, **manifest})


def teacher_line(
    qid: str, did: Sequence[str], *, yes: np.ndarray, no: np.ndarray, recall: np.ndarray
) -> dict[str, Any]:
    """One query's line; the arrays are float32 [K] in the order of `did`.

    Raises:
      MarvelError: an empty list, an id twice, arrays of other lengths or not finite.
    """
    line: dict[str, Any] = {"qid": qid, "did": list(did)}
    for name, values in zip(_NUMBERS, (yes, no, recall), strict=True):
        line[name] = [shortest_digits(value) for value in np.asarray(values, np.float32)]
    fault = _fault(line)
    if fault is not None:
        raise MarvelError(f"query {qid}: {fault}.")
    return line


def read_teacher(
    path: Path | str,
    source: RetrievalSource,
    *,
    teacher_hash: str | None = None,
    model_hash: str | None = None,
) -> TeacherLists:
    """Reads a teacher file for the queries of a source, and checks all of it.

    Args:
      path: the file, its manifest beside it.
      source: the queries that are to be distilled, and their candidates.
      teacher_hash: the reranker that must have scored; None asks nothing.
      model_hash: the model that must have retrieved the lists.

    Raises:
      MarvelError: the file was made by another model, of another pool or query set; a query has
        no list, a list no query, or a query several; a list is empty, holds an id twice, an id
        that is no candidate or a number that is not finite. All offenders are counted and the
        first few named.
    """
    path = Path(path)
    manifest = read_manifest(path, kind=KIND, version=VERSION)
    expected = {"teacher_hash": teacher_hash, "model_hash": model_hash}
    check_origin(path, manifest, source, expected)
    offenders = Offenders()
    line_of: dict[str, int] = {}
    places: list[np.ndarray] = []
    numbers: list[np.ndarray] = []
    for number, row in read_jsonl(path):
        fault = _fault(row)
        if fault is not None:
            offenders.add(f"lines with {fault}", str(row.get("qid", f"line {number}")))
            continue
        if row["qid"] in line_of:
            offenders.add("queries with several lists", row["qid"])
            continue
        line_of[row["qid"]] = len(places)
        places.append(_places(row, source, offenders))
        numbers.append(np.array([row[name] for name in _NUMBERS], np.float32))
    lines = np.zeros(len(source.queries), np.int32)
    asked: set[str] = set()
    for place, query in enumerate(source.queries):
        if query.id in line_of:
            lines[place] = line_of[query.id]
        elif query.id not in asked:
            offenders.add("queries without a list", query.id)
        asked.add(query.id)
    for qid in line_of:
        if qid not in asked:
            offenders.add("lists for no query of the source", qid)
    offenders.refuse(f"{path} does not fit the source", advice=_ADVICE)
    return _rectangles(lines, places, numbers, manifest)


def _places(row: Mapping[str, Any], source: RetrievalSource, offenders: Offenders) -> np.ndarray:
    found = np.zeros(len(row["did"]), np.int32)
    for column, name in enumerate(row["did"]):
        try:
            found[column] = source.candidate_index(name)
        except MarvelError:
            offenders.add("ids that are no candidate of the pool", f"{row['qid']} -> {name}")
    return found


def _rectangles(
    lines: np.ndarray,
    places: Sequence[np.ndarray],
    numbers: Sequence[np.ndarray],
    manifest: Mapping[str, Any],
) -> TeacherLists:
    width = max((len(one) for one in places), default=0)
    candidates = np.full((len(places), width), -1, np.int32)
    values = np.zeros((3, len(places), width), np.float32)
    for number, (ids, scores) in enumerate(zip(places, numbers, strict=True)):
        candidates[number, : len(ids)] = ids
        values[:, number, : len(ids)] = scores
    yes, no, recall = values
    return TeacherLists(lines, candidates, yes, no, recall, manifest)


def _fault(row: Mapping[str, Any]) -> str | None:
    """What is wrong with a line by itself."""
    qid, ids = row.get("qid"), row.get("did")
    if not isinstance(qid, str) or not isinstance(ids, list):
        return "no qid or no list of did"
    if not ids:
        return "an empty list"
    if not all(isinstance(name, str) for name in ids) or len(set(ids)) < len(ids):
        return "an id twice or that is no text"
    for name in _NUMBERS:
        values = row.get(name)
        if not isinstance(values, list) or len(values) != len(ids):
            return f"another number of {name} than of ids"
        if not all(isinstance(value, int | float) for value in values):
            return f"{name} that is no number"
        if not np.isfinite(np.asarray(values, np.float32)).all():
            return f"{name} that is not finite"
    return None
