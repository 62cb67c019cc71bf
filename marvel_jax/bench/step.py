"""Pairs and tokens a second of one train step, beside the plain step and beside torch."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from marvel_jax.bench.invented import InventedProcessor, Mix
from marvel_jax.bench.machine import result
from marvel_jax.bench.stopwatch import Lap, lap, median, peak_memory, ratio, take_turns
from marvel_jax.errors import MarvelError

if TYPE_CHECKING:  # what a step needs is imported when one is run
    from marvel_jax.data.batch import Batch
    from marvel_jax.training.config import TrainConfig
    from marvel_jax.training.inputs import Inputs

ONE_FORWARD, GRADCACHE, PLAIN = "one forward", "GradCache", "plain step"
TORCH, TORCH_CACHED = "torch", "torch, cached loss"

# First losses and gradient norms, relative: all contenders take the same step, or none is timed.
AGREEMENT = 1e-4
_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """What to measure.

    `config` is the run whose step it is: model, rows, global batch, mesh. `items` are the config's
    own "corpus", or invented, with the lengths of the quickstart's corpus or of M-BEIR. GradCache
    encodes a shard's rows in `chunks` parts; `mini_batch` is that of torch's cached loss.
    """

    config: "TrainConfig"
    items: Mix | Literal["corpus"] = "emoji"
    chunks: int = 4
    repeats: int = 10
    peers: bool = True
    mini_batch: int = 32

    def __post_init__(self) -> None:
        for name in ("chunks", "repeats", "mini_batch"):
            if getattr(self, name) < 1:
                raise MarvelError(f"{name}={getattr(self, name)}: give at least 1.")
        if self.config.loss.form != "softmax" or not self.config.loss.in_batch_negatives:
            raise MarvelError(
                "the contenders share plain InfoNCE: set loss.form=softmax and "
                "loss.in_batch_negatives=True."
            )


class First(NamedTuple):
    """What a contender's first step found; None where it does not tell."""

    loss: float
    gradient_norm: float | None


class Contender(NamedTuple):
    """One way to take the step, warmed up. Each call of `turn` is one more step."""

    name: str
    turn: Callable[[], Lap]
    first: First
    token_fill: float
    patch_fill: float
    peak_bytes: int | None
    temporary_bytes: int | None = None


def run(options: StepOptions) -> dict[str, Any]:
    """Times all contenders in one run, in turns, on the same items from the same weights.

    A row each: medians over the turns; `peak_mib` is the host memory that a step took beside what
    stood before it, `temporary_mib` what XLA plans for it on a device. Data is prepared before.

    Raises:
      MarvelError: contenders disagree in their first loss or gradient norm.
    """
    config = _comparable(options.config)
    if options.items != "corpus":  # invented ones have a task of their own
        config = dataclasses.replace(
            config, data=dataclasses.replace(config.data, task_weights=None)
        )
    notes = []
    if options.config.loss.symmetric:
        notes.append("symmetric=False for all: the peers have no other direction")
    with ExitStack() as opened:
        inputs = open_items(config, options)
        contenders, items = ours(config, inputs, chunks=options.chunks)
        if options.peers:
            folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="marvel-")))
            found, missing = _peers(config, inputs, items, options, folder, opened)
            contenders += found
            notes += missing
        _agree(contenders)
        laps = take_turns({one.name: one.turn for one in contenders}, repeats=options.repeats)
    rows = [_row(one, laps[one.name], items) for one in contenders]
    ratios = {
        f"{ONE_FORWARD} / {name}": ratio(laps[ONE_FORWARD], laps[name])._asdict()
        for name in laps
        if name != ONE_FORWARD
    }
    told = [
        f"{name}: {found['seconds']:.3f} of the seconds, {found['cpu_seconds']:.3f} of the CPU's"
        for name, found in ratios.items()
    ]
    return result(
        "step",
        rows,
        ratios=ratios,
        items=items.description,
        pairs=items.pairs,
        tokens=items.tokens,
        patches=items.patches,
        row=dataclasses.asdict(config.data.row),
        dtype=config.model.dtype,
        repeats=options.repeats,
        notes=[items.description, *told, *notes],
    )


class BatchItems(NamedTuple):
    """The step's items, whoever takes it."""

    batch: "Batch"  # of the one-forward plan
    pairs: int
    tokens: int
    patches: int
    description: str


def open_items(config: "TrainConfig", options: StepOptions) -> "Inputs":
    """The config's own inputs, or invented ones with its architecture or weights."""
    from marvel_jax.models import hub
    from marvel_jax.models.config import Qwen2VLConfig
    from marvel_jax.training.inputs import Inputs, open_inputs

    if options.items == "corpus":
        return open_inputs(config)
    from marvel_jax.bench import invented

    folder = None
    if config.model.scratch is not None:
        architecture = _with_special_tokens(config.model.scratch)
    else:
        folder = hub.resolve(str(config.model.source))
        architecture = Qwen2VLConfig.from_folder(folder)
    data = config.data
    source = invented.source(
        options.items,
        queries=data.global_batch,
        brought=1 + data.hard_negatives,
        seed=config.seed,
    )
    processor = InventedProcessor(
        source.lengths,
        patch_values=architecture.vision.still_values,
        image_token_id=architecture.image_token_id,
        merge=architecture.vision.spatial_merge_size,
        seed=config.seed,
    )
    stands_in: Any = processor  # for a `Processor`, in all that the plan and the batch ask of it
    return Inputs(source, stands_in, Path(), architecture, folder, None)


def ours(
    config: "TrainConfig", inputs: "Inputs", *, chunks: int
) -> tuple[list[Contender], BatchItems]:
    """The real step in one forward and in `chunks`, and the items of both."""
    from marvel_jax.parallel.mesh import data_shards, make_mesh
    from marvel_jax.training.flops import count_work

    mesh = make_mesh(config.mesh)
    shards = data_shards(mesh)
    whole = _batch(config, inputs, shards=shards)
    rows = len(whole.rows.tokens) // shards
    in_chunks = dataclasses.replace(config, chunk_rows=max(1, -(-rows // chunks)))
    work = count_work(np.asarray(whole.rows.segments), np.asarray(whole.rows.patch_segments))
    pairs = config.data.global_batch
    items = BatchItems(
        batch=whole,
        pairs=pairs,
        tokens=work.tokens,
        patches=work.patches,
        description=f"{pairs} pairs of {inputs.source.fingerprint}: {work.tokens:,} tokens and "
        f"{work.patches:,} patches in {rows} rows a shard of {config.data.row}",
    )
    contenders = [
        _step(ONE_FORWARD, config, inputs, mesh, whole),
        _step(GRADCACHE, in_chunks, inputs, mesh, _batch(in_chunks, inputs, shards=shards)),
    ]
    return contenders, items


def _batch(config: "TrainConfig", inputs: "Inputs", *, shards: int) -> "Batch":
    from marvel_jax.data.pipeline import build_batch
    from marvel_jax.training.prepare import make_plan

    plan = make_plan(config, inputs, shards=shards, cache=None)
    return build_batch(inputs.source, inputs.processor, plan.step(0), range(shards))


def _step(
    name: str, config: "TrainConfig", inputs: "Inputs", mesh: Any, batch: "Batch"
) -> Contender:
    """The train step as a run takes it, compiled, placed and warmed up."""
    import jax

    from marvel_jax.parallel.sharding import put_batch, replicated
    from marvel_jax.training.inputs import place_state
    from marvel_jax.training.optimizer import make_optimizer
    from marvel_jax.training.step import make_train_step

    optimizer = make_optimizer(config.optimizer, steps=config.steps)
    placed = place_state(config, inputs, optimizer, mesh)
    step: Any = make_train_step(
        config,
        inputs.architecture,
        optimizer,
        mesh,
        shardings=placed.shardings,
        frozen_shardings=placed.frozen_shardings,
    )
    there = put_batch(batch, mesh)
    finite = jax.device_put(np.bool_(True), replicated(mesh))
    compiled = step.lower(placed.state, placed.frozen, there, finite).compile()
    state = placed.state

    def take() -> dict[str, Any]:
        nonlocal state
        state, metrics = compiled(state, placed.frozen, there, finite)
        jax.block_until_ready((state, metrics))
        return dict(metrics)

    metrics = take()
    peak = peak_memory(take)
    return Contender(
        name,
        lambda: lap(take),
        First(float(metrics["loss"]), float(metrics["gradient_norm"])),
        *_fill(batch),
        peak_bytes=peak,
        temporary_bytes=compiled.memory_analysis().temp_size_in_bytes,
    )


def _fill(batch: "Batch") -> tuple[float, float]:
    patches = batch.rows.patch_segments
    used = float((patches > 0).mean()) if patches.size else 1.0
    return float((batch.rows.segments > 0).mean()), used


def _peers(
    config: "TrainConfig",
    inputs: "Inputs",
    items: BatchItems,
    options: StepOptions,
    folder: Path,
    opened: ExitStack,
) -> tuple[list[Contender], list[str]]:
    """The plain step and torch's, or a line that says why one is not there."""
    from marvel_jax.bench import peers

    reason = peers.unfit(config, items.batch)
    if reason:
        return [], [f"{PLAIN} and torch left out: {reason}"]
    found, missing = [], []
    root = peers.checkout()
    if root is None:
        missing.append(f"{PLAIN} and torch left out: they are in tests/ of a checkout")
        return [], missing
    weights = peers.host_weights(config, inputs)
    take, first = peers.plain_step(root, config, inputs, items.batch, weights)
    peak = peak_memory(take)
    fill = _fill(items.batch)
    found.append(Contender(PLAIN, lambda: lap(take), First(first, None), *fill, peak_bytes=peak))
    if missing_torch := peers.why_no_torch():
        return found, [f"torch left out: {missing_torch}"]
    child = opened.enter_context(
        peers.TorchSteps(
            root, config, inputs, items.batch, weights, folder, mini_batch=options.mini_batch
        )
    )
    for name, command in ((TORCH, "plain"), (TORCH_CACHED, "cached")):
        told = child.ask(command)
        peak = child.ask(f"{command} memory")["peak_bytes"]
        found.append(
            Contender(
                name,
                lambda command=command: child.lap(command),  # type: ignore[misc]
                First(told["loss"], told["gradient_norm"]),
                told["token_fill"],
                1.0,
                peak_bytes=peak,
            )
        )
    return found, missing


def _agree(contenders: Sequence[Contender]) -> None:
    """Refuses to time contenders that do not take the same step."""
    reference = contenders[0].first
    for one in contenders[1:]:
        for name, value, expected in zip(First._fields, one.first, reference, strict=True):
            if value is None or expected is None:
                continue
            if not abs(value - expected) <= AGREEMENT * abs(expected):
                raise MarvelError(
                    f"{one.name} does not take the same step as {contenders[0].name}: its first "
                    f"{name} is {value:.7g}, not {expected:.7g}. Nothing was timed."
                )


def _row(one: Contender, laps: Sequence[Lap], items: BatchItems) -> dict[str, Any]:
    found = median(laps)
    return {
        "step": one.name,
        "pairs/s": round(items.pairs / found.seconds, 2),
        "tokens/s": round(items.tokens / found.seconds, 1),
        "seconds": round(found.seconds, 5),
        "cpu_seconds": round(found.cpu_seconds, 5),
        "token_fill": round(one.token_fill, 4),
        "patch_fill": round(one.patch_fill, 4),
        "peak_mib": None if one.peak_bytes is None else round(one.peak_bytes / _MIB, 1),
        "temporary_mib": None
        if one.temporary_bytes is None
        else round(one.temporary_bytes / _MIB, 1),
        "first_loss": one.first.loss,
    }


def _comparable(config: "TrainConfig") -> "TrainConfig":
    """The config with what every contender can do: one direction, one rate for all, no decay."""
    return dataclasses.replace(
        config,
        chunk_rows=None,
        loss=dataclasses.replace(config.loss, symmetric=False),
        optimizer=dataclasses.replace(
            config.optimizer, temperature_learning_rate=None, weight_decay=0.0, groups=()
        ),
    )


def _with_special_tokens(architecture: Any) -> Any:
    """The architecture to initialise, with its special tokens at the end of its vocabulary."""
    last = architecture.text.vocab_size - 1
    return dataclasses.replace(
        architecture,
        vision_end_token_id=last,
        vision_start_token_id=last - 1,
        video_token_id=last - 2,
        image_token_id=last - 3,
        bos_token_id=None,
        eos_token_id=None,
    )
