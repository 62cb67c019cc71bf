"""`marvel study ...`: many trials of one recipe, on one machine or many, and what they say."""

import itertools
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, UseAppendAction, arg
from tyro.extras import SubcommandApp

from marvel_jax.cli_flags import Json
from marvel_jax.recipes.outcome import Outcome

study = SubcommandApp()

_File = Annotated[Positional[Path], arg(help="A Python file that defines `study`.")]
_Size = Annotated[
    Literal["full", "tiny"], arg(help="tiny: the file's `tiny`, to see every trial work.")
]
_Workdir = Annotated[
    Path, arg(help="Folder of all studies: they share what is the same in their trials.")
]


@study.command(name="run")
def run_study(
    file: _File,
    *,
    workdir: _Workdir,
    size: _Size = "full",
    trial: Annotated[int | None, arg(help="Only the trial of this number, from 1.")] = None,
    limit: Annotated[int | None, arg(help="At most so many trials now.")] = None,
    retry: Annotated[bool, arg(help="Run failed trials again.")] = False,
    dry_run: Annotated[bool, arg(help="Tell the trials and what is left to do.")] = False,
    json: Json = False,
) -> Outcome:
    """Runs the trials that have not ended; one that fails is written down, and the others go on.

    Run it again after an interruption and it goes on where it stopped.
    """
    from marvel_jax.studies.commands import run

    return run(file, workdir, size=size, trial=trial, limit=limit, retry=retry, dry_run=dry_run)


@study.command(name="schedule")
def schedule_study(
    file: _File,
    *,
    workdir: _Workdir,
    cluster: Annotated[Literal["slurm", "gke-gpu", "gke-tpu"], arg(name="for", help="For what.")],
    out: Annotated[Path, arg(help="The file to write.")],
    size: _Size = "full",
    at_once: Annotated[
        int | None, arg(help="Slurm: at most so many trials at the same time.")
    ] = None,
    launch: Annotated[
        Path | None, arg(help="Folder of slurm.sbatch and the manifests; else the checkout's.")
    ] = None,
    json: Json = False,
) -> Outcome:
    """Writes a Slurm array script, or GKE JobSets, whose tasks run one trial each."""
    from marvel_jax.studies.commands import schedule

    return schedule(
        file, workdir, cluster=cluster, out=out, size=size, at_once=at_once, launch=launch
    )


@study.command(name="plan")
def plan_study(
    file: _File,
    *,
    topology: Annotated[
        tuple[str, ...], arg(help="gpu:h100:64, tpu:v5e:8x8, cpu:8, ...; each for every point.")
    ],
    stage: Annotated[
        str | None, arg(help="The training that is planned; without it, the recipe's last.")
    ] = None,
    size: _Size = "full",
    lengths: Annotated[
        Literal["mbeir", "corpus"],
        arg(help="Lengths of the items: M-BEIR's mix, or those of the config's own data."),
    ] = "mbeir",
    training: Annotated[
        UseAppendAction[tuple[tuple[str, ...], ...]],
        arg(help="Changes to every training, as: --training mesh.fsdp=8 chunk_rows=4"),
    ] = (),
    out: Annotated[Path | None, arg(help="A .csv or .json file for the table.")] = None,
    json: Json = False,
) -> Outcome:
    """Compiles the step of every point for machines that need not be here: bytes of a device,
    operations, time of a step, devices and hours.

    A point that does not fit, or cannot be, is listed with the reason.
    """
    from marvel_jax.studies.commands import plan

    return plan(
        file,
        topology,
        stage=stage,
        size=size,
        lengths=lengths,
        trainings=tuple(itertools.chain.from_iterable(training)),
        out=out,
    )


@study.command(name="report")
def report_study(
    folder: Annotated[
        Positional[Path], arg(help="A study's folder, WORKDIR/NAME; or WORKDIR, for all of them.")
    ],
    *,
    json: Json = False,
) -> Outcome:
    """Fits, plots and a page from the trials that have ended."""
    from marvel_jax.studies.commands import report

    return report(folder)
