"""The steps of the accelerator check, each in a process of its own that tells what it finds.

    python -m marvel_jax.bench.accelerator_steps NAME --seconds 60 [--quick] ...

prints one JSON object a line: {"row": ...} as soon as something is measured, {"facts": ...} of the
machine, {"skipped": why}, {"unfit": why} where memory does not suffice, {"error": what}.
"""

import argparse
import functools
import json
import math
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from marvel_jax.bench.machine import failure

SMALLER, LARGER = "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"
Message = dict[str, Any]


class Given(NamedTuple):
    """What a step is told."""

    quick: bool
    seconds_left: Callable[[], float]
    platform: str
    device_kind: str


class Step(NamedTuple):
    """`seconds` it may take; a `check` has to be right, a benchmark has only to be there."""

    name: str
    seconds: float
    check: bool
    run: Callable[[Given], Iterator[Message]]


def _machine(given: Given) -> Iterator[Message]:
    import jax

    from marvel_jax.bench.bare import missing
    from marvel_jax.bench.machine import machine

    facts = machine()
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        facts["device_memory_gib"] = round(stats["bytes_limit"] / 2**30, 2)
    capability = getattr(jax.local_devices()[0], "compute_capability", None)
    if capability is not None:
        facts["compute_capability"] = str(capability)
    facts["missing"] = missing()
    yield {"facts": facts}
    if facts["platform"] == "cpu" and shutil.which("nvidia-smi"):
        yield {
            "error": "there is nvidia-smi here, but JAX sees no GPU: install jax[cuda13] (or "
            "jax[cuda12], by the driver), or set JAX_PLATFORMS=cpu to measure the processor."
        }


def _check(name: str, given: Given) -> Iterator[Message]:
    from marvel_jax.bench import accelerator_checks

    check = getattr(accelerator_checks, name)
    for row in check(quick=given.quick, seconds_left=given.seconds_left):
        yield {"row": row}


def encode_options(architecture: str, *, quick: bool, devices: int = 1) -> Any:
    from marvel_jax.bench.encode_items import EncodeOptions

    if quick:
        return EncodeOptions(
            architecture="tiny",
            items=24,
            shrink=8,
            row_tokens=(64,),
            batch_tokens=256,
            repeats=1,
        )
    return EncodeOptions(
        architecture=architecture,
        items=(512 if architecture == LARGER else 1024) * devices,
        dtype="bfloat16",
        row_tokens=(2048, 1024, 4096),
        batch_tokens=16_384,
        kernel=("auto", "xla"),
    )


def step_options(*, quick: bool, devices: int = 1) -> Any:
    from marvel_jax.bench.lora_step import LoraStepOptions

    if quick:
        return LoraStepOptions(
            pairs=8 * devices,
            dtype="float32",
            shrink=8,
            row_tokens=128,
            row_patches=312,
            chunk_rows=1,
            rank=4,
            mini_batch=4,
            repeats=1,
        )
    return LoraStepOptions(architecture=SMALLER, pairs=-(-512 // devices) * devices)


def _encode(architecture: str, given: Given) -> Iterator[Message]:
    import jax

    from marvel_jax.bench import encode

    options = encode_options(architecture, quick=given.quick, devices=jax.device_count())
    for row, _ in encode.cases(options, seconds_left=given.seconds_left, catch=True):
        yield {"row": row}


def _encode_torch(architecture: str, given: Given) -> Iterator[Message]:
    from marvel_jax.bench import torch_peers

    device = _torch_device(given)
    if reason := torch_peers.why_not() or _no_torch_for(given):
        yield {"skipped": reason}
        return
    options = encode_options(architecture, quick=given.quick)
    row = torch_peers.encode(
        options,
        device=device,
        device_kind=given.device_kind,
        seconds=given.seconds_left(),
    )
    yield {"row": row} if "items/s" in row else {"skipped": row["why"]}


def _step(given: Given) -> Iterator[Message]:
    import jax

    from marvel_jax.bench import lora_step

    options = step_options(quick=given.quick, devices=jax.device_count())
    for row in lora_step.cases(options, seconds_left=given.seconds_left):
        yield {"row": row}


def _step_torch(given: Given) -> Iterator[Message]:
    from marvel_jax.bench import torch_peers

    if reason := torch_peers.why_not() or _no_torch_for(given):
        yield {"skipped": reason}
        return
    row = torch_peers.step(
        step_options(quick=given.quick),
        device=_torch_device(given),
        device_kind=given.device_kind,
        seconds=given.seconds_left(),
    )
    yield {"row": row} if "pairs/s" in row else {"skipped": row["why"]}


def _torch_device(given: Given) -> str:
    return "cuda" if given.platform in ("gpu", "cuda") else "cpu"


def _no_torch_for(given: Given) -> str | None:
    return "torch is measured on CUDA and on a CPU only" if given.platform == "tpu" else None


def _attention(given: Given) -> Iterator[Message]:
    from marvel_jax.bench import attention

    options = attention.AttentionOptions()
    if given.quick:
        options = attention.AttentionOptions(
            tower=("tiny",), rows=2, length=256, item=40, dtype="float32", repeats=2
        )
    for row in attention.cases(options, seconds_left=given.seconds_left, catch=True):
        if "left_out" not in row:
            yield {"row": row}


STEPS = (
    # In order of value: what the last of them loses to the clock is missed least.
    Step("machine", 45, True, _machine),
    Step("kernels", 100, True, functools.partial(_check, "kernels")),
    Step("parity", 50, True, functools.partial(_check, "parity")),
    Step("ring", 40, True, functools.partial(_check, "ring")),
    Step("encode 7B", 105, False, functools.partial(_encode, LARGER)),
    Step("LoRA step 2B", 160, False, _step),
    Step("LoRA step 2B, torch", 80, False, _step_torch),
    Step("attention", 60, False, _attention),
    Step("encode 2B", 60, False, functools.partial(_encode, SMALLER)),
    Step("encode 7B, torch", 60, False, functools.partial(_encode_torch, LARGER)),
    Step("encode 2B, torch", 45, False, functools.partial(_encode_torch, SMALLER)),
)


def strict(value: Any) -> Any:
    """A value for JSON, which knows no NaN and no infinity: they become their names."""
    if isinstance(value, dict):
        return {key: strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [strict(one) for one in value]
    if hasattr(value, "item"):  # of numpy
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def messages(step: Step, given: Given) -> Iterator[Message]:
    """What a step tells, whatever happens to it."""
    from marvel_jax.bench.accelerator_checks import OutOfTimeError

    try:
        yield from map(strict, step.run(given))
    except ModuleNotFoundError as error:
        traceback.print_exc()
        ours = (error.name or "").partition(".")[0] in ("marvel_jax", "tests")
        yield {"error" if ours else "skipped": f"{error}"}
    except OutOfTimeError as error:
        yield {"late": str(error)}
    except Exception as error:
        traceback.print_exc()
        found = failure(error)
        yield {"error" if "ok" in found else "unfit": found["failed"]}


def main(args: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="One step of the accelerator check.")
    parser.add_argument("name", choices=[step.name for step in STEPS])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--platform", default="cpu")
    parser.add_argument("--device-kind", default="cpu")
    asked = parser.parse_args(args)
    started = time.monotonic()
    # What libraries print is for a person; the parent reads the messages alone.
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    given = Given(
        quick=asked.quick,
        seconds_left=lambda: asked.seconds - (time.monotonic() - started),
        platform=asked.platform,
        device_kind=asked.device_kind,
    )
    step = next(step for step in STEPS if step.name == asked.name)
    for message in messages(step, given):
        told.write(json.dumps(message, allow_nan=False) + "\n")
        told.flush()


if __name__ == "__main__":
    main()
