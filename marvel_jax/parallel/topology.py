"""Named topologies to compile for, without their hardware.

`gpu:h100:8` or `tpu:v5e:8x8` names devices that need not be here; `cpu:8` names fake devices of
this processor. What is compiled for them says how many bytes it will take. Compiling belongs into
a child process (`call_in_child`): the vendors' plugins want environment variables that disturb
the process that has them, and fake devices are counted once, at start.
"""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import jax

from marvel_jax.errors import MarvelError
from marvel_jax.parallel.chips import CHIPS, GPUS_PER_HOST, Chip, Gpu, Slices


@dataclass(frozen=True)
class Topology:
    """A parsed name: `kind` is gpu, tpu or cpu; `chip` a key of `CHIPS`, empty for cpu."""

    kind: str
    chip: str
    shape: tuple[int, ...]  # (devices,) of a GPU or CPU; chips along each side of a TPU slice

    @classmethod
    def parse(cls, name: str) -> "Topology":
        """Reads `gpu:h100:8`, `tpu:v5e:8x8` or `cpu:8`.

        Raises:
          MarvelError: the name has another form, names a chip that is not in the table, or so many
            of it, or in such a shape, as there are not.
        """
        form = r"cpu:()([1-9]\d*)|gpu:([^:]+):([1-9]\d*)|tpu:([^:]+):([1-9]\d*(?:x[1-9]\d*)*)"
        match = re.fullmatch(form, name)
        if match is None:
            raise MarvelError(
                f"{name!r} is no topology: write gpu:CHIP:DEVICES as gpu:h100:8, tpu:GENERATION:"
                "SHAPE as tpu:v5e:8x8, or cpu:DEVICES as cpu:8."
            )
        kind = name.partition(":")[0]
        chip, sides = (part for part in match.groups() if part is not None)
        shape = tuple(int(side) for side in sides.split("x"))
        if kind == "gpu":
            _check_gpus(name, chip, shape[0])
        elif kind == "tpu":
            _check_slice(name, chip, shape)
        return cls(kind, chip, shape)

    @property
    def devices(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def figures(self) -> Chip | None:
        """The chip's memory, speed and links; None for a CPU, which has no fixed ones."""
        return CHIPS.get(self.chip)

    @property
    def per_host(self) -> int:
        """Devices of one host."""
        chip = self.figures
        return self.devices if chip is None else min(chip.per_host, self.devices)

    def environment(self) -> dict[str, str]:
        """Variables that a process must start with to compile for this topology."""
        found = {"JAX_PLATFORMS": "cpu"}
        if self.kind == "gpu":
            # No driver is asked for, and real GPUs are left alone.
            found |= {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1", "CUDA_VISIBLE_DEVICES": "-1"}
        elif self.kind == "tpu":
            # Who only compiles holds no TPU, so that several may do so at a time.
            found |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        else:
            others = re.sub(
                r"--xla_force_host_platform_device_count=\d+", "", os.environ.get("XLA_FLAGS", "")
            )
            count = f"--xla_force_host_platform_device_count={self.shape[0]}"
            found |= {"XLA_FLAGS": f"{others} {count}".strip()}
        return found


def compile_only_devices(name: str) -> list[jax.Device]:
    """The devices of a topology; on those of a GPU or TPU programs are compiled, never run.

    To be called in a process that was started with `Topology.parse(name).environment()`.

    Raises:
      MarvelError: the name is none, or the plugin that compiles for it is not installed.
    """
    from jax.experimental import topologies

    topology = Topology.parse(name)
    if topology.kind == "cpu":
        devices = jax.devices("cpu")
        if len(devices) < topology.shape[0]:
            raise MarvelError(
                f"{name!r}: this process has {len(devices)} CPU devices; start it with XLA_FLAGS="
                f"--xla_force_host_platform_device_count={topology.shape[0]}."
            )
        return devices[: topology.shape[0]]
    _check_plugin(topology)
    try:
        if topology.kind == "tpu":
            sides = "x".join(map(str, topology.shape))
            found = topologies.get_topology_desc(f"{topology.chip}:{sides}", "tpu")
        else:
            chip, count = CHIPS[topology.chip], topology.devices
            assert chip.gpu is not None  # Topology.parse checks it
            found = topologies.get_topology_desc(
                platform="cuda",
                target_config=_target_config(chip, chip.gpu),
                topology=f"1x{-(-count // GPUS_PER_HOST)}x{min(count, GPUS_PER_HOST)}",
            )
    except Exception as error:  # which one depends on the plugin and on the version of jax
        raise MarvelError(f"cannot compile for {name!r}: {_first_line(error)}.") from error
    return list(found.devices)


def call_in_child(
    function: str, *, topology: str, arguments: dict[str, Any], seconds: float | None = None
) -> Any:
    """Calls `function` ("module:name") in a fresh process that can compile for the topology.

    It is called with `topology=` and the arguments by keyword; these and its result travel as
    JSON. After `seconds` (None: no limit) the process is ended.

    Raises:
      MarvelError: raised by the function, with its message; or the process failed otherwise, with
        the end of what it wrote.
      TimeoutError: it took longer than `seconds`.
    """
    environment = os.environ | Topology.parse(topology).environment()
    call = json.dumps({"function": function, "arguments": arguments | {"topology": topology}})
    try:
        process = subprocess.run(
            [sys.executable, "-c", _CHILD, call],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"compiling for {topology!r} took over {seconds:.0f} s") from error
    last = (process.stdout.strip().splitlines() or [""])[-1]
    if process.returncode == 0 and last.startswith(_MARK):
        answer = json.loads(last.removeprefix(_MARK))
        if "error" in answer:
            raise MarvelError(answer["error"])
        return answer["result"]
    raise MarvelError(
        f"compiling for {topology!r} failed with status {process.returncode}: "
        f"{process.stderr.strip()[-2000:]}"
    )


_MARK = "marvel-child:"
_CHILD = f"""
import importlib, json, sys
sys.path.insert(0, "")
from marvel_jax.errors import MarvelError
call = json.loads(sys.argv[1])
module, name = call["function"].split(":")
try:
    function = getattr(importlib.import_module(module), name)
    answer = {{"result": function(**call["arguments"])}}
except MarvelError as error:
    answer = {{"error": str(error)}}
print()
print({_MARK!r} + json.dumps(answer))
"""


def _check_gpus(name: str, chip: str, count: int) -> None:
    gpus = [key for key, figures in CHIPS.items() if figures.gpu]
    if chip not in gpus:
        raise MarvelError(f"{name!r}: the GPU is one of {', '.join(gpus)}, not {chip!r}.")
    if count > GPUS_PER_HOST and count % GPUS_PER_HOST:
        near = GPUS_PER_HOST * round(count / GPUS_PER_HOST)
        raise MarvelError(
            f"{name!r}: GPUs come {GPUS_PER_HOST} to a host; more than one host needs a "
            f"multiple of {GPUS_PER_HOST}, as gpu:{chip}:{near}."
        )


def _check_slice(name: str, chip: str, shape: tuple[int, ...]) -> None:
    tpus = {key: figures.slices for key, figures in CHIPS.items() if figures.slices}
    if chip not in tpus:
        raise MarvelError(f"{name!r}: the TPU is one of {', '.join(tpus)}, not {chip!r}.")
    slices: Slices = tpus[chip]
    fits = len(shape) == len(slices.largest) and all(
        side <= most for side, most in zip(sorted(shape), slices.largest, strict=True)
    )
    if not fits:
        shapes = ", ".join(f"tpu:{chip}:{one}" for one in slices.examples)
        raise MarvelError(
            f"{name!r}: a slice of {chip} has {len(slices.largest)} sides, of at most "
            f"{'x'.join(map(str, slices.largest))} chips, as {shapes}."
        )


_PLUGINS = {
    "gpu": ("CUDA plugin of jax", "plan-gpu", ("jax_cuda13_plugin", "jax_cuda12_plugin")),
    "tpu": ("TPU compiler, libtpu", "plan-tpu", ("libtpu",)),
}


def _check_plugin(topology: Topology) -> None:
    what, extra, modules = _PLUGINS[topology.kind]
    device = topology.kind.upper()
    if not any(importlib.util.find_spec(module) for module in modules):
        raise MarvelError(
            f"compiling for a {device} needs the {what}, but no {device}: "
            f"pip install 'marvel-jax[{extra}]' (in a checkout: -e '.[{extra}]')."
        )


def _target_config(chip: Chip, gpu: Gpu) -> str:
    """The compiler's description of a GPU, as the text of a GpuTargetConfigProto.

    Block limits are those of every compute capability since 3.0.
    """
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  core_count: {gpu.cores}
  fpus_per_core: {gpu.lanes}
  shared_memory_per_core: {gpu.shared_memory}
  shared_memory_per_block: {48 * 1024}
  shared_memory_per_block_optin: {gpu.block_shared_memory}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  threads_per_warp: 32
  threads_per_core_limit: 2048
  threads_per_block_limit: 1024
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  device_memory_size: {chip.memory}
  memory_bandwidth: {int(chip.bandwidth)}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.clock}
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
device_description_str: "{gpu.name}"
"""


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
