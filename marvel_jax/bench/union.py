"""Search over a pool in the shape of M-BEIR's union: ScaNN for every query, exact for a sample."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.bench.clustered import Clustered, write_store
from marvel_jax.bench.machine import cpu_seconds, result
from marvel_jax.bench.peak_memory import PeakMemory
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object, write_json
from marvel_jax.retrieval import scann_ops
from marvel_jax.retrieval.exact import TopK, top_k
from marvel_jax.retrieval.scann_index import ScannIndex, recall_against_exact
from marvel_jax.retrieval.store import VectorStore

Say = Callable[[str], None]
_GIB = 2**30
_K = 10
_APART = 0.7
_TUNING_QUERIES = 1000
_INDEX_BYTES_PER_NUMBER = 0.5  # of a vector
_SEARCHED_AT_ONCE = 8192


class Task(NamedTuple):
    """A test set of M-BEIR: its queries and its own pool."""

    name: str
    queries: int
    pool: int


# The published test sets; their pools are the union of 5,609,079 candidates.
TASKS = (
    Task("visualnews_task0", 19_995, 542_246),
    Task("mscoco_task0", 24_809, 5_000),
    Task("fashion200k_task0", 1_719, 201_824),
    Task("webqa_task1", 2_455, 544_457),
    Task("edis_task2", 3_241, 1_047_067),
    Task("webqa_task2", 2_511, 403_196),
    Task("visualnews_task3", 20_000, 537_568),
    Task("mscoco_task3", 5_000, 24_809),
    Task("fashion200k_task3", 4_889, 61_707),
    Task("nights_task4", 2_120, 40_038),
    Task("oven_task6", 50_004, 676_667),
    Task("infoseek_task6", 11_323, 611_651),
    Task("fashioniq_task7", 6_003, 74_381),
    Task("cirr_task7", 4_170, 21_551),
    Task("oven_task8", 14_741, 335_135),
    Task("infoseek_task8", 17_593, 481_782),
)


@dataclass(frozen=True, kw_only=True)
class UnionOptions:
    """How large, and where."""

    workdir: Path
    """Folder of the store, the index and the stages' figures; run again, it goes on."""
    scale: float = 0.1
    """Of the true pools and queries."""
    dimension: int = 1536
    """Numbers in a vector."""
    target_recall: float = 0.95
    """Recall@10 that the index is tuned to."""
    sample: int = 1000
    """Queries that are searched exactly, too."""
    memory: float = 4.0
    """GiB that building a shard of the index may take."""
    seed: int = 0
    """Of the vectors."""

    def __post_init__(self) -> None:
        if not 0 < self.scale <= 1 or self.dimension < 8 or self.sample < 1:
            raise MarvelError(
                f"scale={self.scale}, dimension={self.dimension}, sample={self.sample}: give a "
                "scale above 0 and up to 1, at least 8 numbers and 1 query."
            )

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks at this scale, none of them empty."""

        def part(number: int) -> int:
            return max(1, round(number * self.scale))

        return tuple(Task(one.name, part(one.queries), part(one.pool)) for one in TASKS)


def run(options: UnionOptions, *, say: Say = lambda line: None) -> dict[str, Any]:
    """Writes the store, builds the index, searches; a row for each stage.

    `peak_gib` is the most that the process held in memory during the stage. A stage that was done
    by an earlier run of the same options keeps the figures of that run, and is named in
    `resumed`. Both searches are timed warm.

    Raises:
      MarvelError: the disk does not suffice, or the workdir holds another benchmark.
    """
    begin(options)
    workdir, tasks = options.workdir, options.tasks
    named = parts(options)
    names, vectors = [name for name, _ in named], [part for _, part in named]
    stages = _Stages(workdir / "stages.json", say)

    def store_stage() -> tuple[VectorStore, dict[str, Any]]:
        tick = _Ticker(say)
        store = write_store(named, workdir / "store", dtype="bfloat16", progress=tick)
        return store, {"vectors": len(store)}

    store = stages.run("write", store_stage) or VectorStore.open(workdir / "store", check="layout")
    # Other queries than those that are measured, of the tasks in the same shares.
    counts = _shares(tasks, _TUNING_QUERIES)
    tuning = np.concatenate(
        [part.queries(count, stream="tuning") for part, count in zip(vectors, counts, strict=True)]
    )

    def index_stage() -> tuple[ScannIndex, dict[str, Any]]:
        path = workdir / "index"
        index = (
            ScannIndex.open(path, store)
            if path.is_dir()
            else ScannIndex.build(
                store,
                path=path,
                memory_gb=options.memory,
                target_recall=options.target_recall,
                queries=tuning,
                say=say,
            )
        )
        return index, {"vectors": len(store), "setting": index.description}

    index = stages.run("index", index_stage) or ScannIndex.open(workdir / "index", store)

    def scann_stage() -> tuple[None, dict[str, Any]]:
        seconds, cpu, done = 0.0, 0.0, 0
        total = sum(task.queries for task in tasks)
        for task, part in zip(tasks, vectors, strict=True):
            queries = part.queries(task.queries)
            found = []
            for first in range(0, len(queries), _SEARCHED_AT_ONCE):
                block = queries[first : first + _SEARCHED_AT_ONCE]
                if not done:  # loads the index
                    index.search(block, _K)
                started, used = time.perf_counter(), cpu_seconds()
                found.append(index.search(block, _K))
                seconds += time.perf_counter() - started
                cpu += cpu_seconds() - used
                done += len(block)
                say(f"  ScaNN: {done:,} of {total:,} queries, {done / seconds:,.0f}/s")
            rows = np.concatenate([one.indices for one in found])
            np.save(workdir / f"scann-{task.name}.npy", rows)
        kernels = {"added_kernels": list(scann_ops.added_kernels())}
        return None, {"queries": done, **_pace(done, seconds, cpu), **kernels}

    stages.run("scann", scann_stage)
    counts = _shares(tasks, options.sample)
    sampled = [part.queries(count) for part, count in zip(vectors, counts, strict=True)]

    def exact_stage() -> tuple[None, dict[str, Any]]:
        queries = np.concatenate(sampled)
        # A few blocks of the corpus, to compile what the timed search runs.
        few = np.arange(min(len(store), 2 * _SEARCHED_AT_ONCE))
        top_k(queries, store, _K, subset=few)
        started, used = time.perf_counter(), cpu_seconds()
        found = top_k(queries, store, _K)
        pace = _pace(len(queries), time.perf_counter() - started, cpu_seconds() - used)
        np.save(workdir / "exact.npy", found.indices)
        return None, {"queries": len(queries), **pace}

    stages.run("exact", exact_stage)
    exact = np.load(workdir / "exact.npy")
    got = np.concatenate(
        [
            np.load(workdir / f"scann-{name}.npy")[:count]
            for name, count in zip(names, counts, strict=True)
        ]
    )
    recall = recall_against_exact(_rows(got), _rows(exact))
    return _figures(options, stages, recall, store, index)


def parts(options: UnionOptions) -> list[tuple[str, Clustered]]:
    """The name and the vectors of every task, apart from each other as data sets are."""
    return [
        (
            task.name,
            Clustered(
                rows=task.pool,
                dimension=options.dimension,
                apart=_APART,
                part=number,
                seed=options.seed,
            ),
        )
        for number, task in enumerate(options.tasks)
    ]


def begin(options: UnionOptions) -> None:
    """Makes the workdir of these options, after a look at the disk; see `run`."""
    workdir = options.workdir
    asked = dataclasses.asdict(options) | {"workdir": str(workdir)}
    file = workdir / "options.json"
    if file.is_file():
        found = read_json_object(file)
        others = [name for name in asked if name != "workdir" and found.get(name) != asked[name]]
        if others:
            raise MarvelError(
                f"{workdir} holds a benchmark with other options ({', '.join(others)}): give "
                "another --workdir, or remove it."
            )
        return
    rows = sum(task.pool for task in options.tasks)
    needed = int(rows * (options.dimension * (2 + _INDEX_BYTES_PER_NUMBER) + 64))
    workdir.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise MarvelError(
            f"{workdir}: {rows:,} vectors and their index need {needed / _GIB:.1f} GiB of disk, "
            f"{free / _GIB:.1f} are free. Give another --workdir or a smaller --scale."
        )
    write_json(file, asked)


def _shares(tasks: Sequence[Task], total: int) -> list[int]:
    """Queries of each task, some `total` of them, in the shares of all."""
    share = total / sum(task.queries for task in tasks)
    return [min(task.queries, max(1, round(task.queries * share))) for task in tasks]


def _figures(
    options: UnionOptions,
    done: "_Stages",
    recall: np.ndarray,
    store: VectorStore,
    index: ScannIndex,
) -> dict[str, Any]:
    stages = done.done
    rows = [{"stage": name, **figures} for name, figures in stages.items()]
    pace = {name: stages[name]["queries/s"] for name in ("scann", "exact")}
    per_core = {name: stages[name]["queries/cpu-s"] for name in ("scann", "exact")}
    peaks = [row["peak_gib"] for row in rows if row["peak_gib"] is not None]
    facts = {
        "scale": options.scale,
        "dimension": options.dimension,
        "recall": round(float(recall.mean()), 5),
        "recall_error": round(float(recall.std() / len(recall) ** 0.5), 5),
        "speedup": round(pace["scann"] / pace["exact"], 2),
        "speedup_cpu": round(per_core["scann"] / per_core["exact"], 2),
        "peak_gib": max(peaks) if peaks else None,
        "store_bytes": len(store) * store.bytes_per_vector,
        "index_bytes": index.bytes,
        "resumed": done.resumed,
    }
    line = (
        f"recall@{_K} of ScaNN against exact {facts['recall']:.4f} +- {facts['recall_error']:.4f} "
        f"({len(recall):,} queries); {facts['speedup']:.1f}x exact in queries/s "
        f"({facts['speedup_cpu']:.1f}x by processor time); "
        f"peak memory {facts['peak_gib']} GiB beside a store of "
        f"{facts['store_bytes'] / _GIB:.2f} and an index of {facts['index_bytes'] / _GIB:.2f} GiB"
    )
    notes = [line]
    if done.resumed:
        notes.append(f"measured by earlier runs: {', '.join(done.resumed)}")
    return result("union", rows, **facts, notes=notes)


class _Stages:
    """What each stage took; a stage that has its figures is not run again."""

    def __init__(self, file: Path, say: Say) -> None:
        self._file = file
        self._say = say
        self.done: dict[str, dict[str, Any]] = read_json_object(file) if file.is_file() else {}
        self.resumed = list(self.done)

    def run(self, name: str, call: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
        """What the stage makes; None where it was done before."""
        if name in self.done:
            self._say(f"{name}: done before")
            return None
        self._say(name)
        peak, started = PeakMemory(), time.perf_counter()
        made, figures = call()
        held = peak.bytes()
        self.done[name] = {
            "seconds": round(time.perf_counter() - started, 1),
            "peak_gib": None if held is None else round(held / _GIB, 2),
            **figures,
        }
        write_json(self._file, self.done)
        return made


class _Ticker:
    def __init__(self, say: Say) -> None:
        self._say, self._last = say, time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        if time.perf_counter() - self._last > 5 or done == total:
            self._last = time.perf_counter()
            self._say(f"  {done:,} of {total:,} vectors")


def _pace(queries: int, seconds: float, cpu: float) -> dict[str, float]:
    return {
        "queries/s": round(queries / max(seconds, 1e-9), 1),
        "queries/cpu-s": round(queries / max(cpu, 1e-9), 1),
    }


def _rows(indices: np.ndarray) -> TopK:
    return TopK(np.zeros(indices.shape, np.float32), indices)
