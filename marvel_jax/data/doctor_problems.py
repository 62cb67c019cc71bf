"""What can be wrong with a corpus on disk: the kinds, one problem, and what a check has found."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from typing import IO, Any, NamedTuple


class Severity(StrEnum):
    """An error makes training or evaluation fail, or scores wrong; a note is worth a look."""

    ERROR = "error"
    NOTE = "note"


class Kind(StrEnum):
    """What can be found. The value is the word in the JSON."""

    MISSING_FILE = "missing_file"
    WRONG_NAME = "wrong_name"
    NOT_JSON = "not_json"
    WRONG_FIELD = "wrong_field"
    WRONG_MODALITY = "wrong_modality"
    EMPTY_QUERY = "empty_query"
    EMPTY_CANDIDATE = "empty_candidate"
    DUPLICATE_ID = "duplicate_id"
    NO_POSITIVE = "no_positive"
    DANGLING_POSITIVE = "dangling_positive"
    DANGLING_NEGATIVE = "dangling_negative"
    BROKEN_QRELS = "broken_qrels"
    DANGLING_QRELS = "dangling_qrels"
    NO_RELEVANT = "no_relevant"
    NOT_IN_UNION = "not_in_union"
    BROKEN_INSTRUCTION = "broken_instruction"
    MISSING_INSTRUCTION = "missing_instruction"
    UNUSED_INSTRUCTION = "unused_instruction"
    WRONG_COUNT = "wrong_count"
    MISSING_SET = "missing_set"
    OTHER_RELEVANT = "other_relevant"
    IMAGE_MISSING = "image_missing"
    IMAGE_TRUNCATED = "image_truncated"
    IMAGE_UNDECODABLE = "image_undecodable"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_TOO_LONG = "image_too_long"
    IMAGE_EXTREME = "image_extreme"

    @property
    def severity(self) -> Severity:
        return Severity.NOTE if self in _NOTES else Severity.ERROR

    @property
    def meaning(self) -> str:
        """One sentence for a person."""
        return _MEANINGS[self]


_NOTES = {Kind.UNUSED_INSTRUCTION, Kind.MISSING_SET, Kind.OTHER_RELEVANT, Kind.IMAGE_EXTREME}

_MEANINGS = {
    Kind.MISSING_FILE: "A file or folder that the layout needs is not there.",
    Kind.WRONG_NAME: "A query file's name does not say data set, task and split.",
    Kind.NOT_JSON: "A line is not one JSON object in UTF-8.",
    Kind.WRONG_FIELD: "A field is missing or has a value that it cannot have.",
    Kind.WRONG_MODALITY: "The modality said is not that of the text and picture there.",
    Kind.EMPTY_QUERY: "A query has neither text nor picture.",
    Kind.EMPTY_CANDIDATE: "A candidate has neither text nor picture.",
    Kind.DUPLICATE_ID: "An id was used before in the same file.",
    Kind.NO_POSITIVE: "A query names no positive.",
    Kind.DANGLING_POSITIVE: "A query's positive is in no pool of its split.",
    Kind.DANGLING_NEGATIVE: "A query's negative is in no pool of its split.",
    Kind.BROKEN_QRELS: "A line is not `qid 0 did relevance task`.",
    Kind.DANGLING_QRELS: "A qrels line names a query or a candidate that does not exist.",
    Kind.NO_RELEVANT: "The qrels give a query no relevant candidate, or none in its own pool.",
    Kind.NOT_IN_UNION: "A candidate of a local pool is not in the test split's union pool.",
    Kind.BROKEN_INSTRUCTION: "A line of the instructions cannot be read, or repeats another.",
    Kind.MISSING_INSTRUCTION: "Queries of a kind have no line in the instructions.",
    Kind.UNUSED_INSTRUCTION: "No query is of an instruction's kind.",
    Kind.WRONG_COUNT: "There are more or fewer than expected.",
    Kind.MISSING_SET: "One of M-BEIR's sixteen test sets is not there.",
    Kind.OTHER_RELEVANT: "Relevant candidates a query are not as many as published.",
    Kind.IMAGE_MISSING: "A picture that a line names is not there.",
    Kind.IMAGE_TRUNCATED: "A picture ends too early.",
    Kind.IMAGE_UNDECODABLE: "A file is no picture that Pillow can decode.",
    Kind.IMAGE_TOO_LARGE: "A picture has more pixels than are ever decoded.",
    Kind.IMAGE_TOO_LONG: "A picture's longer side is over 200 times its shorter one.",
    Kind.IMAGE_EXTREME: "A picture has a side below 8 or above 10,000 pixels.",
}


class Problem(NamedTuple):
    """One thing found.

    `file` is relative to the corpus, `line` counts from 1 (None: the file as a whole), `id` is the
    query's or candidate's, `image` the picture's path where it is about one.
    """

    kind: Kind
    file: str
    line: int | None
    id: str | None
    message: str
    image: str | None = None

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}, line {self.line}"
        return f"{place}: {self.message}"


class Findings:
    """Problems in the order in which they were found: counted, some kept, all in a file.

    Memory does not grow with their number. Use as a context manager.
    """

    SAMPLES = 3

    def __init__(self, *, keep_all: bool) -> None:
        self.counts: Counter[Kind] = Counter()
        self.samples: dict[Kind, list[Problem]] = {}
        self._spool: IO[str] | None = None
        if keep_all:
            self._spool = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115

    def __enter__(self) -> "Findings":
        return self

    def __exit__(self, *_: object) -> None:
        if self._spool is not None:
            self._spool.close()

    def add(self, problem: Problem) -> None:
        self.counts[problem.kind] += 1
        kept = self.samples.setdefault(problem.kind, [])
        if len(kept) < self.SAMPLES:
            kept.append(problem)
        if self._spool is not None:
            fields = {"severity": problem.kind.severity, **problem._asdict()}
            self._spool.write(json.dumps(fields, ensure_ascii=False) + "\n")

    def count(self, severity: Severity) -> int:
        """How many problems are of a severity."""
        return sum(n for kind, n in self.counts.items() if kind.severity is severity)

    def lines(self) -> Iterator[str]:
        """Every problem as one line of JSON, if all were kept."""
        if self._spool is not None:
            self._spool.seek(0)
            yield from (line.rstrip("\n") for line in self._spool)

    def by_kind(self) -> dict[str, dict[str, Any]]:
        """Every kind, found or not, with its severity, meaning and count."""
        return {
            str(kind): {
                "severity": str(kind.severity),
                "meaning": kind.meaning,
                "count": self.counts[kind],
            }
            for kind in Kind
        }
