"""The search benchmark: every contender in a process of its own, and figures that are its own."""

import json

import numpy as np
import pytest

from marvel_jax.bench import faiss_peers, search, search_child
from marvel_jax.bench.clustered import Clustered, write_store
from marvel_jax.bench.peak_memory import status_bytes
from marvel_jax.bench.search import SearchOptions, run
from marvel_jax.bench.search_child import Answers, Child
from marvel_jax.errors import MarvelError


class Fake:
    """Finds as many of the ten as its setting says; loads what it built when first asked."""

    loaded, kept = None, None

    def build(self, store, *, workdir):
        return self.kept

    def settings(self):
        return [
            [{"right": right} for right in (2, 5, 9, 10)],
            [{"right": right} for right in (3, 10)],
        ]

    def search(self, queries, k, setting):
        if self.loaded is None:
            self.loaded = np.ones(1 << 26, np.uint8)  # 64 MiB
        found = np.tile(np.arange(k), (len(queries), 1))
        found[:, setting["right"] :] = -1
        return found


@pytest.fixture
def answers(tmp_path):
    np.save(tmp_path / "queries.npy", np.zeros((7, 4), np.float32))
    np.save(tmp_path / "exact.npy", np.tile(np.arange(10), (7, 1)))
    return Answers(Fake(), tmp_path)


def test_the_fastest_setting_that_reaches_each_recall_is_chosen(answers, monkeypatch):
    pace = {2: 100, 5: 80, 9: 60, 10: 40, 3: 90}
    monkeypatch.setattr(answers, "lap", lambda setting: {"queries/s": pace[setting["right"]]})
    half, most, unreachable = answers.grid([0.5, 0.9, 1.1])
    assert (half["setting"], half["recall"]) == ({"right": 5}, 0.5)
    assert (most["setting"], most["queries/s"]) == ({"right": 9}, 60)
    assert unreachable is None


@pytest.mark.skipif(status_bytes("RssAnon") is None, reason="the system does not tell memory")
def test_memory_held_is_that_of_an_index_in_use_and_building_that_of_the_first_run(
    answers, tmp_path
):
    vectors = Clustered(rows=20, dimension=4, spread=1.0, seed=0)
    write_store([("c", vectors)], tmp_path / "store", dtype="float32")
    search_child._give_back()  # what other tests left, as building does
    before = status_bytes("RssAnon") / 2**30
    built = answers.build()
    assert built["held_gib"] >= before + 0.05 and built["build_peak_gib"] > 0
    answers._contender.kept = 123.4
    again = answers.build()
    assert (again["build_seconds"], again["build_peak_gib"]) == (123.4, None)


def test_scann_alone_is_built_searched_and_timed_in_its_own_process(tmp_path):
    pytest.importorskip("scann", reason="ScaNN has wheels for Linux only")
    options = SearchOptions(
        rows=3000, dimension=16, queries=50, recall=(0.8,), peers=(), workdir=tmp_path
    )
    found = run(options)
    (row,) = found["rows"]
    assert row["index"] == "scann" and row["recall"] >= 0.8 and row["queries/s"] > 0
    assert row["build_seconds"] > 0 and row["build_peak_gib"] > 0
    assert found["of_best_peer"] == {"0.8": None}
    assert any("FAISS left out" in line for line in found["notes"])
    # An index that was kept is told with the seconds that it took to build.
    record = json.loads((tmp_path / "index" / "manifest.json").read_text())
    with Child("scann", workdir=tmp_path, threads=1, seconds=300) as child:
        again = child.ask("build")
    assert (again["build_seconds"], again["build_peak_gib"]) == (record["build_seconds"], None)
    # A process that fails says why, and is gone.
    (tmp_path / "exact.npy").unlink()
    with Child("scann", workdir=tmp_path, threads=1, seconds=300) as child:
        with pytest.raises(MarvelError, match=r"(?s)scann: its process ended.*exact\.npy"):
            child.ask("build")
        process = child._process
    assert process.poll() is not None


def test_a_contender_that_the_system_killed_is_told(tmp_path):
    child = Child("scann", workdir=tmp_path, threads=1, seconds=300)
    with pytest.raises(MarvelError, match="scann: its process ended while asked to lap"), child:
        child._process.kill()
        child._process.wait()
        child.ask("lap", setting={"reorder": 20})


@pytest.mark.parametrize("added", [(), ("avx2",)])
def test_only_the_peers_that_are_asked_for_are_measured_and_the_others_are_told(monkeypatch, added):
    with pytest.raises(MarvelError, match="'faiss ivf': choose peers of faiss ivf-flat"):
        SearchOptions(peers=("faiss ivf",))
    monkeypatch.setattr(search.faiss_peers, "why_not", lambda: None)
    monkeypatch.setattr(search.scann_ops, "added_kernels", lambda: added)
    asked = []

    class Told:
        def __init__(self, name, **how):
            asked.append((name, *how["environment"].values()))
            self.name = name

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

        def ask(self, call, **_):
            point = {"setting": {"nprobe": 3}, "recall": 0.9, "queries/s": 9.0}
            lap = {"seconds": 1.0, "cpu_seconds": 1.0}
            return {
                "build": {"build_seconds": 1.0},
                "grid": [point | {"queries/cpu-s": 5.0}],
                "lap": lap,
            }[call]

        def close(self):
            pass

    monkeypatch.setattr(search, "Child", Told)
    monkeypatch.setattr(search, "_prepare", lambda *_: None)
    found = run(SearchOptions(recall=(0.8,), peers=("faiss hnsw32",), repeats=2))
    own = [("scann", "installed")] if added else []
    assert asked == [("scann",), ("faiss hnsw32",), *own]
    assert found["of_best_peer"]["0.8"]["queries/s"] == 1.0
    assert ("queries/s, of ScaNN as installed" in found["of_best_peer"]["0.8"]) == bool(added)
    assert any(
        line.startswith("left out: faiss ivf-flat") and "hnsw32" not in line
        for line in found["notes"]
    )


def test_the_ratio_is_of_the_best_peer_in_the_same_turns(monkeypatch):
    def measured():
        return [
            {"index": name, "target": 0.9, "queries/s": pace, "setting": "nprobe 3"}
            for name, pace in (("scann", 10.0), ("slow", 20.0), ("fast", 30.0))
        ]

    class Timed:
        def __init__(self, seconds):
            self.seconds = iter(seconds)

        def ask(self, call, *, setting):
            assert call == "lap" and setting["nprobe"] == 3
            seconds = next(self.seconds)
            return {"seconds": seconds, "cpu_seconds": 2 * seconds}

    rows, children = measured(), {"scann": Timed([1, 4, 10, 40, 2, 8]), "fast": Timed([2, 30, 3])}
    options = SearchOptions(queries=60, repeats=3, recall=(0.9,))
    found, line = search._turns(rows, children, 0.9, options, lambda line: None)
    # Each turn with itself: 2, 3 and 1.5 times as fast; the slow minute is in both.
    assert (found["peer"], found["queries/s"], found["queries/cpu-s"]) == ("fast", 2.0, 2.0)
    assert found["queries/s, exact scores"] == 0.5
    assert rows[0]["queries/s"] == 30.0 and rows[2]["queries/s"] == 20.0
    assert "2.00x" in line and "as its wheel runs" not in line

    children |= {"scann": Timed([1, 4, 10, 40, 2, 8]), "fast": Timed([2, 30, 3])}
    children["scann as installed"] = Timed([3, 20, 5])
    found, line = search._turns(measured(), children, 0.9, options, lambda line: None)
    assert (found["queries/s"], found["queries/s, of ScaNN as installed"]) == (2.0, 2.5)
    assert line.endswith("2.50x of ScaNN as its wheel runs")


@pytest.mark.peer
def test_faiss_finds_what_is_there(tmp_path):
    pytest.importorskip("faiss", reason="the bench extra is not installed")
    from marvel_jax.bench.clustered import Clustered, write_store
    from marvel_jax.retrieval.exact import top_k

    vectors = Clustered(rows=3000, dimension=16)
    store = write_store([("c", vectors)], tmp_path / "store", dtype="float32")
    queries = vectors.queries(40)
    exact = top_k(queries, store, 10).indices
    for name in faiss_peers.NAMES:
        peer = faiss_peers.FaissPeer(name, threads=1)
        peer.build(store, workdir=tmp_path)
        found = peer.search(queries, 10, peer.settings()[-1][-1])
        right = [np.isin(*pair).mean() for pair in zip(exact, found, strict=True)]
        assert np.mean(right) > 0.98, name


@pytest.mark.parametrize(
    "wrong", [{"rows": 10}, {"dimension": 0}, {"recall": (1.0,)}, {"recall": ()}, {"threads": 0}]
)
def test_mistakes_are_told(wrong):
    with pytest.raises(MarvelError, match=next(iter(wrong))):
        SearchOptions(**wrong)


def test_a_disk_that_is_too_small_is_told_first(tmp_path, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(search.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    with pytest.raises(MarvelError, match=r"1,000,000 vectors .* need 5\.7 GiB .* 1\.0 are free"):
        run(SearchOptions(workdir=tmp_path))
