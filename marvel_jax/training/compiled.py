"""The train step, compiled for each shape of batch by all processes before any of them runs it."""

from typing import Any

import jax

from marvel_jax.parallel import hosts
from marvel_jax.training.state import TrainState
from marvel_jax.training.step import Metrics


class CompiledStep:
    """The jitted step of `training.step`, called as it is.

    Left to `jit`, the process that has compiled first would run and wait for the others, who may
    still compile for a minute; a network of CPUs (gloo) takes such silence for a death.
    """

    def __init__(self, step: Any) -> None:
        self._step = step
        self._programs: dict[Any, Any] = {}

    def __call__(
        self, state: TrainState, frozen: dict[str, Any], batch: Any, finite: jax.Array
    ) -> tuple[TrainState, Metrics]:
        arguments = (state, frozen, batch, finite)
        shapes = tuple(leaf.shape for leaf in jax.tree.leaves(batch))
        if shapes not in self._programs:
            self._programs[shapes] = hosts.together(self._step.lower(*arguments).compile)
        return self._programs[shapes](*arguments)
