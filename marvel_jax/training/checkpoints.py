"""Orbax checkpoints of a train state: asynchronous, sharded, kept few."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from marvel_jax.errors import MarvelError
from marvel_jax.training.state import TrainState

_ITEM = "default"  # Orbax's name for what is saved when there is one thing only


class Checkpoints:
    """The `checkpoints/` of a run; a step's folder appears only when it is whole."""

    def __init__(self, folder: Path | str, *, keep: int = 2, create: bool = True) -> None:
        """Opens the folder; `create` makes it, for a run that is going to save.

        Raises:
          MarvelError: the folder is not there and is not to be made.
        """
        self._folder = Path(folder).resolve()
        if not create and not self._folder.is_dir():
            raise MarvelError(f"{self._folder} holds no checkpoint: train first.")
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=create)
        self._manager = ocp.CheckpointManager(
            self._folder, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

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
          MarvelError: there is none, it cannot be read, or its parameters have other shapes.
        """
        step = self._existing(step)
        self._check_shapes(step, like.params)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like._asdict())
        try:
            found = self._manager.restore(step, args=ocp.args.StandardRestore(target))
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._unreadable(step, error) from error
        return TrainState(**found)

    def restore_params(self) -> tuple[int, dict[str, Any]]:
        """(step, parameters as host arrays) of the newest checkpoint, whatever mesh made it.

        Optimiser moments are not read.

        Raises:
          MarvelError: there is none, or it cannot be read.
        """
        step = self._existing(None)
        stored = self._stored(step)
        # To host memory: the devices that the checkpoint was saved from need not be here.
        kind = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        arguments = ocp.args.PyTreeRestore(
            item={"params": stored}, restore_args={"params": kind}, partial_restore=True
        )
        reader = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
        try:
            found = reader.restore(self._folder / str(step) / _ITEM, args=arguments)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._unreadable(step, error) from error
        return step, found["params"]

    def wait(self) -> None:
        """Returns when every started save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then releases the folder."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _existing(self, step: int | None) -> int:
        found = self.latest() if step is None else step
        if found is None:
            raise MarvelError(f"{self._folder} holds no checkpoint: train first.")
        return found

    def _stored(self, step: int) -> Any:
        """What is known of a checkpoint's parameters without reading them: a tree with shapes."""
        try:
            return self._manager.item_metadata(step)["params"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise self._unreadable(step, error) from error

    def _check_shapes(self, step: int, params: Any) -> None:
        # Orbax would find a difference too, amid thousands of lines and without the name.
        stored, wanted = _shapes(self._stored(step)), _shapes(params)
        differing = sorted(
            name for name in stored.keys() | wanted.keys() if stored.get(name) != wanted.get(name)
        )
        if differing:
            name = differing[0]
            raise MarvelError(
                f"{self._folder / str(step)} does not fit this config: {name} has shape "
                f"{stored.get(name, 'none')} there, {wanted.get(name, 'none')} here "
                f"({len(differing)} such of {len(wanted)}). Use the config it was trained with, or "
                "another --workdir."
            )

    def _unreadable(self, step: int, error: Exception) -> MarvelError:
        cause = str(error).strip().splitlines()
        return MarvelError(
            f"{self._folder / str(step)} cannot be read ({cause[0] if cause else error!r}). "
            "Remove that folder to go on from the checkpoint before it."
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """{"model/language/norm/scale": (64,), ...}."""
    return {
        "/".join(str(getattr(key, "key", key)) for key in path): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
