"""What it takes to trace and compile the train step, by how deep the model is."""

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from marvel_jax.bench.machine import result
from marvel_jax.bench.stopwatch import Lap, lap, median, ratio, take_turns
from marvel_jax.errors import MarvelError

if TYPE_CHECKING:  # what a step needs is imported when one is compiled
    from marvel_jax.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class DepthOptions:
    """The step of `config`, at each number of `layers` in both towers, on invented items."""

    config: "TrainConfig"
    layers: tuple[int, ...] = (4, 28)
    repeats: int = 3

    def __post_init__(self) -> None:
        if not self.layers or min((*self.layers, self.repeats)) < 1:
            raise MarvelError(
                f"layers={self.layers}, repeats={self.repeats}: give one or more of each."
            )
        if self.config.model.scratch is None:
            raise MarvelError(
                f"model.source={self.config.model.source!r}: the depth of given weights is theirs; "
                "give a config with model.scratch."
            )


def run(options: DepthOptions) -> dict[str, Any]:
    """Compiles the step of each depth in turns; a row each: medians, and ratios to the first.

    `program_kib` is the step as it is handed to the compiler, `compiled_kib` what the compiler
    makes of it, both as text. `seconds` and `cpu_seconds` are from nothing to the program: no cache
    of JAX's is used.
    """
    contenders = {layers: _Step(options.config, layers) for layers in options.layers}
    with _without_stored_programs():
        turns = {str(layers): step.compile for layers, step in contenders.items()}
        laps = take_turns(turns, repeats=options.repeats)
    first = str(options.layers[0])
    rows, notes = [], []
    for layers, step in contenders.items():
        found = median(laps[str(layers)])
        rows.append(
            {
                "layers": layers,
                "program_kib": round(step.program_bytes / 1024, 1),
                "compiled_kib": round(step.compiled_bytes / 1024, 1),
                "seconds": round(found.seconds, 2),
                "cpu_seconds": round(found.cpu_seconds, 2),
            }
        )
        if str(layers) != first:
            times = ratio(laps[str(layers)], laps[first])
            size = step.program_bytes / contenders[options.layers[0]].program_bytes
            notes.append(
                f"{layers} layers / {first}: {size:.3f} of the program, {times.seconds:.3f} of the "
                f"seconds, {times.cpu_seconds:.3f} of the CPU's"
            )
    return result("depth", rows, repeats=options.repeats, notes=notes)


@contextlib.contextmanager
def _without_stored_programs() -> Iterator[None]:
    """Keeps JAX from fetching from disk what another run has compiled."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    used = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]

    def use(stored: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", stored)
        compilation_cache.reset_cache()  # or what the first compilation found would stand

    use(False)
    try:
        yield
    finally:
        use(used)


class _Step:
    """The train step of a model so deep, on shapes alone."""

    def __init__(self, config: "TrainConfig", layers: int) -> None:
        import jax

        from marvel_jax.bench.step import StepOptions, open_items
        from marvel_jax.data.pipeline import build_batch
        from marvel_jax.parallel.mesh import data_shards, make_mesh
        from marvel_jax.training.optimizer import make_optimizer
        from marvel_jax.training.prepare import make_plan
        from marvel_jax.training.state import create_state, initial_values

        self._config = config = _so_deep(config, layers)
        inputs = open_items(config, StepOptions(config=config))
        architecture = self._architecture = inputs.architecture
        self._mesh = mesh = make_mesh(config.mesh)
        shards = data_shards(mesh)
        plan = make_plan(config, inputs, shards=shards, cache=None)
        batch = build_batch(inputs.source, inputs.processor, plan.step(0), range(shards))
        self._optimizer = make_optimizer(config.optimizer, steps=config.steps)
        zeros = jax.jit(
            lambda: jax.tree.map(
                lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype),
                jax.eval_shape(
                    lambda: initial_values(config, architecture, weights=None, temperature=None)
                ),
            )
        )
        params, frozen = zeros()
        self._placed = create_state(params, frozen, self._optimizer, config, architecture, mesh)
        self._shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype),
            (self._placed.state, self._placed.frozen, batch, jax.numpy.bool_(True)),
        )
        self.program_bytes = self.compiled_bytes = 0

    def compile(self) -> Lap:
        """From the Python of the step to its program, once more."""
        import jax

        from marvel_jax.training.step import make_train_step

        jax.clear_caches()
        step: Any = make_train_step(
            self._config,
            self._architecture,
            self._optimizer,
            self._mesh,
            shardings=self._placed.shardings,
            frozen_shardings=self._placed.frozen_shardings,
        )
        made: list[Any] = []

        def make() -> None:
            made.append(step.lower(*self._shapes))
            made.append(made[0].compile())

        taken = lap(make)
        lowered, compiled = made
        self.program_bytes = len(lowered.as_text())
        self.compiled_bytes = len(compiled.as_text())
        return taken


def _so_deep(config: "TrainConfig", layers: int) -> "TrainConfig":
    """The config with so many layers in both towers, on items that are all of one task."""
    architecture = config.model.scratch
    assert architecture is not None  # DepthOptions checks it
    architecture = dataclasses.replace(
        architecture,
        text=dataclasses.replace(architecture.text, num_hidden_layers=layers),
        vision=dataclasses.replace(architecture.vision, depth=layers),
    )
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, scratch=architecture),
        data=dataclasses.replace(config.data, task_weights=None),
    )
