"""What a trial of a study came to: one JSON file each, in the study's folder.

STUDY/study.json        name, axes, metrics, seeds, and which trials belong to it
STUDY/trials/KEY.json   one trial
STUDY/runs/KEY/         where it ran: links to its stages, which lie beside the studies
STUDY/report/           what `marvel study report` writes
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object, write_json

STUDY, TRIALS, RUNS, REPORT = "study.json", "trials", "runs", "report"

Value = float | int | str | bool
Status = Literal["done", "failed"]


@dataclass(frozen=True)
class Trial:
    """One run of the base recipe.

    Attributes:
      key: a hash of everything that decides the result: every stage's fields and the content of
        what comes from outside. Trials of one key are one computation, whatever study asks.
      point: name of an axis -> its value.
      seed: of the trial.
      status: "failed" where a stage refused or crashed, or the point makes no recipe.
      error: why it failed; None where it is done.
      metrics: scores ("hit@5 t->i local", "mean global"), "loss" of the last steps, and what it
        took: "flops" (analytic, of all training), "tokens", "pairs", "parameters", "seconds".
      folder: where its run lies, relative to the study's folder.
    """

    key: str
    point: dict[str, Value]
    seed: int
    status: Status
    error: str | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    folder: str = ""

    def __post_init__(self) -> None:
        if self.status not in ("done", "failed") or (self.status == "failed") != bool(self.error):
            raise MarvelError(
                f"trial {self.key}: status={self.status!r} with error={self.error!r}: a failed "
                "trial has an error, and one that is done has none."
            )


def trial_path(folder: Path, key: str) -> Path:
    """The file of a trial in a study's folder."""
    return folder / TRIALS / f"{key}.json"


def write_trial(folder: Path, trial: Trial) -> None:
    """Writes one trial of the study in `folder`, whole or not at all."""
    write_json(trial_path(folder, trial.key), dataclasses.asdict(trial))


def read_trial(path: Path) -> Trial:
    """One trial's file.

    Raises:
      MarvelError: it is missing or is no trial.
    """
    found: dict[str, Any] = read_json_object(path)
    try:
        return Trial(**found)
    except TypeError as error:
        raise MarvelError(
            f"{path} is no trial of a study ({error}): remove it and run the study again."
        ) from error


def read_trials(folder: Path) -> list[Trial]:
    """The trials of a study's folder that have ended, in the order of the study.

    Those of an earlier version of the study, at points that it no longer has, are left out.

    Raises:
      MarvelError: the folder holds no study, or a file of it is damaged.
    """
    folder = Path(folder)
    if not (folder / STUDY).is_file():
        raise MarvelError(
            f"{folder} holds no {STUDY}: give the folder of a study, WORKDIR/NAME of `marvel "
            "study run`."
        )
    listed = read_json_object(folder / STUDY).get("trials")
    if listed is None:
        paths = sorted((folder / TRIALS).glob("*.json"))
    else:
        keys = dict.fromkeys(one["key"] for one in listed)
        paths = [path for key in keys if (path := trial_path(folder, key)).is_file()]
    return [read_trial(path) for path in paths]
