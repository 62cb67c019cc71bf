"""Reads a stretch of a file of queries, candidates or qrels: what is wrong in it, what it names."""

import hashlib
import json
import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data.doctor_layout import LayoutFile, Role
from marvel_jax.data.doctor_problems import Kind, Problem
from marvel_jax.data.items import TASKS

POSITIVE, NEGATIVE = 1, 2
_MODALITIES = ("text", "image", "image,text")
_ID = re.compile(r"(\d{1,6}):(\d{1,9})")
_RANGE = 1_000_000_000

InstructionKey = tuple[int, str, str]


class Stretch(NamedTuple):
    """The lines that begin within some bytes of a file."""

    root: Path
    file: LayoutFile
    start: int
    end: int


@dataclass
class LineFacts:
    """What some lines say. Lines count from 1 in the stretch; ids are dataset * 10^9 + number.

    `records` counts the lines that are not blank.

    Of queries and candidates: `ids` [N] with their lines; `links` [M], the candidates that queries
    name, each with its query's place among `ids` and as POSITIVE or NEGATIVE; `pictures` [P], a
    hash of each path with the line and its first byte; how many pictures lie under each top folder,
    how many items are of each modality, how many queries of each kind of instruction and the first
    line of one. Of qrels: `ids` are the queries', `links` the candidates' of the same lines, the
    relevant ones POSITIVE.
    """

    lines: int
    records: int
    ids: np.ndarray
    id_lines: np.ndarray
    links: np.ndarray
    link_owners: np.ndarray
    link_kinds: np.ndarray
    pictures: np.ndarray
    picture_lines: np.ndarray
    picture_offsets: np.ndarray
    folders: Counter[str]
    modalities: Counter[str]
    instructions: dict[InstructionKey, tuple[int, int]]
    problems: list[Problem]


def split_bytes(root: Path, file: LayoutFile, size: int) -> list[Stretch]:
    """A file in stretches of about `size` bytes."""
    whole = (root / file.name).stat().st_size
    return [Stretch(root, file, start, min(start + size, whole)) for start in range(0, whole, size)]


def parse_id(value: Any) -> int | None:
    """An id "dataset:number" as one integer, or None for anything else."""
    match = _ID.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) * _RANGE + int(match[2]) if match else None


def format_id(value: int) -> str:
    """The inverse of `parse_id`."""
    return "{}:{}".format(*divmod(int(value), _RANGE))


def read_stretch(stretch: Stretch) -> LineFacts:
    """Reads lines, whatever is wrong with them."""
    reader = _Reader(stretch.file)
    read = {
        Role.POOL: reader.candidate,
        Role.QUERIES: reader.query,
        Role.QRELS: reader.qrels,
    }[stretch.file.role]
    number = 0
    for number, (offset, line) in enumerate(_lines(stretch), start=1):
        if line.strip():
            reader.line, reader.offset = number, offset
            reader.records += 1
            read(line)
    return reader.facts(number)


def join_facts(parts: list[LineFacts]) -> LineFacts:
    """The facts of consecutive stretches as those of one, without their problems."""
    lines = np.cumsum([0, *(part.lines for part in parts)])
    owners = np.cumsum([0, *(len(part.ids) for part in parts)])

    def joined(name: str, added: np.ndarray | None = None) -> np.ndarray:
        values = [getattr(part, name) for part in parts]
        if added is not None:
            values = [value.astype(np.int64) + by for value, by in zip(values, added, strict=False)]
        return np.concatenate(values)

    instructions: dict[InstructionKey, tuple[int, int]] = {}
    for part, before in zip(parts, lines, strict=False):
        for key, (count, line) in part.instructions.items():
            known, first = instructions.get(key, (0, int(before) + line))
            instructions[key] = (known + count, first)
    return LineFacts(
        lines=int(lines[-1]),
        records=sum(part.records for part in parts),
        ids=joined("ids"),
        id_lines=joined("id_lines", lines),
        links=joined("links"),
        link_owners=joined("link_owners", owners),
        link_kinds=joined("link_kinds"),
        pictures=joined("pictures"),
        picture_lines=joined("picture_lines", lines),
        picture_offsets=joined("picture_offsets"),
        folders=sum((part.folders for part in parts), Counter()),
        modalities=sum((part.modalities for part in parts), Counter()),
        instructions=instructions,
        problems=[],
    )


def picture_path(record: dict[str, Any], role: Role) -> Any:
    """The path that a line names, relative to the corpus."""
    return record.get("query_img_path" if role is Role.QUERIES else "img_path")


def _lines(stretch: Stretch) -> Iterator[tuple[int, bytes]]:
    with (stretch.root / stretch.file.name).open("rb") as stream:
        if stretch.start:
            stream.seek(stretch.start - 1)
            stream.readline()  # the end of a line that began before
        position = stream.tell()
        while position < stretch.end and (line := stream.readline()):
            yield position, line
            position += len(line)


@dataclass
class _Reader:
    file: LayoutFile
    line: int = 0
    offset: int = 0
    records: int = 0
    ids: array = field(default_factory=lambda: array("q"))
    id_lines: array = field(default_factory=lambda: array("q"))
    links: array = field(default_factory=lambda: array("q"))
    owners: array = field(default_factory=lambda: array("q"))
    link_kinds: bytearray = field(default_factory=bytearray)
    pictures: list[bytes] = field(default_factory=list)
    picture_lines: array = field(default_factory=lambda: array("q"))
    picture_offsets: array = field(default_factory=lambda: array("q"))
    folders: Counter[str] = field(default_factory=Counter)
    modalities: Counter[str] = field(default_factory=Counter)
    instructions: dict[InstructionKey, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def facts(self, lines: int) -> LineFacts:
        return LineFacts(
            lines=lines,
            records=self.records,
            ids=np.array(self.ids, np.int64),
            id_lines=np.array(self.id_lines, np.int32),
            links=np.array(self.links, np.int64),
            link_owners=np.array(self.owners, np.int32),
            link_kinds=np.frombuffer(bytes(self.link_kinds), np.uint8),
            pictures=np.frombuffer(b"".join(self.pictures), np.uint64),
            picture_lines=np.array(self.picture_lines, np.int32),
            picture_offsets=np.array(self.picture_offsets, np.int64),
            folders=self.folders,
            modalities=self.modalities,
            instructions=self.instructions,
            problems=self.problems,
        )

    def candidate(self, line: bytes) -> None:
        record = self._record(line)
        if record is None:
            return
        id, key = self._id(record, "did")
        modality = self._content(record, "txt", "img_path", id)
        if modality == "":
            self._add(Kind.EMPTY_CANDIDATE, id, f"candidate {id} has neither txt nor img_path")
        elif modality is not None:
            self.modalities[modality] += 1
            self._check_modality(record, "modality", modality, "candidate", id)
        if key is not None:
            self._keep_id(key)

    def query(self, line: bytes) -> None:
        record = self._record(line)
        if record is None:
            return
        id, key = self._id(record, "qid")
        modality = self._content(record, "query_txt", "query_img_path", id)
        task = TASKS.get(record["task_id"]) if type(record.get("task_id")) is int else None
        if task is None:
            known = ", ".join(map(str, TASKS))
            self._wrong(id, f"expected task_id as one of {known}, found {record.get('task_id')!r}")
        elif self.file.task not in (None, task.id):
            self._wrong(id, f"found task_id {task.id} in a file of task {self.file.task}")
        if modality == "":
            self._add(Kind.EMPTY_QUERY, id, f"query {id} has neither query_txt nor query_img_path")
        elif modality is not None:
            self.modalities[modality] += 1
            fits = self._check_modality(record, "query_modality", modality, "query", id)
            if fits and task is not None and modality != task.query_modality:
                self._add(
                    Kind.WRONG_MODALITY,
                    id,
                    f"query {id} of task {task.id} is {modality}; the task is asked by "
                    f"{task.query_modality}",
                )
        if key is None:
            return
        if task is not None:
            kind = (key // _RANGE, task.query_modality, task.candidate_modality)
            count, first = self.instructions.get(kind, (0, self.line))
            self.instructions[kind] = (count + 1, first)
        owner = len(self.ids)
        self._keep_id(key)
        positives = self._links(record, "pos_cand_list", POSITIVE, owner, id)
        if positives == 0:
            self._add(Kind.NO_POSITIVE, id, f"query {id} has nothing in pos_cand_list")
        self._links(record, "neg_cand_list", NEGATIVE, owner, id)

    def qrels(self, line: bytes) -> None:
        columns = line.decode("utf-8", errors="replace").split()
        if len(columns) != 5 or not columns[3].isdecimal():
            self._add(
                Kind.BROKEN_QRELS,
                None,
                f"expected `qid 0 did relevance task`, found {' '.join(columns)[:200]!r}",
            )
            return
        query, candidate = parse_id(columns[0]), parse_id(columns[2])
        for said, key in ((columns[0], query), (columns[2], candidate)):
            if key is None:
                self._add(Kind.BROKEN_QRELS, said, f'expected "dataset:number", found {said!r}')
        if query is None or candidate is None:
            return
        self.owners.append(len(self.ids))
        self._keep_id(query)
        self.links.append(candidate)
        self.link_kinds.append(POSITIVE if int(columns[3]) > 0 else 0)

    def _record(self, line: bytes) -> dict[str, Any] | None:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._add(Kind.NOT_JSON, None, f"not valid JSON ({error})")
            return None
        if not isinstance(value, dict):
            self._add(Kind.NOT_JSON, None, f"expected an object, found {type(value).__name__}")
            return None
        return value

    def _id(self, record: dict[str, Any], name: str) -> tuple[str | None, int | None]:
        value = record.get(name)
        key = parse_id(value)
        if key is None:
            self._wrong(None, f'expected {name} as "dataset:number", found {value!r}')
        return (value if isinstance(value, str) else None), key

    def _keep_id(self, key: int) -> None:
        self.ids.append(key)
        self.id_lines.append(self.line)

    def _content(
        self, record: dict[str, Any], text_name: str, image_name: str, id: str | None
    ) -> str | None:
        """The modality of what is there, "" for nothing, None if that cannot be said."""
        text, image = record.get(text_name), record.get(image_name)
        for name, value in ((text_name, text), (image_name, image)):
            if value is not None and not isinstance(value, str):
                self._wrong(id, f"expected {name} as text or null, found {value!r}")
                return None
        if image:
            encoded = image.encode("utf-8", errors="surrogatepass")
            self.pictures.append(hashlib.blake2b(encoded, digest_size=8).digest())
            self.picture_lines.append(self.line)
            self.picture_offsets.append(self.offset)
            top, slash, _ = image.partition("/")
            self.folders[top if slash else ""] += 1
        words = (("image", image), ("text", text and text.strip()))
        return ",".join(word for word, there in words if there)

    def _check_modality(
        self, record: dict[str, Any], name: str, modality: str, what: str, id: str | None
    ) -> bool:
        said = record.get(name)
        if said == modality:
            return True
        known = "" if said in _MODALITIES else f" (there are {'; '.join(_MODALITIES)})"
        self._add(
            Kind.WRONG_MODALITY,
            id,
            f"{what} {id} says {name} {said!r}{known}, and what is there is {modality}",
        )
        return False

    def _links(
        self, record: dict[str, Any], name: str, kind: int, owner: int, id: str | None
    ) -> int | None:
        """Keeps the candidates that a list names; how many it has, None if it is no list."""
        values = record.get(name) or []
        if not isinstance(values, list):
            self._wrong(id, f"expected {name} as a list, found {values!r}"[:300])
            return None
        for value in values:
            # The data card shows objects {"did": ...}, the files have plain strings.
            key = parse_id(value.get("did") if isinstance(value, dict) else value)
            if key is None:
                self._wrong(id, f'expected "dataset:number" in {name}, found {value!r}')
                continue
            self.links.append(key)
            self.owners.append(owner)
            self.link_kinds.append(kind)
        return len(values)

    def _wrong(self, id: str | None, message: str) -> None:
        self._add(Kind.WRONG_FIELD, id, message)

    def _add(self, kind: Kind, id: str | None, message: str) -> None:
        self.problems.append(Problem(kind, self.file.name, self.line, id, message))
