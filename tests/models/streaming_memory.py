"""Host memory that reading a checkpoint into shards takes beside the shards themselves.

    python -m tests.models.streaming_memory [--devices 8] [--dtype float32] [--folder FOLDER]

writes a checkpoint of 316 MB in bfloat16 with random weights (or takes the folder given), reads it
with `hub.load_sharded` over all of its fake devices, and prints one JSON object, sizes in bytes:
what the disk and the shards hold, the largest tensor on disk, and `beside`: the resident set of the
process less what it was before and less the shards made so far, at its highest during any one
parameter. Linux only (/proc).
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock


def write_checkpoint(folder: Path, **text) -> None:
    """Random bfloat16 weights, drawn as they are written."""
    import ml_dtypes
    import numpy as np

    from marvel_jax.models import hub, names, tensors
    from tests.models.samples import small_config

    config = small_config(
        **{
            "vocab_size": 32_768,
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 8,
            "num_attention_heads": 8,
            "mrope_section": (16, 24, 24),
            **text,
        }
    )

    def random():
        rng = np.random.default_rng(0)
        for row in names.table(config):
            for layer in range(row.num_layers(config)):
                values = rng.standard_normal(row.hub_shape(config), np.float32)
                yield row.hub_name(layer), values.astype(ml_dtypes.bfloat16)

    hub.save_blueprint(folder, config=config)
    tensors.write(folder, random(), max_shard_bytes=2**27)


def measure(devices: int, dtype: str, folder: Path) -> dict[str, float]:
    """The measurement, in a process of its own."""
    command = [sys.executable, "-m", "tests.models.streaming_memory", "--child"]
    command += [f"--devices={devices}", f"--dtype={dtype}", f"--folder={folder}"]
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        command,
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _child(devices: int, dtype: str, folder: Path) -> dict[str, float]:
    import jax
    import numpy as np
    from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

    from marvel_jax.models import hub, streaming, tensors

    mesh = Mesh(np.array(jax.devices()), ("fsdp",), axis_types=(AxisType.Auto,))

    def sharding(path: str, shape: tuple[int, ...]) -> NamedSharding:
        # Over the last axis that can be cut, as fully sharded weights are.
        able = [axis for axis, size in enumerate(shape) if axis and size % devices == 0]
        axes: list[str | None] = [None] * len(shape)
        if able:
            axes[able[-1]] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*axes))

    with tempfile.TemporaryDirectory() as small:
        # The compiler's own memory is no part of the answer: let it come in first.
        tiny = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64}
        tiny |= {"mrope_section": (2, 1, 1), "num_hidden_layers": 2}
        write_checkpoint(Path(small) / "model", **tiny)
        options = {"sharding": sharding, "dtype": lambda _: dtype}
        hub.load_sharded(Path(small) / "model", **options, chunk_bytes=2**12)

    stored = tensors.Weights(folder)
    width = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
    sizes = [math.prod(stored.shape(key)) * width[stored.dtype(key)] for key in stored.names()]
    before, shards, beside = _resident("VmRSS"), 0, 0
    stream = streaming.stream

    def measured(*arguments: Any, **options: Any) -> jax.Array:
        nonlocal shards, beside
        Path("/proc/self/clear_refs").write_text("5")  # Forget the highest so far.
        array = stream(*arguments, **options)
        shards += sum(shard.data.nbytes for shard in array.addressable_shards)
        beside = max(beside, _resident("VmHWM") - before - shards)
        return array

    start = time.perf_counter(), time.process_time()
    with mock.patch.object(streaming, "stream", measured):
        hub.load_sharded(folder, **options)
    wall, cpu = time.perf_counter() - start[0], time.process_time() - start[1]
    return {
        "devices": devices,
        "disk": sum(sizes),
        "shards": shards,
        "largest": max(sizes),
        "beside": beside,
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
    }


def _resident(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", action="store_true")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(_child(options.devices, options.dtype, options.folder)))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            folder = options.folder or Path(scratch) / "model"
            if options.folder is None:
                write_checkpoint(folder)
            print(json.dumps(measure(options.devices, options.dtype, folder), indent=2))
