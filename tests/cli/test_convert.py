"""`marvel convert`: a store in fewer bytes."""

import numpy as np
import pytest

from marvel_jax.retrieval.store import VectorStore
from marvel_jax.retrieval.store_writer import Manifest, StoreWriter


@pytest.fixture
def store(tmp_path):
    vectors = np.eye(16, 8, dtype=np.float32) + np.eye(16, 8, k=-8, dtype=np.float32)
    settings = {
        "template": "marvel",
        "attention": "causal",
        "pooling": "mean",
        "positions": "mrope",
    }
    writer = StoreWriter(
        tmp_path / "store",
        Manifest(
            model_hash="m",
            processor_hash="p",
            min_pixels=1,
            max_pixels=2,
            dimension=8,
            count=16,
            source_hash="s",
            **settings,
        ),
    )
    writer.append([f"c:{row}" for row in range(16)], vectors)
    writer.finish()
    return tmp_path / "store"


def test_a_store_is_converted(marvel, store, tmp_path):
    ran = marvel("convert", store, "--out", tmp_path / "int8", "--dtype", "int8", "--json")
    assert ran.code == 0
    assert ran.json["bytes_per_vector"] == 12 and ran.json["bytes_per_vector_before"] == 32
    made = VectorStore.open(tmp_path / "int8")
    np.testing.assert_allclose(made.vectors(), VectorStore.open(store).vectors(), atol=1e-6)


def test_what_cannot_be_converted_is_refused(failing, store, tmp_path):
    assert "give --dtype, --dimension or both" in failing("convert", store, "--out", tmp_path / "x")
    told = failing("convert", store, "--out", tmp_path / "x", "--dimension", 9)
    assert "holds 8 numbers a vector" in told
    # The last vectors have nothing in their first numbers.
    told = failing("convert", store, "--out", tmp_path / "x", "--dimension", 4)
    assert "the vector of 'c:4'" in told
    told = failing("convert", store, "--out", store, "--dtype", "int8")
    assert "exists already" in told
