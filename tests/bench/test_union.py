"""The union benchmark: the true shape, a run that goes on, and figures that hang together."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from marvel_jax.bench import union
from marvel_jax.bench.union import TASKS, UnionOptions, run
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.exact import top_k
from marvel_jax.retrieval.store import VectorStore


def test_the_tasks_have_the_published_sizes():
    assert len(TASKS) == 16
    assert sum(task.queries for task in TASKS) == 190_573
    assert sum(task.pool for task in TASKS) == 5_609_079


def test_a_tiny_union_is_written_indexed_searched_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")
    options = UnionOptions(
        workdir=tmp_path / "union", scale=0.0006, dimension=16, sample=40, memory=0.5
    )

    def killed(*args, **others):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(union.ScannIndex, "search", killed)
        with pytest.raises(KeyboardInterrupt):  # while it is tuned
            run(options)
    told: list[str] = []
    found = run(options, say=told.append)
    assert told[0] == "write: done before"
    stages = {row["stage"]: row for row in found["rows"]}
    assert list(stages) == ["write", "index", "scann", "exact"]
    assert stages["write"]["vectors"] == sum(task.pool for task in options.tasks)
    assert stages["scann"]["queries"] == sum(task.queries for task in options.tasks)
    assert stages["exact"]["queries"] == pytest.approx(40, abs=16)
    assert found["recall"] >= 0.9 and 0 < found["peak_gib"] < 100
    speedup = stages["scann"]["queries/s"] / stages["exact"]["queries/s"]
    assert found["speedup"] == pytest.approx(speedup, rel=1e-2)
    # The recall is that of the rankings in the folder.
    store = VectorStore.open(tmp_path / "union" / "store")
    assert store.dtype == "bfloat16"
    exact = np.load(tmp_path / "union" / "exact.npy")
    first = union.parts(options)[0][1].queries(1)
    np.testing.assert_array_equal(exact[:1], top_k(first, store, 10).indices)
    again = run(options, say=told.append)
    assert json.dumps(again["rows"]) == json.dumps(found["rows"])
    assert found["resumed"] == ["write"] and again["resumed"] == list(stages)
    assert found["store_bytes"] == 32 * stages["write"]["vectors"]
    with pytest.raises(MarvelError, match=r"other options \(scale\)"):
        run(
            UnionOptions(workdir=tmp_path / "union", scale=0.1, dimension=16, sample=40, memory=0.5)
        )


def test_a_disk_that_is_too_small_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr(union.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    with pytest.raises(MarvelError, match=r"5,609,079 vectors .* need 20\.\d GiB .* 1\.0 are free"):
        run(UnionOptions(workdir=tmp_path / "union", scale=1))
    assert not (tmp_path / "union" / "options.json").exists()


@pytest.mark.parametrize("wrong", [{"scale": 0}, {"scale": 1.5}, {"dimension": 2}, {"sample": 0}])
def test_mistakes_are_told(tmp_path, wrong):
    with pytest.raises(MarvelError, match=next(iter(wrong))):
        UnionOptions(workdir=tmp_path, **wrong)
