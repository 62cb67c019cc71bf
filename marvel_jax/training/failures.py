"""A step whose loss or gradient is not finite: what is saved of it, and what is told."""

import math
import shutil
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from marvel_jax.errors import MarvelError
from marvel_jax.files import write_json
from marvel_jax.parallel import hosts
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.state import TrainState

_FOLDER = "failed"
_IDS_TOLD = 3


class NotFiniteError(Exception):
    """The row of a step whose loss or gradient is no number; the loop makes the message of it."""

    def __init__(self, row: dict[str, Any]) -> None:
        super().__init__(f"step {row['step']} is not finite")
        self.row = row


def is_finite(row: dict[str, Any]) -> bool:
    """Whether all that the device told of a step is a number."""
    return all(math.isfinite(value) for value in row.values() if isinstance(value, float))


def save_failure(
    workdir: Path,
    row: dict[str, Any],
    *,
    state: TrainState,
    batch: dict[str, Any],
    config: TrainConfig,
) -> MarvelError:
    """Writes `failed/step-N/` and returns the error to raise.

    The folder holds `state/`, an Orbax checkpoint of the state before the step, and `batch.json`
    with the step's metrics and the ids of its items (`batch`, as `Plan.describe` gives it).
    """
    step = row["step"]
    folder = workdir.resolve() / _FOLDER / f"step-{step}"
    if hosts.is_main():
        shutil.rmtree(folder, ignore_errors=True)
        # JSON has no NaN.
        told = {
            name: value if not isinstance(value, float) or math.isfinite(value) else str(value)
            for name, value in row.items()
        }
        write_json(folder / "batch.json", {"metrics": told, "batch": batch})
    saver = ocp.StandardCheckpointer()
    saved = "The state before the step and all ids of the batch are"
    try:
        saver.save(folder / "state", state._asdict())
        saver.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as error:
        # What went wrong first is what must be told.
        saved = f"The state could not be saved ({error}); all ids of the batch are"
    finally:
        saver.close()
    name = next(
        name for name in row if isinstance(row[name], float) and not math.isfinite(row[name])
    )
    queries = [pair["query"] for pair in batch["pairs"]]
    told_ids = ", ".join(queries[:_IDS_TOLD]) + (", ..." if len(queries) > _IDS_TOLD else "")
    return MarvelError(
        f"the {name.replace('_', ' ')} is {row[name]} at step {step}, at a rate of "
        f"{row['learning_rate']:.3g}, with the {len(queries)} queries {told_ids} in the "
        f"batch. {saved} in {folder}; the checkpoints are whole. Look at those items; "
        f"if they are sound, lower optimizer.learning_rate (now {config.optimizer.learning_rate}) "
        "in a new --workdir. Here the run would go on from its last checkpoint to the same batch."
    )


def notice_of_failure(workdir: Path) -> str | None:
    """What to tell of the steps that failed in an earlier run of this folder."""
    found = sorted((workdir / _FOLDER).glob("step-*/batch.json"))
    if not found:
        return None
    return (
        f"{found[-1].parent} is of a step that was not finite in an earlier run. This one goes on "
        "from the last checkpoint and comes to the same batch: unless a device was at fault, "
        "begin a new --workdir with a lower optimizer.learning_rate, or without the items that "
        f"batch.json names. Remove {workdir / _FOLDER} to be rid of this notice."
    )
