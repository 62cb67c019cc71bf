"""Which files of an M-BEIR folder there are, what each is for, and what is missing."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from marvel_jax.data.doctor_problems import Kind, Problem
from marvel_jax.data.items import TASKS

INSTRUCTIONS = "instructions/query_instructions.tsv"

_QUERIES = re.compile(r"mbeir_(?P<set>.+_task(?P<task>\d+))_(?P<split>[a-z]+)\.jsonl")
_UNION_POOL = re.compile(r"mbeir_union_(?P<split>[a-z]+)_cand_pool\.jsonl")
_LOCAL_POOL = re.compile(r"mbeir_(?P<set>.+)_cand_pool\.jsonl")


class Role(StrEnum):
    """What a file of lines is."""

    POOL = "pool"
    QUERIES = "queries"
    QRELS = "qrels"


@dataclass(frozen=True)
class LayoutFile:
    """One file of lines.

    `name` is its path in the folder. `set` is `nights_task4`; None where a file spans all sets.
    """

    name: str
    role: Role
    split: str | None
    set: str | None
    task: int | None = None

    @property
    def is_union(self) -> bool:
        return self.set is None


@dataclass(frozen=True)
class Layout:
    """The files of a folder, pools first: what follows looks its ids up in them."""

    root: Path
    files: tuple[LayoutFile, ...]
    problems: tuple[Problem, ...]

    def union_pool(self, split: str) -> str | None:
        """The name of a split's union pool, if it is there."""
        name = f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"
        return name if any(file.name == name for file in self.files) else None

    def local_pool(self, set_name: str, split: str) -> str | None:
        """The name of a set's pool, if it is there: MSCOCO alone has one for each split."""
        names = {file.name for file in self.files}
        for name in local_pool_names(set_name, split):
            if name in names:
                return name
        return None


def local_pool_names(set_name: str, split: str) -> tuple[str, str]:
    """What a set's local pool may be called, the name with the split first."""
    folder = "cand_pool/local"
    return (
        f"{folder}/mbeir_{set_name}_{split}_cand_pool.jsonl",
        f"{folder}/mbeir_{set_name}_cand_pool.jsonl",
    )


def qrels_name(set_name: str, split: str) -> str:
    """Where the relevant candidates of a set's queries are."""
    return f"qrels/{split}/mbeir_{set_name}_{split}_qrels.txt"


def query_name(file: LayoutFile) -> str:
    """The file of queries that qrels judge."""
    return f"query/{file.split}/mbeir_{file.set}_{file.split}.jsonl"


def read_layout(root: Path) -> Layout:
    """Lists the folder; no file is opened."""
    pools = [*_pools(root, "global"), *_pools(root, "local")]
    queries: list[LayoutFile] = []
    problems: list[Problem] = []
    for folder in sorted(path for path in (root / "query").iterdir() if path.is_dir()):
        for found in _query_files(root, folder):
            if isinstance(found, Problem):
                problems.append(found)
            else:
                queries.append(found)
    qrels = [
        LayoutFile(name, Role.QRELS, file.split, file.set, file.task)
        for file in queries
        if file.set is not None and file.split is not None
        if (root / (name := qrels_name(file.set, file.split))).is_file()
    ]
    # Qrels need the ids of queries and pools, queries those of pools.
    layout = Layout(root, (*pools, *queries, *qrels), ())
    return Layout(root, layout.files, (*problems, *_missing(layout, queries)))


def _pools(root: Path, folder: str) -> Iterator[LayoutFile]:
    for path in sorted((root / "cand_pool" / folder).glob("*.jsonl")):
        name = path.relative_to(root).as_posix()
        if folder == "global":
            match = _UNION_POOL.fullmatch(path.name)
            yield LayoutFile(name, Role.POOL, match["split"] if match else None, None)
        else:
            match = _LOCAL_POOL.fullmatch(path.name)
            yield LayoutFile(name, Role.POOL, None, match["set"] if match else path.stem)


def _query_files(root: Path, folder: Path) -> Iterator[LayoutFile | Problem]:
    for path in sorted(folder.glob("*.jsonl")):
        name = path.relative_to(root).as_posix()
        if folder.name.startswith("union_"):
            yield LayoutFile(name, Role.QUERIES, folder.name.removeprefix("union_"), None)
            continue
        match = _QUERIES.fullmatch(path.name)
        if match is None or match["split"] != folder.name or int(match["task"]) not in TASKS:
            yield Problem(
                Kind.WRONG_NAME,
                name,
                None,
                None,
                f"expected a name like mbeir_DATASET_taskN_{folder.name}.jsonl with N one of "
                f"{', '.join(map(str, TASKS))}; the file is not looked at",
            )
            continue
        yield LayoutFile(name, Role.QUERIES, folder.name, match["set"], int(match["task"]))


def _missing(layout: Layout, queries: list[LayoutFile]) -> Iterator[Problem]:
    def missing(name: str, needed: str) -> Problem:
        return Problem(Kind.MISSING_FILE, name, None, None, f"not there: {needed}")

    if not queries:
        yield missing("query", "there is no file of queries in it")
    if not (layout.root / INSTRUCTIONS).is_file():
        yield missing(INSTRUCTIONS, "queries have no instructions without it")
    splits = {file.split for file in queries if file.split is not None}
    # Validation needs local pools only; training and the global score need a union.
    for split in sorted(splits & {"train", "test"}):
        if layout.union_pool(split) is None:
            name = f"cand_pool/global/mbeir_union_{split}_cand_pool.jsonl"
            yield missing(name, f"the queries of {split} need it")
    there = {file.name for file in layout.files}
    for file in queries:
        if file.set is None or file.split in (None, "train"):
            continue
        if layout.local_pool(file.set, str(file.split)) is None:
            yield missing(local_pool_names(file.set, str(file.split))[1], f"{file.name} needs it")
        if (name := qrels_name(file.set, str(file.split))) not in there:
            yield missing(name, f"{file.name} needs it")
