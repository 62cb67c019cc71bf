"""What `marvel study ...` does; `cli_studies.py` parses."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from marvel_jax.errors import MarvelError
from marvel_jax.files import write_json, write_text
from marvel_jax.recipes.outcome import EXIT_INTERRUPTED, Outcome
from marvel_jax.recipes.run_command import joined
from marvel_jax.studies.study import Size, load_study
from marvel_jax.studies.trial import STUDY

if TYPE_CHECKING:
    from marvel_jax.plan.compile import Lengths
    from marvel_jax.studies.schedule import Cluster


def name_of(file: Path, size: Size) -> str:
    """The name of a study: its file's, and another for its tiny version."""
    return file.stem if size == "full" else f"{file.stem}-{size}"


def run(
    file: Path,
    workdir: Path,
    *,
    size: Size,
    trial: int | None,
    limit: int | None,
    retry: bool,
    dry_run: bool,
) -> Outcome:
    """Runs a study's trials, or tells what is left of them."""
    from marvel_jax.studies.run import describe_study, run_study

    if limit is not None and limit < 1:
        raise MarvelError(f"--limit {limit}: give 1 or more, or --dry-run.")
    study, name = load_study(file, size=size), name_of(file, size)
    if dry_run:
        return describe_study(study, workdir, name=name)
    with joined() as say:
        return run_study(study, workdir, name=name, number=trial, limit=limit, retry=retry, say=say)


def schedule(
    file: Path,
    workdir: Path,
    *,
    cluster: "Cluster",
    out: Path,
    size: Size,
    at_once: int | None,
    launch: Path | None,
) -> Outcome:
    """Writes what a cluster's scheduler takes."""
    from marvel_jax.studies.schedule import write_schedule

    study = load_study(file, size=size)
    command = ["study", "run", str(file), "--workdir", str(workdir)]
    if size != "full":
        command += ["--size", size]
    trials = len(study.tasks())
    said = write_schedule(
        out,
        cluster=cluster,
        command=command,
        name=name_of(file, size),
        trials=trials,
        at_once=at_once,
        launch=launch,
    )
    return Outcome({"out": str(out), "trials": trials}, [f"{out}: {trials} trials", said])


def plan(
    file: Path,
    topologies: Sequence[str],
    *,
    stage: str | None,
    size: Size,
    lengths: "Lengths",
    trainings: tuple[str, ...],
    out: Path | None,
) -> Outcome:
    """Plans every point on every topology."""
    from marvel_jax.studies.plan import Row, plan_study, table

    if out is not None and out.suffix not in (".csv", ".json"):
        raise MarvelError(f"--out {out}: give a .csv or a .json file.")
    console = Console(stderr=True)
    rows: list[Row] = []
    code = 0
    planned = plan_study(
        load_study(file, size=size),
        topologies,
        stage=stage,
        lengths=lengths,
        trainings=trainings,
        tell=lambda line: console.print(line, highlight=False, markup=False, soft_wrap=True),
    )
    try:
        rows.extend(planned)
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    finally:  # what is planned is kept, whatever ends the rest
        facts: list[dict[str, Any]] = [row.to_dict() for row in rows]
        if out is not None and rows:
            if out.suffix == ".json":
                write_json(out, facts)
            else:
                write_text(out, _csv(facts))
    return Outcome({"points": facts, "out": out and str(out)}, table(rows), code)


def report(folder: Path) -> Outcome:
    """Writes the report of a study, or of all in a folder."""
    from marvel_jax.studies.report import write_report

    folders = [folder] if (folder / STUDY).is_file() else sorted(folder.glob(f"*/{STUDY}"))
    if not folders:
        raise MarvelError(
            f"{folder} holds no study: give WORKDIR/NAME of `marvel study run`, or WORKDIR."
        )
    if folders != [folder]:
        folders = [one.parent for one in folders]
    pages = [str(write_report(one)) for one in folders]
    return Outcome({"reports": pages}, [f"report: {page}" for page in pages])


def _csv(found: Sequence[dict[str, Any]]) -> str:
    """An axis a column, before those of the figures; of one name, the axis has it."""
    rows = [
        {**one["point"], **{n: v for n, v in one.items() if n != "point"}, **one["point"]}
        for one in found
    ]
    names = list(dict.fromkeys(name for row in rows for name in row))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()
