import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_stores import random_unit, write_store

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.store_ids import _PREFIX, Ids, encode_ids, ids_blob

# Longer than what is held in memory of an id, equal up to there, and next to it.
TAILS = st.sampled_from(["", "a", "ab", "b", "\x01", "é", "漢", "0" * 300])
HEADS = st.sampled_from(
    ["x", "x" * (_PREFIX - 1), "x" * _PREFIX, "x" * (_PREFIX + 1), "é" * (_PREFIX // 2), "y"]
)
NAMES = st.builds(lambda head, tail: head + tail, HEADS, TAILS)


def ids_of(names, *, shard_rows=3):
    shards = [names[i : i + shard_rows] for i in range(0, len(names), shard_rows)]
    return Ids([ids_blob(encode_ids(shard, where="ids")) for shard in shards], where="ids")


@settings(max_examples=150, deadline=None)
@given(
    names=st.lists(NAMES, min_size=1, max_size=14, unique=True),
    asked=st.lists(NAMES, max_size=8),
    shard_rows=st.integers(1, 5),
)
def test_long_ids_are_found_and_ordered_as_strings(names, asked, shard_rows):
    ids = ids_of(names, shard_rows=shard_rows)
    assert list(ids) == names == ids[:]
    assert [names[row] for row in np.argsort(ids.rank())] == sorted(names)
    expected = [names.index(name) if name in names else -1 for name in asked + names]
    assert ids.rows_of(asked + names).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(names=st.lists(NAMES, min_size=1, max_size=9, unique=True), seed=st.integers(0, 99))
def test_a_long_id_that_occurs_twice_is_named(names, seed):
    twice = names[seed % len(names)]
    with pytest.raises(MarvelError, match=r"occurs twice \(rows \d+ and \d+\); 1 ids") as told:
        ids_of([*names, twice])
    assert repr(twice) in str(told.value)


def test_an_id_with_a_nul_is_not_taken_for_its_beginning():
    assert ids_of(["a", "b"]).rows_of(["a\0", "b", "\0"]).tolist() == [-1, 1, -1]


def test_half_of_a_surrogate_pair_is_no_id(tmp_path):
    with pytest.raises(MarvelError, match="cannot be an id: surrogates not allowed"):
        write_store(tmp_path / "store", random_unit(1, 4), ["\ud83d"])
    store = write_store(tmp_path / "store", random_unit(1, 4), ["a"])
    with pytest.raises(MarvelError, match="no vector for"):
        store.rows_of(["\ud83d"])


def test_one_very_long_id_costs_its_own_bytes(tmp_path):
    names = [f"{row}" for row in range(500)]
    names[7] = "long" * 25_000
    write_store(tmp_path / "store", random_unit(500, 4), names)
    assert (tmp_path / "store" / "ids-00000.npy").stat().st_size < 2 * 100_000
