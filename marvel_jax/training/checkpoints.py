"""Orbax checkpoints of a train state: asynchronous, sharded, the last few and the best few."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp

from marvel_jax.errors import MarvelError
from marvel_jax.parallel import hosts
from marvel_jax.training.config import CheckpointConfig
from marvel_jax.training.quiet import QuietSaving
from marvel_jax.training.state import TrainState

_ITEM = "default"  # Orbax's name for what is saved when there is one thing only
# Where Orbax moves a checkpoint that is not kept. A rename is whole or not at all: a process that
# is killed while it deletes leaves no half of a checkpoint under the name of a whole one.
_DISCARDED = ".discarded"

# Which end of a metric is the good one.
_LOWER_IS_BETTER = {"loss": True, "accuracy": False, "positive_similarity": False}

_LARGE_BYTES = 1 << 20

# TensorStore raises ValueError, whatever it was.
_UNWRITABLE = (OSError, ValueError)
_DISK = re.compile(r"os_error|Failed writing")
_UNREADABLE = (ValueError, KeyError, TypeError, OSError)


class Checkpoints:
    """The `checkpoints/` of a run; a step's folder appears only when it is whole."""

    def __init__(
        self,
        folder: Path | str,
        config: CheckpointConfig | None = None,
    ) -> None:
        """Opens the folder, made if it is not there; every process of the run does it."""
        self._folder = Path(folder).resolve()
        config = config or CheckpointConfig()
        self._saving: int | None = None
        self._quiet = QuietSaving()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=_options(config),
            item_handlers=ocp.PyTreeCheckpointHandler(type_handler_registry=_array_types()),
        )
        self._sweep()

    def latest(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(
        self, state: TrainState, *, step: int, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Starts to save the state reached after `step` steps; returns before it is on disk.

        `metrics` are what `keep_best` compares. What the devices still compute is waited for.

        Raises:
          MarvelError: this save, or the one before it, could not be written.
        """
        if step == self._manager.latest_step():
            return
        self.wait()
        self._saving = step
        self._quiet.start()
        try:
            self._manager.save(
                step,
                args=ocp.args.PyTreeSave(state._asdict()),
                metrics=dict(metrics) if metrics is not None else None,
                # Ours is the decision when to save.
                force=True,
            )
        except _UNWRITABLE as error:
            self._refuse(error)

    def check(self) -> None:
        """Looks, without waiting, whether a save in the background has failed.

        Raises:
          MarvelError: it has; the checkpoints before it are whole.
        """
        if self._saving is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Returns when every started save is on disk.

        Raises:
          MarvelError: one could not be written; the checkpoints before it are whole.
        """
        if self._saving is None:
            return
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except _UNWRITABLE as error:
            self._refuse(error)
        self._saving = None
        self._quiet.stop()
        self._sweep()

    def close(self) -> None:
        """Waits, then releases the folder."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def restore(self, like: TrainState, *, step: int | None = None) -> TrainState:
        """Reads a checkpoint into the shapes and shardings of `like`, arrays or descriptions.

        Any number of processes and devices may read what any other has written.

        Raises:
          MarvelError: there is none, it cannot be read, or its parameters have other shapes.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise _empty(self._folder)
        path = self._folder / str(step)
        _check_shapes(path, like.params)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
        places = ocp.checkpoint_utils.construct_restore_args(target)
        try:
            found = self._manager.restore(
                step, args=ocp.args.PyTreeRestore(item=target, restore_args=places)
            )
        except _UNREADABLE as error:
            raise _unreadable(path, error) from error
        return TrainState(**found)

    def _sweep(self) -> None:
        if hosts.is_main():
            shutil.rmtree(self._folder / _DISCARDED, ignore_errors=True)

    def _refuse(self, error: Exception) -> NoReturn:
        """Tells what is about the disk; anything else is a fault of ours, and is left as it is."""
        step, self._saving = self._saving, None
        if not isinstance(error, OSError) and not _DISK.search(str(error)):
            self._quiet.stop()
            raise error
        self._quiet.let_echoes_pass()
        on_disk = [path.name for path in self._folder.iterdir() if path.name.isdigit()]
        whole = max(map(int, on_disk), default=None)
        remains = "there is none before it" if whole is None else f"that of step {whole} is whole"
        raise MarvelError(
            f"the checkpoint of step {step} could not be written to {self._folder}, and {remains}: "
            f"{_last_cause(error)}. Free some space or mend the disk, then run the same command "
            "again to go on."
        ) from error


def read_params(folder: Path | str, *, step: int | None = None) -> tuple[int, dict[str, Any]]:
    """(step, what was trained as host arrays) of a folder's newest checkpoint, or that of `step`.

    Whatever mesh made it. Optimiser moments are not read. One process does it alone.

    Raises:
      MarvelError: there is none, none of that step, or it cannot be read.
    """
    folder = Path(folder).resolve()
    # Only what is whole has a number for its name.
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    if not steps:
        raise _empty(folder)
    step = max(steps) if step is None else step
    if step not in steps:
        there = ", ".join(map(str, sorted(steps)))
        raise MarvelError(f"{folder} holds no checkpoint of step {step}: there are {there}.")
    path = folder / str(step)
    stored = _stored(path)
    # To host memory: the devices that the checkpoint was saved from need not be here.
    kind = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    arguments = ocp.args.PyTreeRestore(
        item={"params": stored}, restore_args={"params": kind}, partial_restore=True
    )
    reader = ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone()),
        multiprocessing_options=_alone(),
    )
    try:
        found = reader.restore(path / _ITEM, args=arguments)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    return step, found["params"]


def _alone() -> Any:
    """Orbax otherwise waits for the run's other processes."""
    here = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=here, active_processes={here})


def _stored(path: Path) -> Any:
    """What is known of a checkpoint's parameters without reading them: a tree with shapes."""
    reader = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
    try:
        return reader.metadata(path / _ITEM).tree["params"]
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def _check_shapes(path: Path, params: Any) -> None:
    # Orbax would find a difference too, amid thousands of lines and without the name.
    stored, wanted = _shapes(_stored(path)), _shapes(params)
    differing = sorted(
        name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)
    )
    if differing:
        name = differing[0]
        raise MarvelError(
            f"{path} does not fit this config: {name} has shape {stored.get(name, 'none')} there, "
            f"{wanted.get(name, 'none')} here ({len(differing)} such of {len(wanted)}). Use the "
            "config it was trained with, or another --workdir."
        )


def _empty(folder: Path) -> MarvelError:
    return MarvelError(f"{folder} holds no checkpoint: train first.")


def _unreadable(path: Path, error: Exception) -> MarvelError:
    return MarvelError(
        f"{path} cannot be read ({_first_line(error)}). "
        "Remove that folder to go on from the checkpoint before it."
    )


def _array_types() -> Any:
    """Copies of a large array each write a part of it; a small one is not worth cutting up.

    (Cutting is a program to compile for each shape, which held up the first save for seconds.)
    """
    handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=_LARGE_BYTES)
    return ocp.type_handlers.create_type_handler_registry((jax.Array, handler))


def _options(config: CheckpointConfig) -> Any:
    policies = ocp.checkpoint_managers

    def quality(metrics: Mapping[str, float]) -> float:
        return metrics[config.best_metric]

    lower = _LOWER_IS_BETTER[config.best_metric]
    kept = [policies.LatestN(config.keep_last)]
    if config.keep_best:
        best = policies.BestN(
            get_metric_fn=quality,
            reverse=lower,  # the last of the order are kept
            n=config.keep_best,
            keep_checkpoints_without_metrics=False,
        )
        kept.append(best)
    return ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(kept),
        # Only with these two are metrics written; the policy decides.
        best_fn=quality,
        best_mode="min" if lower else "max",
        todelete_subdir=_DISCARDED,
        cleanup_tmp_directories=True,
    )


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), repr(error))


def _last_cause(error: Exception) -> str:
    """What the operating system said, behind the layers of the libraries."""
    line = _first_line(error).split(" [")[0]
    return line.rsplit(": ", 1)[-1] if ": " in line else line


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"model/language/norm/scale": (64,), ...}."""
    return {
        "/".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
