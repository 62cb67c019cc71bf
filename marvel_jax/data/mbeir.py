"""The M-BEIR layout on disk: queries, candidate pools, qrels and instructions, read lazily."""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.data.items import TASKS, Candidate, Item, Query, Task
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.mbeir_pools import JudgedPool, judged_pool
from marvel_jax.data.mbeir_qrels import read_qrels
from marvel_jax.data.mbeir_sets import DATASETS, choose
from marvel_jax.data.records import IdTable, Records
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes, hash_files

InstructionKey = tuple[int, str, str]

# Recall at 10 for the two fashion data sets, at 5 for all others (the M-BEIR protocol).
_FASHION = frozenset({1, 7})
_QUERY_FILE = re.compile(
    r"mbeir_(?P<name>(?P<dataset>.+)_task(?P<task>\d+))_(?P<split>[a-z]+)\.jsonl"
)


@dataclass(frozen=True)
class MbeirSource:
    """Queries with the candidates that answer them: what training reads (a `RetrievalSource`)."""

    queries: Records[Query]
    candidates: Records[Candidate]
    instructions: Mapping[InstructionKey, tuple[str, ...]]

    @cached_property
    def _table(self) -> IdTable:
        return IdTable(self.candidates, "did")

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the query and pool files and of the instructions; images do not count."""
        chosen = (self.queries.chosen, self.candidates.chosen)
        return hash_bytes(
            hash_files(*(file.path for file in self.queries.files)).encode(),
            hash_files(*(file.path for file in self.candidates.files)).encode(),
            repr(sorted(self.instructions.items())).encode(),
            *(one.tobytes() for one in chosen if one is not None),
        )

    def candidate_index(self, id: str) -> int:
        """The position of a candidate.

        Raises:
          MarvelError: no pool file has the id.
        """
        index = self._table.find(id)
        if index is None:
            raise MarvelError(
                f"Candidate {id} is in none of the pools {', '.join(self._table.paths)}."
            )
        return index

    def verify(self) -> None:
        """Reads every query and looks each positive up, in about 10 microseconds a query.

        Raises:
          MarvelError: a query has no positive, or one that no pool has; the line is named.
        """
        for index in range(len(self.queries)):
            query = self.queries[index]
            for positive in query.positives:
                if self._table.find(positive) is None:
                    raise MarvelError(
                        f"{self.queries.where(index)}: query {query.id} has the positive "
                        f"{positive}, which is in none of the pools "
                        f"{', '.join(self._table.paths)}. Add the candidate or remove the id."
                    )


@dataclass(frozen=True)
class TestSet:
    """One task of one data set as M-BEIR judges it.

    Attributes:
      name: `emoji_task0`, as in the file names.
      queries: in the file's order.
      pool: the local pool; the global one is `MbeirFolder.pool`.
      qrels: for each query id, the candidate ids that are relevant to it; some may be of another
        data set and so in the global pool alone.
      k: hit@k is the main score.
    """

    __test__ = False  # pytest would take the name for a class of tests

    name: str
    dataset: str
    task: Task
    queries: Records[Query]
    pool: Records[Candidate]
    qrels: Mapping[str, frozenset[str]]
    k: int


class MbeirFolder:
    """A folder in the M-BEIR layout.

    Raises:
      MarvelError: the folder, or its query folder, is missing.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)
        if not (self.root / "query").is_dir():
            raise MarvelError(
                f"{self.root} is not a folder in the M-BEIR layout: it has no folder query/. Name "
                "the one of M-BEIR, or make one with `marvel data make-mbeir` or `marvel data "
                "emoji`."
            )

    def source(
        self,
        split: str = "train",
        *,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
        verify: bool = True,
    ) -> MbeirSource:
        """The queries of a split with the candidates of its union pool: what training reads.

        Queries come from query/union_{split}/ where that exists, and else from every file of
        query/{split}/ in name order. `include` (empty: all) and `exclude` choose among them by data
        set, task or both: "nights", "task4", "oven_task6". The pool stays whole, because a query's
        positives may be another data set's candidates.

        Raises:
          MarvelError: a folder or file is missing, an id occurs twice, a choice names what no
            query is of, or (with `verify`) a query has no positive or one that the pool lacks.
        """
        union = self.root / "query" / f"union_{split}"
        folder = union if union.is_dir() else self.root / "query" / split
        queries = self._queries(_jsonl_files(folder))
        if include or exclude:
            kept = choose(
                queries.ids("qid") // 1_000_000_000,
                queries.numbers("task_id"),
                include=include,
                exclude=exclude,
                names={**DATASETS, **read_dataset_names(self._instructions_file)},
                where=str(folder),
            )
            queries = queries.choose(np.flatnonzero(kept))
        source = MbeirSource(queries, self.pool(split), self.instructions)
        if verify:
            source.verify()
        return source

    def judged_source(self, split: str = "test") -> MbeirSource:
        """The queries that `test_sets` has, as one, with all candidates of `judged_pool`.

        Raises:
          MarvelError: a folder or file is missing, an id occurs twice, or a query has no positive,
            or one that the pool lacks.
        """
        queries = self._queries(_jsonl_files(self.root / "query" / split))
        source = MbeirSource(queries, self.judged_pool(split).all, self.instructions)
        source.verify()
        return source

    def pool(self, split: str) -> Records[Candidate]:
        """The union pool of a split: cand_pool/global/mbeir_union_{split}_cand_pool.jsonl."""
        return self._candidates([self._union_pool(split)])

    def judged_pool(self, split: str = "test") -> JudgedPool:
        """The pool of everything in which a split's queries are judged; of test its union pool.

        The union pool of validation holds little more than answers, while its local pools are those
        of test (MSCOCO's excepted). So validation is judged among all candidates of test, and
        whatever its own pools have beside those.

        Raises:
          MarvelError: a pool is missing.
        """
        if split == "test":
            return judged_pool(self.pool(split), [])
        there = [one for one in ("test", split) if self._union_pool(one).is_file()] or [split]
        unions = [self.pool(one) for one in there]
        return judged_pool(unions[0], [*self._local_pools(split), *unions[1:]])

    def test_sets(self, split: str = "test") -> list[TestSet]:
        """Every query file of a split with its local pool and its qrels, checked.

        Raises:
          MarvelError: a file is missing, a qrels line is broken or names a query or candidate that
            does not exist, or a query has no relevant candidate in its local pool.
        """
        everything = functools.cache(lambda: IdTable(self.judged_pool(split).all, "did"))
        paths = _jsonl_files(self.root / "query" / split)
        return [self._test_set(path, split, everything) for path in paths]

    @cached_property
    def instructions(self) -> dict[InstructionKey, tuple[str, ...]]:
        """The prompts by (data set, query modality, candidate modality).

        Raises:
          MarvelError: the table is missing or a line of it cannot be read.
        """
        return read_instructions(self._instructions_file)

    @property
    def _instructions_file(self) -> Path:
        return self.root / "instructions" / "query_instructions.tsv"

    def _test_set(self, path: Path, split: str, everything: Callable[[], IdTable]) -> TestSet:
        match = _set_of(path, split)
        name = match["name"]
        queries = self._queries([path])
        pool = self._candidates([self._local_pool(name, split)])
        qrels = read_qrels(
            self.root / "qrels" / split / f"mbeir_{name}_{split}_qrels.txt",
            queries=queries,
            pool=pool,
            everything=everything,
        )
        dataset = queries[0].dataset if len(queries) else -1
        return TestSet(
            name=name,
            dataset=match["dataset"],
            task=TASKS[int(match["task"])],
            queries=queries,
            pool=pool,
            qrels=qrels,
            k=10 if dataset in _FASHION else 5,
        )

    def _union_pool(self, split: str) -> Path:
        return self.root / "cand_pool" / "global" / f"mbeir_union_{split}_cand_pool.jsonl"

    def _local_pools(self, split: str) -> list[Records[Candidate]]:
        files = _jsonl_files(self.root / "query" / split)
        names = [_set_of(path, split)["name"] for path in files]
        return [self._candidates([self._local_pool(name, split)]) for name in names]

    def _local_pool(self, name: str, split: str) -> Path:
        """MSCOCO alone has a pool for each split, with the split in its name."""
        folder = self.root / "cand_pool" / "local"
        with_split = folder / f"mbeir_{name}_{split}_cand_pool.jsonl"
        return with_split if with_split.is_file() else folder / f"mbeir_{name}_cand_pool.jsonl"

    def _queries(self, paths: Sequence[Path]) -> Records[Query]:
        return Records([JsonLines(path) for path in paths], _QueryMaker(self.root))

    def _candidates(self, paths: Sequence[Path]) -> Records[Candidate]:
        return Records([JsonLines(path) for path in paths], _CandidateMaker(self.root))


@dataclass(frozen=True)
class _QueryMaker:
    root: Path

    def __call__(self, record: dict[str, Any], where: str) -> Query:
        id = _id_field(record, "qid", where)
        task = TASKS.get(record.get("task_id", -1))
        if task is None:
            raise MarvelError(
                f"{where}: query {id} has task_id {record.get('task_id')!r}; expected one of "
                f"{', '.join(map(str, TASKS))}."
            )
        positives = _id_list(record, "pos_cand_list", where)
        if not positives:
            raise MarvelError(
                f"{where}: query {id} has no positive. Give pos_cand_list at least one candidate "
                f"id, or remove the query."
            )
        return Query(
            id=id,
            item=_item(self.root, id, record, "query_txt", "query_img_path", where),
            task=task,
            positives=positives,
            negatives=_id_list(record, "neg_cand_list", where),
            dataset=int(id.partition(":")[0]),
        )


@dataclass(frozen=True)
class _CandidateMaker:
    root: Path

    def __call__(self, record: dict[str, Any], where: str) -> Candidate:
        id = _id_field(record, "did", where)
        item = _item(self.root, id, record, "txt", "img_path", where)
        return Candidate(id=id, item=item, modality=record.get("modality") or item.modality)


def _item(
    root: Path, id: str, record: dict[str, Any], text_field: str, image_field: str, where: str
) -> Item:
    text, path = record.get(text_field), record.get(image_field)
    for field, value in ((text_field, text), (image_field, path)):
        if value is not None and not isinstance(value, str):
            raise MarvelError(f"{where}: {id} has {field} {value!r}; expected text or null.")
    if not path and not (text and text.strip()):
        raise MarvelError(f"{where}: {id} has neither {text_field} nor {image_field}.")
    return Item.of(text=text, image=root / path if path else None, id=id)


def _id_field(record: dict[str, Any], field: str, where: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not re.fullmatch(r"\d+:\d+", value):
        raise MarvelError(f'{where}: expected {field} as "dataset:number", found {value!r}.')
    return value


def _id_list(record: dict[str, Any], field: str, where: str) -> tuple[str, ...]:
    """Ids as plain strings (the files) or as objects {"did": ...} (the data card)."""
    values = record.get(field) or []
    if not isinstance(values, list):
        raise MarvelError(f"{where}: expected {field} as a list, found {values!r}.")
    ids: list[str] = []
    for value in values:
        id = value.get("did") if isinstance(value, dict) else value
        if not isinstance(id, str):
            raise MarvelError(f"{where}: expected candidate ids in {field}, found {id!r}.")
        ids.append(id)
    return tuple(ids)


def _set_of(path: Path, split: str) -> re.Match[str]:
    """Data set and task of a file of queries."""
    match = _QUERY_FILE.fullmatch(path.name)
    if match is None or int(match["task"]) not in TASKS or match["split"] != split:
        raise MarvelError(
            f"{path}: expected a name like mbeir_DATASET_taskN_{split}.jsonl with N one of "
            f"{', '.join(map(str, TASKS))}."
        )
    return match


def _jsonl_files(folder: Path) -> list[Path]:
    files = sorted(folder.glob("*.jsonl")) if folder.is_dir() else []
    if not files:
        raise MarvelError(f"{folder} holds no .jsonl file of queries.")
    return files


def read_instructions(path: Path) -> dict[InstructionKey, tuple[str, ...]]:
    """Reads query_instructions.tsv: a header, then query modality, candidate modality, data set
    name, data set id, prompts.

    Raises:
      MarvelError: the file is missing, or a line has no data set id or no prompt.
    """
    if not path.is_file():
        raise MarvelError(f"{path} does not exist: the layout needs its table of instructions.")
    table: dict[InstructionKey, tuple[str, ...]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise MarvelError(f"{path} is not UTF-8 text: {error}.") from error
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        columns = line.split("\t")
        prompts = tuple(prompt.strip() for prompt in columns[4:] if prompt.strip())
        if len(columns) < 5 or not columns[3].strip().isdigit() or not prompts:
            raise MarvelError(
                f"{path}, line {number}: expected tab-separated query modality, candidate "
                f"modality, data set name, data set id and at least one prompt; found {line!r}."
            )
        table[int(columns[3]), columns[0].strip(), columns[1].strip()] = prompts
    return table


def read_dataset_names(path: Path) -> dict[str, int]:
    """The data sets' ids by their names in small letters, from query_instructions.tsv."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return {row[2].strip().lower(): int(row[3]) for row in rows if len(row) > 3}
