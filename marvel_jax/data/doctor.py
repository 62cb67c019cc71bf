"""The data doctor: everything that is wrong with a corpus in the M-BEIR layout, in one pass."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from marvel_jax.data import doctor_ids
from marvel_jax.data.doctor_counts import absent_files, file_counts
from marvel_jax.data.doctor_ids import IdTable
from marvel_jax.data.doctor_images import look
from marvel_jax.data.doctor_instructions import Use, check_instructions
from marvel_jax.data.doctor_layout import Layout, LayoutFile, Role, query_name, read_layout
from marvel_jax.data.doctor_lines import (
    InstructionKey,
    LineFacts,
    join_facts,
    read_stretch,
    split_bytes,
)
from marvel_jax.data.doctor_pictures import Pictures
from marvel_jax.data.doctor_problems import Findings, Problem
from marvel_jax.data.doctor_workers import Workers, available_cores
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mbeir_counts import CountsFrom, Expected, expected_counts

Images = Literal["headers", "decode", "none"]
Progress = Callable[[str, int, int], None]  # (stage, done, in all)

_WORTHWHILE = 4  # tasks' worth of work from which processes of their own pay for their start


@dataclass(frozen=True)
class CheckOptions:
    """What is looked at, and by how many processes (None: one a core).

    A process reads `stretch` bytes of lines, or `pictures` pictures, at a time.
    """

    images: Images = "headers"
    counts: CountsFrom = "auto"
    jobs: int | None = None
    stretch: int = 8 << 20
    pictures: int = 512


@dataclass
class Checked:
    """How far a check came.

    Attributes:
      complete: False if it was interrupted; `stage` is then what it was at.
      records: lines that are not blank, by file, of the files read.
      pictures: how many different ones the lines name.
      looked_at: how many of them were looked at.
      counts_from: where the expected counts are from; None if nothing was expected.
    """

    complete: bool = False
    stage: str = "layout"
    records: dict[str, int] = field(default_factory=dict)
    pictures: int = 0
    looked_at: int = 0
    counts_from: str | None = None


def check(
    root: Path | str,
    findings: Findings,
    *,
    options: CheckOptions | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Looks at a whole corpus, whatever is wrong with it, and adds what it finds to `findings`.

    Files are read in stretches by several processes; what they find comes in the order of the
    files and lines whatever their number. An interruption (Ctrl-C) ends it early. Memory is about
    60 bytes a line, whatever is wrong.

    Raises:
      MarvelError: the folder has no folder query/, or its manifest is broken.
    """
    options = CheckOptions() if options is None else options
    root = MbeirFolder(root).root
    expected = expected_counts(root, options.counts)
    checked = Checked(counts_from=None if expected is None else expected.source)
    try:
        with Workers(available_cores() if options.jobs is None else options.jobs) as workers:
            run = _Check(read_layout(root), findings, checked, options, workers, expected, progress)
            run.all()
    except KeyboardInterrupt:
        return checked
    checked.complete = True
    return checked


@dataclass
class _Check:
    layout: Layout
    findings: Findings
    checked: Checked
    options: CheckOptions
    workers: Workers
    expected: Expected | None
    progress: Progress | None
    tables: dict[str, IdTable] = field(default_factory=dict)
    used: dict[InstructionKey, Use] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pictures = Pictures(self.layout)

    def all(self) -> None:
        self._add(self.layout.problems)
        self.checked.stage = "lines"
        self._lines()
        self.checked.stage = "instructions"
        self._add(check_instructions(self.layout.root, self.used))
        if self.expected is not None:
            self._add(absent_files(self.expected, self.layout))
        self.checked.stage = "pictures"
        self._pictures()

    def _add(self, problems: Iterable[Problem]) -> None:
        for problem in problems:
            self.findings.add(problem)

    def _tell(self, stage: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(stage, done, total)

    # --- lines -----------------------------------------------------------------------------------

    def _lines(self) -> None:
        by_file = [
            split_bytes(self.layout.root, file, self.options.stretch) for file in self.layout.files
        ]
        stretches = [stretch for stretches in by_file for stretch in stretches]
        total = sum(stretch.end - stretch.start for stretch in stretches)
        worthwhile = total >= _WORTHWHILE * self.options.stretch
        found = self.workers.map(read_stretch, stretches, worthwhile=worthwhile)
        done = 0
        for number, file in enumerate(self.layout.files):
            parts = []
            before = 0
            for stretch in by_file[number]:
                part = next(found)
                for problem in part.problems:
                    self.findings.add(problem._replace(line=before + (problem.line or 0)))
                part.problems = []
                before += part.lines
                parts.append(part)
                done += stretch.end - stretch.start
                self._tell("lines", done, total)
            self._file(number, file, join_facts(parts) if parts else None)

    def _file(self, number: int, file: LayoutFile, facts: LineFacts | None) -> None:
        self.checked.records[file.name] = 0 if facts is None else facts.records
        if facts is not None:
            table = IdTable.of(file, facts)
            match file.role:
                case Role.POOL:
                    self._pool(file, table)
                case Role.QUERIES:
                    self._queries(file, facts, table)
                case Role.QRELS:
                    self._qrels(file, facts)
            if self.options.images != "none":
                self.pictures.add(number, facts)
        if self.expected is not None:
            queries = self.tables.get(query_name(file))
            count = None if queries is None else len(queries.ids)
            found = self.checked.records[file.name]
            self._add(file_counts(self.expected, file, facts, records=found, queries=count))

    def _pool(self, file: LayoutFile, table: IdTable) -> None:
        self.tables[file.name] = table
        self._add(doctor_ids.duplicates(table))
        union = self.tables.get(self.layout.union_pool("test") or "")
        if union is not None and file.name in self._test_pools():
            self._add(doctor_ids.not_in_union(table, union))

    def _queries(self, file: LayoutFile, facts: LineFacts, table: IdTable) -> None:
        # The union file repeats the queries of small sets.
        if not file.is_union:
            self.tables[file.name] = table
            self._add(doctor_ids.duplicates(table))
        local, others = self._pools_of(file)
        union = self.tables.get(self.layout.union_pool(str(file.split)) or "")
        pools = [*local, *others] if union is None else [union]
        if pools:
            self._add(doctor_ids.dangling_links(file, facts, pools))
        for key, (count, line) in facts.instructions.items():
            known = self.used.get(key, Use(0, file.name, line))
            self.used[key] = known._replace(queries=known.queries + count)

    def _qrels(self, file: LayoutFile, facts: LineFacts) -> None:
        queries = self.tables.get(query_name(file))
        local, others = self._pools_of(file)
        self._add(doctor_ids.dangling_qrels(file, facts, queries, [*local, *others]))
        if queries is not None:
            self._add(doctor_ids.without_relevant(file, facts, queries))
            if local:
                self._add(doctor_ids.out_of_reach(file, facts, queries, local[0], others))

    def _pools_of(self, file: LayoutFile) -> tuple[list[IdTable], list[IdTable]]:
        """The local pool of a file's candidates, and the global ones, of those that there are.

        Training has no local pool. Validation is judged in the union pool of test too.
        """
        split = str(file.split)
        local = None
        if file.set is not None and split != "train":
            local = self.layout.local_pool(file.set, split)
        unions = [self.layout.union_pool(split)]
        if split not in ("train", "test"):
            unions.append(self.layout.union_pool("test"))
        tables = self.tables
        own = [tables[local]] if local in tables else []
        return own, [tables[name] for name in unions if name in tables]

    def _test_pools(self) -> set[str | None]:
        return {
            self.layout.local_pool(file.set, "test")
            for file in self.layout.files
            if file.role is Role.QUERIES and file.split == "test" and file.set is not None
        }

    # --- pictures --------------------------------------------------------------------------------

    def _pictures(self) -> None:
        self._add(self.pictures.absent_folders())
        tasks = self.pictures.tasks(self.options.pictures, decode=self.options.images == "decode")
        self.checked.pictures = total = sum(len(task.offsets) for task in tasks)
        worthwhile = total >= _WORTHWHILE * self.options.pictures
        done = 0
        results = self.workers.map(look, tasks, worthwhile=worthwhile)
        for task, looked in zip(tasks, results, strict=True):
            self._add(looked.problems)
            self.checked.looked_at += looked.looked_at
            done += len(task.offsets)
            self._tell("pictures", done, total)
