"""The training loop: step, look at the step before, write down, save; and resume where it was."""

import dataclasses
from contextlib import ExitStack, closing
from pathlib import Path
from signal import Signals
from typing import Any, NamedTuple

import jax
import numpy as np

from marvel_jax.data import pipeline
from marvel_jax.parallel import hosts
from marvel_jax.parallel.sharding import local_data_shards, put_batch, replicated
from marvel_jax.training import agreement, failures
from marvel_jax.training.checkpoints import Checkpoints
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.inputs import Inputs
from marvel_jax.training.objective_config import contrasts
from marvel_jax.training.prepare import Prepared, prepare
from marvel_jax.training.profiling import Profiler
from marvel_jax.training.progress import Teller, TrainProgress
from marvel_jax.training.reporting import Reporter
from marvel_jax.training.signals import stop_requests
from marvel_jax.training.state import TrainState
from marvel_jax.training.step import attention_kernels, loss_implementation
from marvel_jax.training.telemetry import Dispatched, Meter, memory_kind
from marvel_jax.training.trackers import EventsFile, MetricsFile, Tracker, open_trackers


class TrainResult(NamedTuple):
    """Where a call to `train` ended; `signal` is what stopped it before the last step."""

    state: TrainState
    inputs: Inputs
    steps: int
    interrupted: bool
    signal: Signals | None = None


@dataclasses.dataclass(frozen=True)
class Watching:
    """How a run is looked at; it changes nothing of the run.

    `profile_steps` are the first and the last step to trace; `peak_tflops` is a device's dense
    peak, for MFU on a device that `flops.peak_tflops` does not know.
    """

    profile_steps: tuple[int, int] | None = None
    peak_tflops: float | None = None


def train(
    config: TrainConfig, workdir: Path | str, *, watching: Watching | None = None
) -> TrainResult:
    """Trains to `config.steps`, or resumes the run that `workdir` holds.

    Every process of the run calls it, with a `workdir` that all of them share. Writes
    `recipe.json`, `base.json`, `blueprint/`, `metrics.jsonl` (one row a step), `events.jsonl` and
    `checkpoints/`. Ctrl-C, SIGTERM and a preemption notice finish the step, save and return with
    `interrupted`; a killed run resumes at its last checkpoint with the same batches, and on the
    CPU ends with the same weights bit for bit.

    Raises:
      MarvelError: `workdir` holds another run, an input is missing or does not fit, the processes
        do not have the same of something (see `agreement`), a checkpoint
        cannot be written, or the loss or a gradient is not a number any more.
    """
    workdir = Path(workdir)
    watching = watching or Watching()
    agreement.require_same_start(config)
    teller = Teller(quiet=not hosts.is_main())
    if notice := failures.notice_of_failure(workdir):
        teller.say(notice)
    prepared = prepare(config, workdir, teller=teller)
    mesh, plan, frozen = prepared.mesh, prepared.plan, prepared.placed.frozen
    with ExitStack() as opened:
        # Left last: a second SIGTERM must not meet a save that is still being written.
        stop = opened.enter_context(stop_requests())
        checkpoints = opened.enter_context(
            closing(Checkpoints(workdir / "checkpoints", config.checkpoint))
        )
        with teller.phase("reading the checkpoint"):
            state, done = _latest_state(prepared, checkpoints)
        trackers = _open_trackers(config, workdir, recipe=prepared.recipe, done=done)
        for tracker in trackers:
            opened.enter_context(closing(tracker))
        events = opened.enter_context(
            closing(EventsFile(workdir / "events.jsonl", quiet=not hosts.is_main()))
        )
        events.write("start", step=done, **_facts(config, prepared))
        profiler = opened.enter_context(Profiler(watching.profile_steps, workdir / "profile"))
        if told := profiler.out_of_reach(done, config.steps):
            teller.say(told)
        progress = opened.enter_context(
            TrainProgress(total=config.steps, done=done, quiet=not hosts.is_main())
        )
        meter = Meter(config, prepared.inputs.architecture, mesh, peak=watching.peak_tflops)
        reporter = Reporter(meter, trackers=trackers, events=events, progress=progress)
        batches = pipeline.batches(
            prepared.inputs.source,
            prepared.inputs.processor,
            plan,
            start_step=done,
            num_steps=config.steps - done,
            shards=local_data_shards(mesh),
            prefetch=config.data.prefetch,
            build=prepared.build,
        )
        finite = jax.device_put(np.bool_(True), replicated(mesh))
        unseen: Dispatched | None = None  # the step that the devices are at
        try:
            for step, batch in meter.timed(batches):
                profiler.before(step)
                with reporter.dispatching(step, batch):
                    state, metrics = prepared.step(state, frozen, put_batch(batch, mesh), finite)
                finite = metrics["finite"]
                # A step late, so that the devices have the next one before they are done.
                if unseen is not None:
                    reporter.report(unseen)
                unseen = Dispatched(step, metrics, *meter.count(batch))
                done = step + 1
                stopping = stop.reached(step)
                saving = stopping or done % config.checkpoint.every == 0 or done == config.steps
                if saving or profiler.is_edge(step):
                    # Nothing is saved before it is known to be finite.
                    reporter.report(unseen)
                    unseen = None
                    if told := profiler.after(step):
                        progress.say(told)
                if saving:
                    with meter.saving():
                        checkpoints.save(state, step=done, metrics=reporter.since_checkpoint())
                    events.write("checkpoint", step=done)
                checkpoints.check()
                if stopping:
                    break
        except failures.NotFiniteError as failure:
            failed = failure.row["step"]
            events.write("not finite", step=failed)
            raise failures.save_failure(
                workdir, failure.row, state=state, batch=plan.describe(failed), config=config
            ) from None
        if stop.signal is not None:
            events.write("stop", step=done, signal=stop.signal.name)
    interrupted = done < config.steps
    return TrainResult(
        state, prepared.inputs, done, interrupted, stop.signal if interrupted else None
    )


def _latest_state(prepared: Prepared, checkpoints: Checkpoints) -> tuple[TrainState, int]:
    """The state to go on from, and how many steps it has behind it."""
    state = prepared.placed.state
    if checkpoints.latest() is None:
        return state, 0
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), state
    )
    # Not both at once: a state fills the memory of its devices.
    jax.tree.map(lambda leaf: leaf.delete(), state)
    state = checkpoints.restore(like)
    return state, int(state.step)


def _open_trackers(
    config: TrainConfig, workdir: Path, *, recipe: dict[str, Any], done: int
) -> list[Tracker]:
    """The first process writes down for all."""
    if not hosts.is_main():
        return []
    others = open_trackers(config.tracking, workdir, recipe=recipe, resume_at=done)
    return [MetricsFile(workdir / "metrics.jsonl", resume_at=done), *others]


def _facts(config: TrainConfig, prepared: Prepared) -> dict[str, Any]:
    """What a reader of the metrics must know of this part of the run."""
    mesh, plan = prepared.mesh, prepared.plan
    width = prepared.inputs.architecture.text.hidden_size
    return {
        "jax": jax.__version__,
        "devices": f"{mesh.devices.size} x {mesh.devices.flat[0].device_kind}",
        "processes": jax.process_count(),
        "mesh": dict(mesh.shape),
        "objective": config.objective,
        "loss": (
            loss_implementation(config, shards=plan.num_shards, width=width)
            if contrasts(config)
            else None
        ),
        "attention": attention_kernels(config, prepared.inputs.architecture, mesh).line,
        "row_counts": list(plan.row_counts),
        "refused_negatives": plan.refused_negatives,
        "memory_bytes_of": memory_kind(),
    }
