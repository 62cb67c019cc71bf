"""Compiles a step for a topology that need not be here, and reads off what it takes."""

import base64
import dataclasses
import pickle
import re
import resource
import time
from typing import Any, Literal, NamedTuple

from marvel_jax.errors import MarvelError
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.parallel.chips import CHIPS
from marvel_jax.parallel.collectives import KINDS, messages
from marvel_jax.parallel.topology import Topology, call_in_child, compile_only_devices
from marvel_jax.plan.batch import Lengths
from marvel_jax.plan.checks import check_heads
from marvel_jax.plan.planned import Planned
from marvel_jax.training.config import TrainConfig

Stage = Literal["train", "encode"]

BATCH_TOKENS = 4096  # of one call of `Embedder.encode`

# Of a GPU kernel's tile, beyond an item's own tokens: half of each side, in tokens.
_TILE = 96


def plan(
    config: TrainConfig,
    topology: str,
    *,
    stage: Stage = "train",
    lengths: Lengths = "mbeir",
    batch_tokens: int = BATCH_TOKENS,
    seconds: float | None = None,
) -> Planned:
    """Compiles the config's step for a topology in a process of its own.

    Args:
      config: the run.
      topology: see `parallel.topology`.
      stage: "train", or "encode": one call of the encoding of a pool, on one device.
      lengths: of the items: M-BEIR's mix, or those of the config's own corpus.
      batch_tokens: of one call of the encoding.
      seconds: after which it is given up.

    Raises:
      MarvelError: the topology does not exist or its compiler is not installed, the mesh does not
        divide devices, batch or heads, or an item does not fit a row.
      TimeoutError: it took longer than `seconds`.
    """
    arguments = {
        "config": base64.b64encode(pickle.dumps(config)).decode(),
        "stage": stage,
        "lengths": lengths,
        "batch_tokens": batch_tokens,
    }
    found = call_in_child(
        "marvel_jax.plan.compile:compile_here",
        topology=topology,
        arguments=arguments,
        seconds=seconds,
    )
    return Planned.from_dict(found)


def compile_here(
    *, topology: str, config: str, stage: Stage, lengths: Lengths, batch_tokens: int
) -> dict[str, Any]:
    """`plan` in a process that was started for the topology."""
    run: TrainConfig = pickle.loads(base64.b64decode(config))
    return plan_here(
        run, topology, stage=stage, lengths=lengths, batch_tokens=batch_tokens
    ).to_dict()


def plan_here(
    config: TrainConfig,
    topology: str,
    *,
    stage: Stage = "train",
    lengths: Lengths = "mbeir",
    batch_tokens: int = BATCH_TOKENS,
) -> Planned:
    """`plan`, in this process: it must have been started for the topology."""
    from marvel_jax.parallel.mesh import MeshConfig, data_shards, make_mesh
    from marvel_jax.plan import batch, program
    from marvel_jax.plan.counted import OTHER, count_products
    from marvel_jax.plan.estimate import estimate
    from marvel_jax.training.step import attention_kernels, loss_implementation

    named = Topology.parse(topology)
    devices = compile_only_devices(topology)
    if stage == "encode":  # every device encodes by itself
        devices = devices[:1]
        config = dataclasses.replace(config, mesh=MeshConfig())
    corpus = batch.corpus_of(config) if lengths == "corpus" else None
    architecture = program.architecture_of(config) if corpus is None else corpus.architecture
    mesh = make_mesh(config.mesh, devices=devices)
    shards = data_shards(mesh)
    check_heads(architecture, tensor=mesh.shape["tensor"])
    kernel = attention_kernels(config, architecture, mesh).line

    loss = "none"
    if stage == "train":
        width = architecture.text.hidden_size
        loss = loss_implementation(config, shards=shards, width=width)
        sizes = batch.train_sizes(config, corpus, shards=shards)
        row = config.data.row
        shapes = batch.train_batch(config, architecture, sizes, shards=shards)
    else:
        sizes, row = batch.encode_sizes(config, corpus, architecture, batch_tokens=batch_tokens)
        rows = batch.rows_of(architecture, row, sizes.rows)

    def trace(of: TrainConfig) -> program.Program:
        if stage == "train":
            return program.trace_train_step(of, architecture, shapes, mesh)
        return program.trace_encode_step(of, architecture, rows, mesh, items=row.items)

    began, cpu = time.perf_counter(), _cpu_seconds()
    traced = trace(config)
    counting = traced
    if "pallas" in kernel or "splash" in kernel or "cudnn" in kernel:
        # What is inside of a kernel cannot be counted from outside.
        plain = dataclasses.replace(config.model, kernel="xla")
        counting = trace(dataclasses.replace(config, model=plain))
    traced_at = time.perf_counter()
    compiled = _compile(traced.traced)
    done_at = time.perf_counter()

    counted = count_products(counting.traced.jaxpr.jaxpr, devices=mesh.size)
    if counting is not traced:
        counted = counted.with_kernels(_visited_pairs(kernel, sizes.work, row, sizes.rows * shards))
    useful = _useful_flops(config, architecture, sizes, stage)
    chip = CHIPS.get(named.chip)
    memory = None if chip is None else chip.usable
    sent = messages(compiled.text)
    speed = None
    if chip is not None and not compiled.refused:
        speed = estimate(
            counted,
            sent,
            chip=chip,
            hosts=[device.process_index for device in mesh.devices.flat],
            useful_flops=useful,
        )
    needed = compiled.needed_bytes
    return Planned(
        topology=topology,
        stage=stage,
        device=devices[0].device_kind,
        devices=mesh.size,
        hosts=len({device.process_index for device in devices}),
        mesh=dict(mesh.shape),
        kernel=kernel,
        loss=loss,
        settings={
            "chunk_rows": config.chunk_rows,
            "remat": config.model.remat,
            "dtype": config.model.dtype,
            "groups": config.mesh.groups,
        },
        items=sizes.queries if stage == "train" else sizes.candidates,
        rows=sizes.rows,
        row_counts=list(sizes.row_counts),
        row=dataclasses.asdict(row),
        token_fill=sizes.token_fill,
        patch_fill=sizes.patch_fill,
        lengths=sizes.source,
        memory_bytes=memory,
        needed_bytes=needed,
        fits=None if memory is None else not compiled.refused and needed <= memory,
        weight_bytes=traced.weight_bytes,
        moment_bytes=traced.moment_bytes,
        batch_bytes=traced.batch_bytes,
        argument_bytes=compiled.argument_bytes,
        temporary_bytes=compiled.temporary_bytes,
        output_bytes=compiled.output_bytes,
        aliased_bytes=compiled.aliased_bytes,
        code_bytes=compiled.code_bytes,
        useful_flops=useful,
        executed_flops=counted.flops * mesh.size,
        loss_flops=counted.flops_of(OTHER) * mesh.size,
        sent=_by_kind(sent),
        trace_seconds=traced_at - began,
        compile_seconds=done_at - traced_at,
        cpu_seconds=_cpu_seconds() - cpu,
        **({} if speed is None else speed._asdict()),
    )


class _Compiled(NamedTuple):
    needed_bytes: int
    refused: bool = False
    text: str = ""
    argument_bytes: int | None = None
    temporary_bytes: int | None = None
    output_bytes: int | None = None
    aliased_bytes: int | None = None
    code_bytes: int | None = None


# A TPU's compiler refuses what is too large, and says by how much: "... (76.90G) exceeds available
# HBM (15.75G)"; older ones "Used 27.95G of 15.75G hbm".
_TOO_LARGE = re.compile(r"\(([\d.]+)([KMGT])\) exceeds available HBM|Used ([\d.]+)([KMGT]) of")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def _compile(traced: Any) -> _Compiled:
    import jax

    try:
        compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        found = _TOO_LARGE.search(str(error))
        if found is None or "RESOURCE_EXHAUSTED" not in str(error):
            first = str(error).strip().splitlines()[0]
            raise MarvelError(f"the step cannot be compiled: {first}") from error
        number, unit = found[1] or found[3], found[2] or found[4]
        return _Compiled(int(float(number) * _UNITS[unit]), refused=True)
    found = compiled.memory_analysis()
    arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
    temporaries, aliased = found.temp_size_in_bytes, found.alias_size_in_bytes
    code = found.generated_code_size_in_bytes
    return _Compiled(
        needed_bytes=arguments + temporaries + outputs - aliased + code,
        text=compiled.as_text(),
        argument_bytes=arguments,
        temporary_bytes=temporaries,
        output_bytes=outputs,
        aliased_bytes=aliased,
        code_bytes=code,
    )


def _visited_pairs(kernel: str, work: Any, row: Any, rows: int) -> dict[str, float]:
    """The share of a row's pairs that a kernel computes: those of the tiles that an item touches.

    The TPU's kernel goes through whole rows.
    """
    if "splash" in kernel:
        return {"language": 1.0, "vision": 1.0}
    text = (work.token_pairs + _TILE * work.tokens) / (rows * row.tokens**2)
    image = (work.patch_pairs + _TILE * work.patches) / max(rows * row.patches**2, 1)
    return {"language": min(text, 1.0), "vision": min(image, 1.0)}


def _useful_flops(
    config: TrainConfig, architecture: Qwen2VLConfig, sizes: Any, stage: Stage
) -> float:
    from marvel_jax.training.flops import step_flops
    from marvel_jax.training.state import is_frozen
    from marvel_jax.training.telemetry import adapter_ranks

    training = stage == "train"
    return step_flops(
        architecture,
        sizes.work,
        queries=sizes.queries,
        candidates=sizes.candidates if training else 0,
        trained=lambda path: training and not is_frozen(path, config),
        ranks=adapter_ranks(config, architecture) if training else None,
        causal=config.embedding.attention == "causal",
    )


def _by_kind(sent: Any) -> list[tuple[str, int, int]]:
    totals = {kind: [0, 0] for kind in KINDS}
    for message, times in sent.items():
        totals[message.kind][0] += times
        totals[message.kind][1] += times * message.bytes
    return [(kind, count, size) for kind, (count, size) in totals.items() if count]


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
