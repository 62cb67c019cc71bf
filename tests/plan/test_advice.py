"""Where a step does not fit, the field that takes the memory is named with a value that helps."""

import pytest

from marvel_jax.plan.advice import advise
from tests.plan.plans import GIB, made_up


def too_large(**changes):
    return "\n".join(advise(made_up(fits=False, **changes)))


def test_what_fits_needs_no_advice():
    assert advise(made_up()) == []
    assert advise(made_up(fits=None, memory_bytes=None)) == []


def test_activations_ask_for_chunks_that_fit():
    told = too_large(needed_bytes=112 * GIB)
    # 58 GiB are left for activations, of which 64 rows take 100: 37 rows, a fifth kept back.
    assert "chunk_rows=29: activations of 64 rows at a time take 100.0 GiB" in told
    assert "model.remat=full" in told and "mesh.fsdp" not in told
    chunked = {"chunk_rows": 8, "remat": "full", "dtype": "bfloat16", "groups": 1}
    told = too_large(needed_bytes=112 * GIB, settings=chunked)
    assert "chunk_rows=3:" in told and "remat" not in told


def test_weights_ask_to_be_split():
    told = too_large(needed_bytes=75 * GIB, weight_bytes=64 * GIB, moment_bytes=6 * GIB)
    assert "mesh.fsdp=2: weights and optimiser take 70.0 GiB of every device" in told
    assert "about 35.0 GiB" in told
    single = {"data": 1, "fsdp": 1, "tensor": 1}
    told = too_large(weight_bytes=90 * GIB, needed_bytes=95 * GIB, mesh=single, devices=1)
    assert "the machine" in told and "fsdp" not in told


def test_weights_are_split_over_no_more_devices_than_mesh_tensor_leaves():
    sizes = {"weight_bytes": 150 * GIB, "needed_bytes": 160 * GIB}
    told = too_large(mesh={"data": 2, "fsdp": 1, "tensor": 4}, **sizes)
    assert "mesh.fsdp=2:" in told
    assert "mesh.fsdp=4:" in too_large(mesh={"data": 8, "fsdp": 1, "tensor": 1}, **sizes)


def test_float32_is_named_where_it_is_used():
    wide = {"chunk_rows": 1, "remat": "full", "dtype": "float32", "groups": 1}
    told = too_large(weight_bytes=60 * GIB, needed_bytes=90 * GIB, settings=wide)
    assert "model.dtype=bfloat16" in told


@pytest.mark.parametrize("rows", [1, 64])
def test_there_is_always_something_to_change(rows):
    smallest = {"chunk_rows": 1, "remat": "full", "dtype": "bfloat16", "groups": 1}
    assert too_large(needed_bytes=100 * GIB, rows=rows, settings=smallest)
    assert "--batch-tokens" in too_large(needed_bytes=100 * GIB, stage="encode", rows=rows)
