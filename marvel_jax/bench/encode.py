"""Items, tokens and useful FLOP/s of bulk encoding, by row size and kernel, beside torch."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from marvel_jax.bench.encode_items import Calls, EncodeOptions, make_calls, mbeir_items, speed
from marvel_jax.bench.machine import failure, result
from marvel_jax.bench.stopwatch import lap, median
from marvel_jax.errors import MarvelError

if TYPE_CHECKING:  # what encodes is imported when it does
    from marvel_jax.data.processor import EncodedItem
    from marvel_jax.models.config import Qwen2VLConfig

_MIB = 2**20


def run(options: EncodeOptions) -> dict[str, Any]:
    """Times every case and, if asked, transformers on batches sorted by length; a row each.

    Times span from packed rows in host memory to vectors in host memory, in the order and with
    the transfers of real encoding; reading and packing are done before. `cosine` is the least one
    with the first row's vectors.
    """
    import jax

    from marvel_jax.bench import torch_peers

    rows, vectors = [], []
    for row, found in cases(options):
        rows.append(row)
        vectors.append(found)
    best = max(rows, key=lambda row: row["items/s"])
    notes = [f"best: {best['row']}, kernel {best['kernel']}"] if len(rows) > 1 else []
    if options.torch:
        missing = torch_peers.why_not()
        if missing:
            notes.append(f"torch left out: {missing}")
        else:
            device = jax.devices()[0]
            cuda = "cuda" if device.platform in ("gpu", "cuda") else "cpu"
            kind = device.device_kind
            peer = torch_peers.encode(options, vectors=vectors[0], device=cuda, device_kind=kind)
            rows.append(peer)
            if "items/s" in peer:
                notes.append(f"{best['items/s'] / peer['items/s']:.2f}x torch in items/s")
    return result(
        "encode",
        rows,
        architecture=options.architecture,
        items=options.items,
        shrink=options.shrink,
        batch_tokens=options.batch_tokens,
        repeats=options.repeats,
        notes=notes,
    )


def cases(
    options: EncodeOptions,
    *,
    seconds_left: Callable[[], float] = lambda: float("inf"),
    catch: bool = False,
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """(row, unit vectors [N, D]) of each case; none is begun that will hardly end in time.

    With `catch`, a case that fails has a row that says why, and the others go on.
    """
    import jax

    from marvel_jax.bench import shapes
    from marvel_jax.parallel.mesh import MeshConfig, make_mesh
    from marvel_jax.parallel.sharding import replicated

    architecture = shapes.architecture(options.architecture)
    items = mbeir_items(architecture, count=options.items, seed=options.seed, shrink=options.shrink)
    mesh = make_mesh(MeshConfig())
    params = shapes.random_weights(
        architecture, dtype=options.dtype, sharding=replicated(mesh), seed=options.seed
    )
    jax.block_until_ready(params)
    first: np.ndarray | None = None
    longest = 0.0
    for kernel in options.kernel:
        for row_tokens in options.row_tokens or (None,):
            if seconds_left() < longest:
                return
            began = time.perf_counter()
            calls = make_calls(
                items,
                row_tokens=row_tokens,
                batch_tokens=options.batch_tokens,
                merge_area=architecture.vision.spatial_merge_size**2,
                devices=mesh.devices.size,
            )
            try:
                row, vectors = _measure(options, architecture, params, items, calls, mesh, kernel)
            except Exception as error:
                if not catch:
                    raise
                named = "as encoding chooses" if row_tokens is None else f"{row_tokens}"
                case = {"encode": options.architecture, "kernel": kernel, "row": named}
                yield case | failure(error), np.zeros(0)
                continue
            first = vectors if first is None else first
            row["cosine"] = round(float((vectors * first).sum(axis=1).min()), 6)
            longest = time.perf_counter() - began
            yield row, vectors


def _measure(
    options: EncodeOptions,
    architecture: "Qwen2VLConfig",
    params: Any,
    items: "Sequence[EncodedItem]",
    calls: Calls,
    mesh: Any,
    asked: str,
) -> tuple[dict[str, Any], np.ndarray]:
    import jax

    from marvel_jax.bench.kernels import kernels_for
    from marvel_jax.models.qwen2_vl import embed
    from marvel_jax.parallel.sharding import batch_sharding, replicated

    kernels, told = kernels_for(asked, architecture=architecture, dtype=options.dtype, mesh=mesh)

    def encode(params: Any, rows: Any, items_per_row: int) -> Any:
        return embed(
            params,
            rows,
            architecture,
            items_per_row=items_per_row,
            dtype=options.dtype,
            kernels=kernels,
        ).vectors

    there = batch_sharding(mesh)
    jitted = jax.jit(
        encode,
        static_argnums=2,
        in_shardings=(replicated(mesh), there),
        out_shardings=there,
    )
    started = time.perf_counter()
    programs, temporary = {}, 0
    for call in calls.calls:
        key = _key(call)
        if key not in programs:
            compiled = jitted.lower(params, call.rows, call.items_per_row).compile()
            programs[key] = compiled
            temporary = max(temporary, _temporary(compiled))
    compile_seconds = time.perf_counter() - started
    vectors = np.zeros((len(items), architecture.text.hidden_size), np.float32)

    def take() -> None:
        # All are under way before the first is fetched.
        found = [
            programs[_key(call)](params, jax.device_put(call.rows, there)) for call in calls.calls
        ]
        for call, value in zip(calls.calls, found, strict=True):
            vectors[call.items] = np.asarray(value).reshape(-1, vectors.shape[1])[call.slots]

    take()
    laps = [lap(take) for _ in range(options.repeats)]
    row = {
        "encode": options.architecture,
        "kernel": told.name,
        "row": ", ".join(f"{one.tokens} tokens {one.patches} patches" for one in calls.shapes),
        **speed(
            architecture, items, median(laps), device_kind=_kind(mesh), devices=mesh.devices.size
        ),
        "token_fill": round(calls.token_fill, 4),
        "patch_fill": round(calls.patch_fill, 4),
        "dtype": options.dtype,
        "compile_seconds": round(compile_seconds, 1),
        "temporary_mib": round(temporary / _MIB, 1),
        "why": told.line,
    }
    if not np.isfinite(vectors).all():
        raise MarvelError(
            f"{options.architecture}: the vectors of kernel {told.name} are no numbers."
        )
    return row, vectors


def _kind(mesh: Any) -> str:
    return str(mesh.devices.flat[0].device_kind)


def _key(call: Any) -> tuple[Any, ...]:
    return call.rows.tokens.shape, call.rows.patches.shape, call.items_per_row


def _temporary(compiled: Any) -> int:
    memory = compiled.memory_analysis()
    return 0 if memory is None else int(memory.temp_size_in_bytes)
