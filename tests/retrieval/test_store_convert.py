import dataclasses
import functools

import numpy as np
import pytest
from vector_stores import random_unit, write_store

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import store_convert
from marvel_jax.retrieval.store_convert import convert
from marvel_jax.retrieval.store_types import STORE_TYPES, decode, encode, truncate
from marvel_jax.retrieval.store_writer import StoreWriter

VECTORS = random_unit(40, 12)


@pytest.mark.parametrize(
    ("dtype", "dimension"), [*((dtype, 5) for dtype in STORE_TYPES), ("bfloat16", 12), ("int8", 12)]
)
def test_a_converted_store_is_that_of_an_encode_of_its_kind(tmp_path, dtype, dimension):
    store = write_store(tmp_path / "store", VECTORS, shard_rows=7)
    made = convert(store, tmp_path / "made", dtype=dtype, dimension=dimension)
    cut = truncate(VECTORS, dimension)
    np.testing.assert_array_equal(
        made.vectors(), decode(encode(cut, dtype), dtype, dimension=dimension)
    )
    assert list(made.ids) == list(store.ids)
    full = 12 if dimension < 12 else None
    assert made.manifest == dataclasses.replace(
        store.manifest, dtype=dtype, dimension=dimension, full_dimension=full
    )


def test_conversions_follow_each_other(tmp_path):
    store = write_store(tmp_path / "store", VECTORS)
    half = convert(store, tmp_path / "half", dtype="bfloat16", dimension=9)
    made = convert(half, tmp_path / "made", dtype="int8", dimension=4)
    assert made.manifest.full_dimension == 12
    cosine = (made.vectors() * truncate(VECTORS, 4)).sum(axis=1)
    assert (cosine > 0.999).all()


def test_a_killed_conversion_goes_on(tmp_path, monkeypatch):
    store = write_store(tmp_path / "store", VECTORS, shard_rows=7)
    monkeypatch.setattr(store_convert, "_BLOCK", 9)
    small = functools.partial(StoreWriter, shard_rows=6)
    monkeypatch.setattr(store_convert, "StoreWriter", small)

    def kill(done, _):
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(store, tmp_path / "made", dtype="int8", progress=kill)
    another = write_store(tmp_path / "another", -VECTORS, shard_rows=7)
    with pytest.raises(MarvelError, match=r"made otherwise \(made_of is"):
        convert(another, tmp_path / "made", dtype="int8")
    made = convert(store, tmp_path / "made", dtype="int8")
    np.testing.assert_array_equal(
        made.vectors(), decode(encode(VECTORS, "int8"), "int8", dimension=12)
    )
    assert list(made.ids) == list(store.ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float32"}, "holds bfloat16: as float32 it would take more room"),
        ({"dimension": 13}, "dimension=13: .* holds 12 numbers a vector"),
        ({"dimension": 0}, "dimension=0"),
        ({}, "holds bfloat16 of dimension 12 already"),
        ({"dtype": "float16"}, "stored as one of"),
    ],
)
def test_what_the_store_does_not_hold_is_refused(tmp_path, options, message):
    store = write_store(tmp_path / "store", VECTORS, dtype="bfloat16")
    with pytest.raises(MarvelError, match=message):
        convert(store, tmp_path / "made", **options)
    assert not (tmp_path / "made").exists()
