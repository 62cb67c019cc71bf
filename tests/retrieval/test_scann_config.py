"""The rule: what it chooses can be built, within the memory that is there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import scann_memory
from marvel_jax.retrieval.scann_config import ScannConfig, build_bytes, describe, rows_that_fit

GIB = 2**30


@given(
    count=st.integers(3000, 10_000_000),
    dimension=st.integers(8, 4096),
    memory=st.integers(GIB // 4, 64 * GIB),
)
def test_the_rule_gives_shards_that_fit_into_memory(count, dimension, memory):
    config = ScannConfig().resolve(count, dimension, memory=memory)
    assert config.kind == "tree"
    assert 1 <= config.search_leaves <= config.leaves <= config.shard_rows <= count
    assert build_bytes(config.shard_rows, dimension) <= memory * 1.001
    assert config.dimensions_per_block == (2 if dimension <= 512 else 3)
    # A copy of the vectors is kept only where the corpus is one shard, and then gladly.
    assert (config.vectors == "index") == (config.shard_rows == count)


@given(memory=st.integers(1 << 20, 1 << 40), dimension=st.integers(1, 8192))
def test_the_most_rows_that_fit_fit_and_one_in_a_hundred_more_does_not(memory, dimension):
    rows = rows_that_fit(memory, dimension)
    assert build_bytes(rows, dimension) <= memory
    assert build_bytes(rows + rows // 100 + 2, dimension) > memory


@pytest.mark.parametrize(
    ("rows", "leaves"), [(3000, 219), (100_000, 1265), (500_000, 5000), (5_600_000, 23_664)]
)
def test_leaves_hold_a_hundred_rows_where_that_is_neither_too_few_nor_too_many(rows, leaves):
    assert ScannConfig().resolve(rows, 64, memory=1 << 50).leaves == leaves


def test_shards_are_of_equal_size():
    config = ScannConfig(shard_rows=400).resolve(4100, 64, memory=8 * GIB)
    assert config.shard_rows == 373  # eleven of them, where 400 each would leave one of 100
    assert describe(config, count=4100).startswith("11 shards of 77 leaves")


def test_what_is_asked_for_is_kept():
    asked = ScannConfig("tree", 50, 9, 77, 5, "store", 2000)
    assert asked.resolve(4000, 64, memory=GIB) == asked
    assert ScannConfig().resolve(2999, 64, memory=1) == ScannConfig(kind="brute_force")
    assert ScannConfig(kind="brute_force").resolve(9999, 8, memory=1).kind == "brute_force"


def test_mistakes_are_told():
    with pytest.raises(MarvelError, match="leaves=0"):
        ScannConfig(leaves=0)
    with pytest.raises(MarvelError, match="leaves=7000 for 6000"):
        ScannConfig(leaves=7000).resolve(6000, 24, memory=GIB)
    with pytest.raises(MarvelError, match=r"0.00 GiB hold \d+ vectors.*give at least 0.0"):
        ScannConfig().resolve(6000, 1536, memory=1 << 20)
    with pytest.raises(MarvelError, match="memory=0"):
        scann_memory.budget(0)


def test_the_budget_is_what_is_given_or_a_part_of_what_is_free(tmp_path, monkeypatch):
    assert scann_memory.budget(1.5) == 1.5 * GIB
    meminfo, groups = tmp_path / "meminfo", tmp_path / "groups"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable: 1000 kB\n")
    groups.mkdir()
    monkeypatch.setattr(scann_memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(scann_memory, "_GROUPS", groups)
    assert scann_memory.budget(None) == 716_800
    # A container's limit counts where it leaves less.
    (groups / "memory.current").write_text("2000\n")
    (groups / "memory.max").write_text("max\n")
    assert scann_memory.budget(None) == 716_800
    (groups / "memory.max").write_text("12000\n")
    assert scann_memory.budget(None) == 7000
    # What was read of files and can be dropped is free.
    (groups / "memory.stat").write_text("anon 500\nfile 1500\nactive_file 300\ninactive_file 700\n")
    assert scann_memory.budget(None) == pytest.approx(7700, abs=1)
