"""Made-up plans, for tests of what is said about them."""

from typing import Any

from marvel_jax.plan.planned import Planned

GIB = 2**30


def made_up(**changes: Any) -> Planned:
    """A train step of 64 rows that fits into 70 GiB with 30."""
    fields: dict[str, Any] = {
        "topology": "gpu:h100:8",
        "stage": "train",
        "device": "NVIDIA H100 80GB HBM3",
        "devices": 8,
        "hosts": 1,
        "mesh": {"data": 8, "fsdp": 1, "tensor": 1},
        "kernel": "attention kernel: xla",
        "loss": "gather",
        "settings": {"chunk_rows": None, "remat": "none", "dtype": "bfloat16", "groups": 1},
        "items": 512,
        "rows": 64,
        "row_counts": [64, 65],
        "row": {"tokens": 1024, "patches": 2048, "items": 32},
        "token_fill": 0.95,
        "patch_fill": 0.9,
        "lengths": "made up",
        "memory_bytes": 70 * GIB,
        "needed_bytes": 30 * GIB,
        "fits": True,
        "weight_bytes": 10 * GIB,
        "moment_bytes": 2 * GIB,
        "batch_bytes": 0,
        "argument_bytes": 12 * GIB,
        "temporary_bytes": 18 * GIB,
        "output_bytes": 0,
        "aliased_bytes": 0,
        "code_bytes": 0,
        "useful_flops": 1e15,
        "executed_flops": 2e15,
    }
    return Planned(**(fields | changes))
