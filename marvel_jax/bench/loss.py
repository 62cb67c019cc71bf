"""Bytes and seconds of the contrastive loss's value and gradient, by size and implementation."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from marvel_jax.bench.machine import cpu_seconds, result
from marvel_jax.errors import MarvelError

_MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure: every implementation at every global batch and width."""

    batch: tuple[int, ...] = (1024, 4096)
    """Queries in the global batch."""
    width: tuple[int, ...] = (768,)
    """Numbers in a vector."""
    implementation: tuple[str, ...] = ("dense", "gather", "ring")
    """Of dense, gather and ring."""
    hard_negatives: int = 0
    """Hard negatives of each query, on top of its label."""
    known_positives: int = 8
    """Ids of known positives that each query brings."""
    symmetric: bool = False
    """Both directions."""
    tile: int = 1024
    """Rows (gather), rows and columns (ring) that exist at one time."""
    repeats: int = 5
    """Timed repeats, after one that is not; the median counts."""
    compile_for: str | None = None
    """Only compile, for a topology that need not be here, as gpu:h100:8: bytes, no seconds."""
    fake_devices: int | None = None
    """Split this machine's processor into so many devices; else its devices as they are."""

    def __post_init__(self) -> None:
        strange = sorted(set(self.implementation) - {"dense", "gather", "ring"})
        if strange or not self.implementation:
            raise MarvelError(f"implementation {strange}: choose of dense, gather and ring.")
        if self.compile_for and self.fake_devices:
            raise MarvelError("compile_for and fake_devices: give one of them.")
        if self.hard_negatives < 0 or self.known_positives < 1:
            raise MarvelError(
                f"hard_negatives={self.hard_negatives}, known_positives={self.known_positives}: "
                "give 0 or more of the first and at least 1 of the second."
            )
        least = min((*self.batch, *self.width, self.repeats, self.fake_devices or 1), default=0)
        if least < 1 or not (self.batch and self.width):
            raise MarvelError("batch, width, repeats and fake_devices are positive numbers.")


def run(options: Options) -> dict[str, Any]:
    """Compiles (and runs, on devices that are here) each case; a row for each.

    `temporary_mib` is what a device needs beside inputs and gradients, as the compiler plans it;
    `seconds` and `cpu_seconds` are medians of a call.
    """
    topology = options.compile_for
    if options.fake_devices:
        topology = f"cpu:{options.fake_devices}"
    if topology is None:
        import jax

        rows = _measure(jax.devices(), options, timed=True)
        return result("loss", rows)
    from marvel_jax.parallel.topology import call_in_child

    arguments = asdict(options)
    rows = call_in_child(
        "marvel_jax.bench.loss:measure_for", topology=topology, arguments={"options": arguments}
    )
    return result("loss", rows, compiled_for=topology)


def measure_for(*, topology: str, options: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a topology, in a process of its own; `options` are the fields of `Options`."""
    from marvel_jax.parallel.topology import compile_only_devices

    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    chosen = Options(**fields)
    timed = chosen.compile_for is None
    return _measure(compile_only_devices(topology), chosen, timed=timed)


def _measure(devices: Sequence[Any], options: Options, *, timed: bool) -> list[dict[str, Any]]:
    return [
        _row(devices, options, batch=batch, width=width, implementation=implementation, timed=timed)
        for batch in options.batch
        for width in options.width
        for implementation in options.implementation
    ]


def _row(
    devices: Sequence[Any],
    options: Options,
    *,
    batch: int,
    width: int,
    implementation: str,
    timed: bool,
) -> dict[str, Any]:
    import jax

    step, inputs, make_inputs = _program(
        devices, options, batch=batch, width=width, implementation=implementation
    )
    started = time.perf_counter()
    compiled = jax.jit(step).lower(*inputs).compile()
    compile_seconds = time.perf_counter() - started
    memory = compiled.memory_analysis()
    if memory is None:
        raise MarvelError(f"{devices[0].device_kind}: its compiler does not tell bytes.")
    row = {
        "implementation": implementation,
        "batch": batch,
        "width": width,
        "hard_negatives": options.hard_negatives,
        "devices": len(devices),
        "temporary_mib": round(memory.temp_size_in_bytes / _MIB, 1),
        "input_mib": round(memory.argument_size_in_bytes / _MIB, 1),
        "gradient_mib": round(memory.output_size_in_bytes / _MIB, 1),
        "compile_seconds": round(compile_seconds, 2),
    }
    if not timed:
        return row
    arrays = make_inputs()
    jax.block_until_ready(compiled(*arrays))
    seconds, processor = [], []
    for _ in range(options.repeats):
        started, used = time.perf_counter(), cpu_seconds()
        jax.block_until_ready(compiled(*arrays))
        seconds.append(time.perf_counter() - started)
        processor.append(cpu_seconds() - used)
    return row | {
        "seconds": round(statistics.median(seconds), 4),
        "cpu_seconds": round(statistics.median(processor), 4),
    }


def _program(
    devices: Sequence[Any], options: Options, *, batch: int, width: int, implementation: str
) -> tuple[Any, Any, Any]:
    """(value and gradient of the loss, the shapes of its inputs, what makes such inputs)."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import NamedSharding, PartitionSpec

    from marvel_jax.losses.contrastive import info_nce
    from marvel_jax.parallel.mesh import DATA_AXES, MeshConfig, make_mesh

    each = 1 + options.hard_negatives
    count = batch * each
    if batch % len(devices):
        raise MarvelError(
            f"batch {batch} does not split over {len(devices)} devices: give a multiple of "
            f"{len(devices)}."
        )
    mesh = make_mesh(MeshConfig(), devices=list(devices))
    split, whole = (
        NamedSharding(mesh, PartitionSpec(DATA_AXES)),
        NamedSharding(mesh, PartitionSpec()),
    )

    def inputs() -> tuple[jax.Array, jax.Array, jax.Array, dict[str, jax.Array]]:
        keys = jax.random.split(jax.random.key(0), 3)
        rows, columns = jnp.arange(batch, dtype=jnp.int32), jnp.arange(count, dtype=jnp.uint32)
        queries = jax.random.normal(keys[0], (batch, width))
        candidates = jax.random.normal(keys[1], (count, width))
        ids = jax.random.bits(keys[2], (batch, options.known_positives, 2))
        own = rows[:, None] * each
        labels = {
            "own_positive": own,
            "candidate_id": jnp.stack([columns, columns], axis=-1),
            "candidate_query": (columns // each).astype(jnp.int32),
            "positive_ids": ids.at[:, 0].set(own.astype(jnp.uint32)),
            "positive_valid": jnp.ones((batch, options.known_positives), bool),
            "query_valid": jnp.ones(batch, bool),
            "candidate_valid": jnp.ones(count, bool),
        }
        queries, candidates = (
            x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (queries, candidates)
        )
        return queries, candidates, jnp.float32(0.05), labels

    def loss(queries: Any, candidates: Any, temperature: Any, labels: Any) -> jax.Array:
        return info_nce(
            queries,
            candidates,
            temperature=temperature,
            symmetric=options.symmetric,
            implementation=implementation,  # type: ignore[arg-type]
            mesh=mesh,
            tile=options.tile,
            **labels,
        ).loss

    step = jax.value_and_grad(loss, argnums=(0, 1, 2))
    kinds = jax.tree.map(lambda leaf: split if leaf.ndim else whole, jax.eval_shape(inputs))
    shapes = jax.tree.map(
        lambda leaf, kind: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=kind),
        jax.eval_shape(inputs),
        kinds,
    )
    return step, shapes, jax.jit(inputs, out_shardings=kinds)
