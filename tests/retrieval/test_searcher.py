"""One door to exact and approximate search."""

import sys

import numpy as np
import pytest
from vector_stores import random_unit, write_store

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import top_k
from marvel_jax.retrieval.scann_index import ScannIndex
from marvel_jax.retrieval.searcher import ExactSearcher, open_searcher

VECTORS = random_unit(60, 8)


def test_without_an_index_the_search_is_exact(tmp_path):
    store = write_store(tmp_path / "store", VECTORS)
    searcher = open_searcher(store)
    assert searcher.store is store and searcher.description == "exact"
    found, exact = searcher.search(VECTORS[:4], 5), top_k(VECTORS[:4], store, 5)
    np.testing.assert_array_equal(found.indices, exact.indices)


def test_with_an_index_scann_searches_and_elsewhere_it_is_said(tmp_path, monkeypatch):
    pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")
    store = write_store(tmp_path / "store", VECTORS)
    ScannIndex.build(store, path=tmp_path / "index")
    told = []
    assert open_searcher(store, tmp_path / "index", say=told.append).description.startswith("ScaNN")
    with pytest.raises(MarvelError, match="no such folder"):
        open_searcher(store, tmp_path / "none")
    assert not told
    monkeypatch.setitem(sys.modules, "scann", None)
    searcher = open_searcher(store, tmp_path / "index", say=told.append)
    assert isinstance(searcher, ExactSearcher)
    assert "ScaNN cannot be loaded" in told[0] and "exactly" in told[0]
