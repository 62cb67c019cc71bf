"""Orbax checkpoints of a train state: asynchronous, sharded, kept few."""

from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from marvel_jax.errors import MarvelError
from marvel_jax.training.state import TrainState


class Checkpoints:
    """The `checkpoints/` of a run; a step's folder appears only when it is whole."""

    def __init__(self, folder: Path | str, *, keep: int = 2) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
        self._folder = Path(folder).resolve()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def latest(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        return self._manager.latest_step()

    def save(self, state: TrainState, *, step: int) -> None:
        """Starts to save the state reached after `step` steps; returns before it is on disk."""
        if step != self._manager.latest_step():
            self._manager.save(step, args=ocp.args.StandardSave(state._asdict()))

    def restore(self, like: TrainState, *, step: int | None = None) -> TrainState:
        """Reads a checkpoint into the shapes and shardings of `like` (any number of hosts).

        Raises:
          MarvelError: there is none, or it holds other shapes than the config makes.
        """
        step = self.latest() if step is None else step
        if step is None:
            raise MarvelError(f"{self._folder} holds no checkpoint: train first.")
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
        try:
            found = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError, TypeError) as error:
            raise MarvelError(
                f"{self._folder}/{step} does not fit this config: {error}. Use the config it was "
                "trained with, or another --workdir."
            ) from error
        return TrainState(**found)

    def restore_params(self) -> tuple[int, dict[str, Any]]:
        """(step, parameters as host arrays) of the newest checkpoint, whatever mesh made it.

        Raises:
          MarvelError: there is none.
        """
        step = self.latest()
        if step is None:
            raise MarvelError(f"{self._folder} holds no checkpoint: train first.")
        found = self._manager.restore(step, args=ocp.args.StandardRestore())
        return step, jax.device_get(found["params"])

    def wait(self) -> None:
        """Returns when every started save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the folder."""
        self._manager.wait_until_finished()
        self._manager.close()
