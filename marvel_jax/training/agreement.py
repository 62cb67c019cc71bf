"""What all processes of a run must have alike, held against each other before anything is computed.

Each fact is a short text; `hosts.agree` names those that differ, and where, on every process.
"""

import contextlib
import dataclasses
import importlib.metadata
import json
import os
import platform
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

import marvel_jax
from marvel_jax import files
from marvel_jax.data.epoch_plan import Plan
from marvel_jax.parallel import hosts
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.inputs import Inputs

# What decides shapes, numbers, or how the processes talk.
_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "transformers",
    "tokenizers",
    "pillow",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "libtpu",
)
# Of these the content counts, which is compared by itself: each host may keep them where it likes.
_PATHS = ("data.path", "model.source")
_DEVICE_FILES = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")
_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


def require_same_start(config: TrainConfig) -> None:
    """Holds versions, machines and the config against each other; asks for no device yet.

    (A host without its accelerator's driver would keep the others waiting for its devices.)

    Raises:
      MarvelError: on every process, naming what differs.
    """
    if jax.distributed.is_initialized():
        hosts.agree(versions() | machine(os.environ) | settings(config))


def require_same_inputs(inputs: Inputs, workdir: Path) -> None:
    """Holds data, weights and devices against each other, and sees that all share `workdir`.

    Raises:
      MarvelError: on every process, naming what differs.
    """
    if hosts.is_alone():
        return
    hosts.agree(
        {
            "the devices of the process": f"{jax.local_device_count()} x {_kinds()}",
            "the content of data.path": inputs.source.fingerprint,
            "the tokenizer and template": inputs.processor.fingerprint,
            "the architecture": files.hash_json(dataclasses.asdict(inputs.architecture)),
            "the content of model.source": sampled(inputs.weights_folder),
            "the texts of the next-token loss": (
                "none" if inputs.texts is None else inputs.texts.fingerprint
            ),
        }
    )
    _require_shared(workdir)


def require_same_plan(plan: Plan) -> None:
    """Holds the order, row counts and packing of an epoch against each other.

    Raises:
      MarvelError: on every process, naming what differs.
    """
    if hosts.is_alone():
        return
    hosts.agree(planned(plan))


def planned(plan: Plan) -> dict[str, str]:
    """The order, row counts and packing of a plan."""
    return {
        "the number of steps in an epoch": str(plan.steps_per_epoch),
        "the row counts of a batch": ", ".join(map(str, plan.row_counts)),
        "the lengths of the items": _digest(plan.index.queries, plan.index.candidates),
        "the plan of the first step": _first_step(plan),
    }


def versions() -> dict[str, str]:
    """Of Python, of this package and its code, and of what it stands on."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    package = Path(marvel_jax.__file__).parent
    code = files.hash_files(*sorted(package.rglob("*.py")))
    return found | {"marvel-jax": f"{marvel_jax.__version__} (code {code})"}


def machine(environment: Mapping[str, str]) -> dict[str, str]:
    """The accelerators that this host shows, and what XLA is told; touches no device."""
    shown = {
        pattern.split("[")[0].strip("/"): len(list(Path("/dev").glob(pattern)))
        for pattern in _DEVICE_FILES
    }
    flags = environment.get("XLA_FLAGS", "").split()
    # Where a host dumps what it compiles changes nothing of it.
    told = sorted(flag for flag in flags if not flag.startswith("--xla_dump"))
    return {
        "processor": platform.machine(),
        "accelerators": ", ".join(f"{n} {name}" for name, n in shown.items() if n) or "none",
        "JAX_PLATFORMS": environment.get("JAX_PLATFORMS") or "not set",
        "XLA_FLAGS": " ".join(told) or "not set",
        "LIBTPU_INIT_ARGS": environment.get("LIBTPU_INIT_ARGS") or "not set",
    }


def settings(config: TrainConfig) -> dict[str, str]:
    """Every field of a config; but paths, which each host may have of its own."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    flat = files.flatten(plain, separator=".")
    return {f"config.{name}": repr(flat[name]) for name in flat if name not in _PATHS}


def _kinds() -> str:
    return ", ".join(sorted({device.device_kind for device in jax.local_devices()}))


def sampled(folder: Path | None) -> str:
    """A hash of a model folder's weight files: names, sizes, and pieces of the content.

    The first process reads every byte for the run's recipe; a piece in many tells an older copy.
    """
    if folder is None:
        return "none"
    pieces = []
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        pieces.append(f"{path.name} {size}".encode())
        with path.open("rb") as stream:
            for number in range(_SAMPLES):
                stream.seek(max(0, size - _SAMPLE_BYTES) * number // (_SAMPLES - 1))
                pieces.append(stream.read(_SAMPLE_BYTES))
    return files.hash_bytes(*pieces)


def _require_shared(workdir: Path) -> None:
    """Else each host would save its own part of a checkpoint where no other finds it."""
    mark = hosts.from_main(lambda: _leave_mark(workdir))
    for folder in reversed(workdir.absolute().parents):
        # An NFS client may remember for a minute that `workdir` was not there; opening the folder
        # above makes it ask the server.
        with contextlib.suppress(OSError):
            os.scandir(folder).close()
    try:
        seen = (workdir / mark).is_file()
        hosts.agree({"--workdir": "shared" if seen else "another folder than that of process 0"})
    finally:
        if hosts.is_main():
            (workdir / mark).unlink(missing_ok=True)


def _leave_mark(workdir: Path) -> str:
    workdir.mkdir(parents=True, exist_ok=True)
    name = f".shared-{secrets.token_hex(8)}"
    (workdir / name).touch()
    return name


def _first_step(plan: Plan) -> str:
    step = plan.step(0)
    placement = json.dumps([shard.placement for shard in step.shards]).encode()
    order = _digest(step.queries, step.candidates, step.prompts)
    return files.hash_bytes(order.encode(), placement)


def _digest(*arrays: Any) -> str:
    return files.hash_bytes(*(array.tobytes() for array in arrays))
