"""What `marvel data check` does."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from marvel_jax.data import doctor
from marvel_jax.data.doctor import Checked, CheckOptions
from marvel_jax.data.doctor_problems import Findings, Severity
from marvel_jax.data.protocols.check import check_set
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import EXIT_ERROR, EXIT_INTERRUPTED, Outcome
from marvel_jax.recipes.protocol_entry import find_protocol

MBEIR = "mbeir"
FORMAT, VERSION = "marvel-data-check", 1


def check_data(
    root: Path, *, options: CheckOptions, out: Path | None, layout: str = MBEIR
) -> Outcome:
    """Looks at a corpus and tells what is wrong with it: 0 if nothing but notes, 1 for errors.

    `layout` is "mbeir", or a test set as `find_protocol` takes it. `out` gets every problem as
    JSON. An interrupted check tells and writes what it has found.

    Raises:
      MarvelError: the folder is no corpus, or `out` cannot be written; told before the check.
    """
    if out is not None and not out.parent.is_dir():
        raise MarvelError(f"{out.parent}, where --out is to be written, is not a folder.")
    entry = None if layout == MBEIR else find_protocol(layout)
    with Findings(keep_all=out is not None) as findings:
        with _bar() as progress:
            if entry is None:
                checked = doctor.check(root, findings, options=options, progress=progress)
            else:
                checked = check_set(entry, root, findings, options=options, progress=progress)
        if out is not None:
            _write(out, root, options, checked, findings)
        errors, notes = findings.count(Severity.ERROR), findings.count(Severity.NOTE)
        facts = {
            "folder": str(root),
            "complete": checked.complete,
            "errors": errors,
            "notes": notes,
            "kinds": {str(kind): count for kind, count in sorted(findings.counts.items())},
            "lines": sum(checked.records.values()),
            "pictures": checked.looked_at,
            "out": None if out is None else str(out),
        }
        lines = _summary(checked, findings, options)
    if out is not None:
        lines.append(f"{out}: every problem, with file and line")
    elif errors or notes:
        lines.append("every problem, with file and line: --out problems.json")
    code = EXIT_ERROR if errors else 0
    return Outcome(facts, lines, code if checked.complete else EXIT_INTERRUPTED)


def _summary(checked: Checked, findings: Findings, options: CheckOptions) -> list[str]:
    lines = []
    if not checked.complete:
        lines.append(f"interrupted while reading {checked.stage}: what was found until then")
    for severity in Severity:
        for kind, samples in sorted(findings.samples.items()):
            if kind.severity is not severity:
                continue
            lines.append(f"{severity} {kind}: {findings.counts[kind]:,}. {kind.meaning}")
            lines += (f"    {sample}" for sample in samples)
            if findings.counts[kind] > len(samples):
                lines.append(f"    and {findings.counts[kind] - len(samples):,} more")
    looked = {
        "headers": f"{checked.looked_at:,} pictures by header and end",
        "decode": f"{checked.looked_at:,} pictures decoded",
        "none": "no picture",
    }[options.images]
    read = f"{len(checked.records):,} files, {sum(checked.records.values()):,} lines, {looked}"
    counted = f"counts from {checked.counts_from}" if checked.counts_from else "counts not compared"
    errors, notes = findings.count(Severity.ERROR), findings.count(Severity.NOTE)
    plural = "" if errors == 1 else "s", "" if notes == 1 else "s"
    lines.append(f"{errors:,} error{plural[0]}, {notes:,} note{plural[1]}: {read}; {counted}")
    return lines


def _write(
    out: Path, root: Path, options: CheckOptions, checked: Checked, findings: Findings
) -> None:
    """One JSON document, written problem by problem: there may be millions."""
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "folder": str(root),
        "complete": checked.complete,
        "interrupted_at": None if checked.complete else checked.stage,
        "images": options.images,
        "counts_from": checked.counts_from,
        "errors": findings.count(Severity.ERROR),
        "notes": findings.count(Severity.NOTE),
        "kinds": findings.by_kind(),
        "lines": checked.records,
        "pictures": {"named": checked.pictures, "looked_at": checked.looked_at},
    }
    partial = out.with_name(f".{out.name}.partial")
    with partial.open("w", encoding="utf-8") as stream:
        stream.write(json.dumps(head, ensure_ascii=False, indent=1).removesuffix("\n}"))
        stream.write(',\n "problems": [')
        for place, line in enumerate(findings.lines()):
            stream.write(f"{',' if place else ''}\n  {line}")
        stream.write("\n ]\n}\n")
    partial.replace(out)


@contextlib.contextmanager
def _bar() -> Iterator[doctor.Progress]:
    """A bar a stage, with the time left, on standard error."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn()
    with Progress(
        *columns, TimeRemainingColumn(elapsed_when_finished=True), console=Console(stderr=True)
    ) as bar:
        tasks = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage)
            bar.update(tasks[stage], completed=done, total=total)

        yield report
