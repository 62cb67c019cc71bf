"""The training loop: opens the inputs, steps, writes down, and resumes where it stopped."""

import dataclasses
import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax

from marvel_jax.data import lengths, pipeline
from marvel_jax.data.epoch_plan import Plan, PlanConfig
from marvel_jax.errors import MarvelError
from marvel_jax.files import flatten, read_json_object, write_json
from marvel_jax.parallel.mesh import data_shards, make_mesh
from marvel_jax.parallel.sharding import local_data_shards, put_batch
from marvel_jax.training.checkpoints import Checkpoints
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.export import write_blueprint
from marvel_jax.training.inputs import Inputs, open_inputs
from marvel_jax.training.optimizer import make_optimizer
from marvel_jax.training.state import TrainState, create_state, initial_params
from marvel_jax.training.step import make_train_step
from marvel_jax.training.trackers import MetricsFile, TrainProgress

_RECIPE = "recipe.json"


class TrainResult(NamedTuple):
    """Where a call to `train` ended."""

    state: TrainState
    inputs: Inputs
    steps: int
    interrupted: bool


def train(config: TrainConfig, workdir: Path | str) -> TrainResult:
    """Trains to `config.steps`, or resumes the run that `workdir` holds.

    Writes `recipe.json`, `metrics.jsonl` (one row a step) and `checkpoints/`. Ctrl-C finishes the
    step, saves and returns with `interrupted`; a killed run resumes at its last checkpoint with
    the same batches, and on the CPU ends with the same weights bit for bit.

    Raises:
      MarvelError: `workdir` holds another run, an input is missing or does not fit, or the loss
        is not a number any more.
    """
    workdir = Path(workdir)
    inputs = open_inputs(config)
    described = describe(config, inputs)
    require_same_run(workdir, described)
    mesh = make_mesh(config.mesh)
    shards = data_shards(mesh)
    if config.data.global_batch % shards:
        raise MarvelError(
            f"data.global_batch={config.data.global_batch} is not a multiple of the {shards} data "
            f"shards of the mesh: use {-(-config.data.global_batch // shards) * shards}."
        )
    plan = make_plan(config, inputs, shards=shards, cache=workdir)
    # Only now: a config that cannot be trained must not keep the folder for itself.
    write_json(workdir / _RECIPE, described)
    write_blueprint(workdir, inputs, config.embedding)
    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    params = initial_params(
        inputs.architecture,
        seed=config.seed,
        model=inputs.model,
        optimizer=config.optimizer,
        temperature=inputs.temperature,
    )
    state, shardings = create_state(
        params, optimizer, inputs.architecture, mesh, rules=config.sharding
    )
    step_fn = make_train_step(config, inputs.architecture, optimizer, mesh, shardings=shardings)
    with ExitStack() as opened:
        checkpoints = opened.enter_context(closing(Checkpoints(workdir / "checkpoints")))
        done = 0
        if checkpoints.latest() is not None:
            state = checkpoints.restore(state)
            done = int(state.step)
        metrics_file = opened.enter_context(
            closing(MetricsFile(workdir / "metrics.jsonl", resume_at=done))
        )
        batches = pipeline.batches(
            inputs.source,
            inputs.processor,
            plan,
            start_step=done,
            num_steps=config.steps - done,
            shards=local_data_shards(mesh),
            prefetch=config.data.prefetch,
        )
        stop = opened.enter_context(_stop_on_ctrl_c())
        progress = opened.enter_context(TrainProgress(total=config.steps, done=done))
        started = time.perf_counter()
        for step, batch in batches:
            state, metrics = step_fn(state, put_batch(batch, mesh))
            row = {name: float(value) for name, value in jax.device_get(metrics).items()}
            seconds, started = time.perf_counter() - started, time.perf_counter()
            row |= {"step": step, "seconds": round(seconds, 4), "rows": batch.rows.tokens.shape[0]}
            row |= _fill(batch)
            _check_finite(row, config)
            metrics_file.write(row)
            done = step + 1
            progress.update(
                done,
                loss=row["loss"],
                temperature=row["temperature"],
                pairs_per_second=config.data.global_batch / seconds,
            )
            if stop or done % config.checkpoint_every == 0 or done == config.steps:
                checkpoints.save(state, step=done)
            if stop:
                break
    return TrainResult(state, inputs, done, interrupted=done < config.steps)


def make_plan(config: TrainConfig, inputs: Inputs, *, shards: int, cache: Path | None) -> Plan:
    """The order, labels and packing of every step, from the config and the items' lengths."""
    config_of_plan = PlanConfig(
        global_batch=config.data.global_batch,
        seed=config.seed,
        row=config.data.row,
        task_weights=config.data.task_weights,
    )
    index = lengths.index(inputs.source, inputs.processor, cache=cache)
    return Plan(index, config_of_plan, num_shards=shards)


def require_same_run(workdir: Path, described: dict[str, Any]) -> None:
    """Holds a run against the one whose `recipe.json` is in the folder, if there is one.

    Raises:
      MarvelError: the folder belongs to a run with another config or other data.
    """
    path = workdir / _RECIPE
    if not path.exists():
        return
    ours = flatten(described, separator=".")
    theirs = flatten(read_json_object(path), separator=".")
    names = ours.keys() | theirs.keys()
    differing = sorted(name for name in names if ours.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        raise MarvelError(
            f"{workdir} holds a run with other settings ({', '.join(differing[:5])}): {name} was "
            f"{theirs.get(name)!r} and is now {ours.get(name)!r}. Resume with the old settings, or "
            "choose another --workdir."
        )


def describe(config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    """What decides the result of a run: its config and the content of its data and weights."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    # The mesh and the pace of saving may change between resumes.
    for key in ("mesh", "sharding", "checkpoint_every"):
        plain.pop(key)
    # A folder that has moved is the same folder: content counts, not its path.
    plain["data"].pop("path")
    plain["data"].pop("prefetch")
    plain["model"].pop("source")
    return {
        "config": plain,
        "data": inputs.source.fingerprint,
        "weights": inputs.weights_hash,
        "processor": inputs.processor.fingerprint,
        "architecture": json.loads(json.dumps(dataclasses.asdict(inputs.architecture))),
    }


def _check_finite(row: dict[str, Any], config: TrainConfig) -> None:
    # The gradient too: it spoils the weights a step before the loss shows it.
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(row[name]):
            raise MarvelError(
                f"the {name} is {row[name]} at step {row['step']}, at a rate of "
                f"{row['learning_rate']:.3g}: lower optimizer.learning_rate (now "
                f"{config.optimizer.learning_rate}) in a new --workdir."
            )


def _fill(batch: Any) -> dict[str, float]:
    patches = batch.rows.patch_segments
    return {
        "token_fill": round(float((batch.rows.segments > 0).mean()), 4),
        "patch_fill": round(float((patches > 0).mean()), 4) if patches.size else 1.0,
    }


class _Stop:
    def __init__(self) -> None:
        self.asked = False

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def _stop_on_ctrl_c() -> Iterator[_Stop]:
    """The first Ctrl-C asks the loop to stop; a second one interrupts at once."""
    stop = _Stop()

    def ask(signum: int, frame: Any) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    try:
        previous = signal.signal(signal.SIGINT, ask)
    except ValueError:  # not the main thread: whoever owns it decides
        yield stop
        return
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
