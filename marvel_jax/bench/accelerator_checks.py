"""What must be right on a device before a figure counts: kernels, parity, the ring."""

import contextlib
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.bench.machine import failure

# How far one kernel may be from float64 beside XLA's own attention in the same type.
TIMES_XLA = 4.0
FLOAT32 = 1e-5  # relative; what float32 is allowed in any case
LOSS = 1e-6
# Device memory that a share of 8,192 x 768 vectors may take for temporaries: 96 MiB were compiled.
RING_TEMPORARY_MIB = 256

Row = dict[str, Any]


class Shape(NamedTuple):
    """Heads of one tower, and the length of a row."""

    heads: int
    groups: int
    size: int
    length: int


SHAPES = (Shape(8, 2, 128, 512), Shape(4, 4, 80, 512), Shape(8, 2, 128, 456))
QUICK_SHAPES = (Shape(4, 2, 128, 128), Shape(2, 2, 80, 120))


class OutOfTimeError(Exception):
    """A check did not come to its end."""


def kernels(*, quick: bool, seconds_left: Callable[[], float]) -> Iterator[Row]:
    """Every kernel of the platform against float64, output and gradients, with padding.

    One that fails is told, and the others go on.
    """
    from marvel_jax.bench.kernels import available, named, needs_one_item, types_of

    for number, shape in enumerate(QUICK_SHAPES if quick else SHAPES):
        for kernel in available(quick=quick):
            for dtype in types_of(kernel):
                for causal in (False, True) if number == 0 else (False,):
                    _in_time(seconds_left)
                    row: Row = {
                        "kernel": named(kernel),
                        "heads": f"{shape.heads}/{shape.groups} x {shape.size}",
                        "row": shape.length,
                        "items": "one" if needs_one_item(kernel) else "several",
                        "causal": "yes" if causal else "no",
                        "dtype": dtype,
                    }
                    try:
                        row |= _kernel_errors(kernel, shape, dtype=dtype, causal=causal)
                    except Exception as error:
                        row |= failure(error) | {"ok": False}
                    yield row


def _kernel_errors(kernel: Any, shape: Shape, *, dtype: str, causal: bool) -> Row:
    from marvel_jax.bench.attention_cases import errors, exact, make_case, rounded, run_case
    from marvel_jax.bench.kernels import needs_one_item, run_with

    case = make_case(
        rows=2,
        length=shape.length,
        heads=shape.heads,
        groups=shape.groups,
        size=shape.size,
        one_item=needs_one_item(kernel),
    )
    given = rounded(case, dtype)
    right = exact(given, causal=causal)
    least = FLOAT32 if dtype == "float32" else 0.0
    theirs = errors(_xla(given, dtype, causal), right, case.real)
    allowed, gradient_allowed = (max(least, TIMES_XLA * error) for error in theirs)
    run = functools.partial(run_with, kernel, segments=case.segments, causal=causal)
    found = run_case(given, run, dtype=dtype)
    output, gradient = errors(found, right, case.real)
    # At padding too: what is not finite there would spread in the next matmul.
    finite = all(np.isfinite(x).all() for x in found)
    return {
        "output_error": output,
        "allowed": allowed,
        "gradient_error": gradient,
        "gradient_allowed": gradient_allowed,
        "ok": bool(finite and output <= allowed and gradient <= gradient_allowed),
    }


def _of_tests(name: str) -> Any:
    """A module of the checkout's tests, which hold the references."""
    return importlib.import_module(f"tests.{name}")


def _in_time(seconds_left: Callable[[], float]) -> None:
    if seconds_left() <= 0:
        raise OutOfTimeError("not all cases were checked")


def _xla(case: Any, dtype: str, causal: bool) -> tuple[np.ndarray, ...]:
    import jax

    from marvel_jax.bench.attention_cases import run_case
    from marvel_jax.bench.kernels import run_with
    from marvel_jax.models.kernels import XLA

    with jax.default_matmul_precision("highest"):
        run = functools.partial(run_with, XLA, segments=case.segments, causal=causal)
        return run_case(case, run, dtype=dtype)


def parity(*, quick: bool, seconds_left: Callable[[], float]) -> Iterator[Row]:
    """Embeddings against those that transformers made of the golden checkpoints in tests/.

    In float32 at the highest matmul precision they must be equal; how far bfloat16 drifts is only
    told, as the least cosine.
    """
    import jax

    golden = _of_tests("models.parity")

    cases = [(name, "bidirectional", "mrope") for name in golden.CHECKPOINTS]
    cases += [] if quick else [("tied", "causal", "sequential")]
    for name, attention, scheme in cases:
        _in_time(seconds_left)
        with jax.default_matmul_precision("highest"):
            found = golden.parity(name, attention_kind=attention, scheme=scheme)
        yield {
            "checkpoint": name,
            "attention": attention,
            "dtype": "float32",
            "visual_error": found.visual,
            "hidden_error": found.hidden,
            "embedding_error": found.embedding,
            "allowed": golden.TOLERANCE,
            "ok": max(found) <= golden.TOLERANCE,
        }
        if attention == "bidirectional":
            yield _drift(name, scheme)


def _drift(name: str, scheme: str) -> Row:
    import jax

    from marvel_jax.models.qwen2_vl import embed

    golden = _of_tests("models.parity")

    model = golden.golden(name)
    rows = golden.packed_rows(name, scheme)
    run = functools.partial(embed, config=model.config, items_per_row=3)
    with jax.default_matmul_precision("highest"):
        exact = jax.jit(run)(model.params, rows).vectors
    drifted = jax.jit(functools.partial(run, dtype="bfloat16"))(model.params, rows).vectors
    cosine = float((np.asarray(exact) * np.asarray(drifted)).sum(axis=-1).min())
    return {"checkpoint": name, "dtype": "bfloat16", "cosine": cosine, "ok": np.isfinite(cosine)}


def ring(*, quick: bool, seconds_left: Callable[[], float]) -> Iterator[Row]:
    """The ring on all devices against float64 numpy, then its memory on one device's share.

    The share is that of a device among eight at a global batch of 65,536: the ring's memory hangs
    on the rows of a device, not on how many devices there are.
    """
    import jax

    from marvel_jax.bench import loss

    devices = len(jax.devices())
    for trained, temperature in ((0.0, 0.05), (2.0, 0.02)):
        _in_time(seconds_left)
        yield _ring_error(devices, trained=trained, temperature=temperature)
    _in_time(seconds_left)
    share = 256 if quick else 8192
    options = loss.Options(
        batch=(share * devices,), width=(768,), implementation=("ring",), repeats=1 if quick else 3
    )
    (row,) = loss.run(options)["rows"]
    row["share"] = f"1 of 8 at a global batch of {8 * share:,}"
    row["peak_mib"] = _peak_mib()
    row["allowed"] = RING_TEMPORARY_MIB
    yield row | {"ok": row["temporary_mib"] <= RING_TEMPORARY_MIB}


def _ring_error(devices: int, *, trained: float, temperature: float) -> Row:
    import jax
    import jax.numpy as jnp

    from marvel_jax.losses.contrastive import info_nce
    from marvel_jax.parallel.mesh import MeshConfig, make_mesh

    oracle = _of_tests("losses.oracle")
    case = oracle.make_case(
        0, batch=24 * devices, hard=1, width=64, trained=trained, temperature=temperature
    )
    right = oracle.softmax_oracle(case)
    labels: dict[str, Any] = case.labels
    wanted = [np.asarray(x, np.float64) for x in (right.loss, *right.gradients)]

    def worst(**options: Any) -> list[float]:
        def value(queries: Any, candidates: Any, tau: Any) -> Any:
            return info_nce(queries, candidates, temperature=tau, **labels, **options).loss

        run = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2)))
        loss, gradients = run(case.queries, case.candidates, jnp.float32(case.temperature))
        return [
            float(np.abs(np.asarray(a, np.float64) - b).max() / max(np.abs(b).max(), 1e-12))
            for a, b in zip((loss, *gradients), wanted, strict=True)
        ]

    mesh = make_mesh(MeshConfig())
    found = worst(implementation="ring", mesh=mesh, tile=16)
    allowed = [max(LOSS, TIMES_XLA * error) for error in worst(implementation="dense")]
    return {
        "implementation": "ring",
        "batch": 24 * devices,
        "devices": devices,
        "temperature": temperature,
        "loss_error": found[0],
        "allowed": allowed[0],
        "gradient_error": max(found[1:]),
        "gradient_allowed": max(allowed[1:]),
        "ok": all(error <= bound for error, bound in zip(found, allowed, strict=True)),
    }


def _peak_mib() -> float | None:
    import jax

    with contextlib.suppress(KeyError, TypeError):
        stats = jax.local_devices()[0].memory_stats()
        return round(stats["peak_bytes_in_use"] / 2**20, 1)
    return None
