"""Queries a second of approximate search at a given recall: ScaNN beside FAISS, in turns."""

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from marvel_jax.bench import faiss_peers
from marvel_jax.bench.clustered import Clustered, write_store
from marvel_jax.bench.machine import package_version, result
from marvel_jax.bench.search_child import Child
from marvel_jax.bench.search_contenders import EXACT_SCORES, SCANN
from marvel_jax.bench.stopwatch import Lap, median, ratio
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval import scann_ops, scann_processor
from marvel_jax.retrieval.exact import top_k
from marvel_jax.retrieval.prefetch import cores

Say = Callable[[str], None]
_K = 10
_AS_INSTALLED = "scann as installed"
_GIB = 2**30
_SECONDS = 4 * 3600.0  # for a build on the slowest machine that is thought of


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """What to search, and how well."""

    rows: int = 1_000_000
    """Vectors of the corpus; see `clustered.Clustered`."""
    dimension: int = 768
    """Numbers in a vector."""
    queries: int = 2000
    """Of one batch."""
    recall: tuple[float, ...] = (0.95, 0.99)
    """Recall@10 to reach."""
    spread: float = 0.8
    """Of the clusters: with more, neighbours lie in more leaves."""
    threads: int | None = None
    """Of each contender; None: the cores that there are."""
    repeats: int = 7
    """Turns in which the best of each are timed."""
    peers: tuple[str, ...] = faiss_peers.NAMES
    """FAISS's indexes to measure, too."""
    workdir: Path | None = None
    """Keeps corpus and ScaNN's index for another run; None: a temporary folder."""
    seed: int = 0
    """Of the vectors."""

    def __post_init__(self) -> None:
        threads = 1 if self.threads is None else self.threads
        if min(self.rows, self.dimension, self.queries, self.repeats, threads) < 1:
            raise MarvelError("rows, dimension, queries, threads and repeats are positive numbers.")
        if self.rows <= _K:
            raise MarvelError(f"rows={self.rows}: give more than the {_K} that are sought.")
        unknown = sorted(set(self.peers) - set(faiss_peers.NAMES))
        if unknown:
            raise MarvelError(f"{unknown[0]!r}: choose peers of {', '.join(faiss_peers.NAMES)}.")
        if not self.recall or not all(0 < one < 1 for one in self.recall):
            raise MarvelError(f"recall={self.recall}: give shares above 0 and below 1, as 0.95.")


def run(options: SearchOptions, *, say: Say = lambda line: None) -> dict[str, Any]:
    """Builds every contender in a process of its own, seeks the fastest setting of each that
    reaches each recall over its grid, and times these in turns; a row for each.

    `of_best_peer` is ScaNN's queries a second over those of the best peer: the median over turns.
    Where we let ScaNN use kernels that its wheel does not (see `scann_processor`), ScaNN as it is
    installed takes its turns, too.

    Raises:
      MarvelError: the disk does not suffice, or a contender fails.
    """
    names = [SCANN]
    missing = faiss_peers.why_not() if options.peers else "--no-peers"
    if missing is None:
        names += options.peers
    with _workdir(options) as workdir, contextlib.ExitStack() as stack:
        _prepare(options, workdir, say)
        children: dict[str, Child] = {}
        rows: list[dict[str, Any]] = []
        for name in names:
            say(f"{name}: building")
            child = stack.enter_context(_child(name, workdir, options))
            built = child.ask("build")
            say(f"{name}: built in {built['build_seconds']:.0f} s; searching over its grid")
            points = child.ask("grid", targets=list(options.recall))
            for target, point in zip(options.recall, points, strict=True):
                rows.append({"index": name, "target": target, **_shown(point), **built})
                say(f"{name}: recall {target}: {_shown(point)}")
            children[name] = child
            # Memory is for those that lead.
            leaders = {one["index"] for one in _leaders(rows, options)} | {SCANN}
            for loser in set(children) - leaders:
                children.pop(loser).close()
        if scann_ops.added_kernels() and _leaders(rows, options):
            children[_AS_INSTALLED] = stack.enter_context(_child(_AS_INSTALLED, workdir, options))
            children[_AS_INSTALLED].ask("build")
        notes = [f"FAISS left out: {missing}"] if missing else []
        left_out = [name for name in faiss_peers.NAMES if name not in names]
        if left_out and not missing:
            notes.append(f"left out: {', '.join(left_out)}")
        ratios = {}
        for target in options.recall:
            found, line = _turns(rows, children, target, options, say)
            ratios[str(target)] = found
            notes.append(line)
    facts = {
        "rows_of_corpus": options.rows,
        "dimension": options.dimension,
        "batch": options.queries,
        "threads": options.threads or cores(),
        "spread": options.spread,
        "scann": package_version("scann"),
        "scann_added_kernels": list(scann_ops.added_kernels()),
        "faiss": package_version("faiss-cpu"),
        "of_best_peer": ratios,
    }
    return result("search", rows, **facts, notes=notes)


def _child(name: str, workdir: Path, options: SearchOptions) -> Child:
    installed = {scann_processor.VARIABLE: scann_processor.AS_INSTALLED}
    return Child(
        SCANN if name == _AS_INSTALLED else name,
        workdir=workdir,
        threads=options.threads or cores(),
        seconds=_SECONDS,
        environment=installed if name == _AS_INSTALLED else {},
    )


@contextlib.contextmanager
def _workdir(options: SearchOptions) -> Iterator[Path]:
    if options.workdir is not None:
        options.workdir.mkdir(parents=True, exist_ok=True)
        yield options.workdir
        return
    with tempfile.TemporaryDirectory(prefix="marvel-bench-search-") as folder:
        yield Path(folder)


def _prepare(options: SearchOptions, workdir: Path, say: Say) -> None:
    """Corpus, queries and their exact answers, as files."""
    vectors = Clustered(
        rows=options.rows, dimension=options.dimension, spread=options.spread, seed=options.seed
    )
    store = workdir / "store"
    # The corpus, and what an index keeps of it.
    needed = 4 * options.rows * options.dimension * (1 if store.is_dir() else 2)
    free = shutil.disk_usage(workdir).free
    if free < needed:
        raise MarvelError(
            f"{workdir}: {options.rows:,} vectors and their index need {needed / _GIB:.1f} GiB of "
            f"disk, {free / _GIB:.1f} are free. Give another --workdir or fewer --rows."
        )
    say(f"corpus of {options.rows:,} x {options.dimension}")
    opened = write_store([("c", vectors)], store, dtype="float32")
    queries = vectors.queries(options.queries)
    say("exact answers")
    np.save(workdir / "queries.npy", queries)
    np.save(workdir / "exact.npy", top_k(queries, opened, _K).indices)


def _shown(point: dict[str, Any] | None) -> dict[str, Any]:
    if point is None:
        return {"recall": None, "queries/s": None, "queries/cpu-s": None, "setting": "none reaches"}
    setting = ", ".join(f"{name} {value}" for name, value in point["setting"].items())
    shown = {name: point[name] for name in ("recall", "queries/s", "queries/cpu-s")}
    return shown | {"setting": setting}


def _leaders(rows: list[dict[str, Any]], options: SearchOptions) -> list[dict[str, Any]]:
    """The fastest peer's row at each recall."""
    found = []
    for target in options.recall:
        peers = [
            row
            for row in rows
            if row["target"] == target and row["index"] != SCANN and row["queries/s"] is not None
        ]
        if peers:
            found.append(max(peers, key=lambda row: row["queries/s"]))
    return found


def _turns(
    rows: list[dict[str, Any]],
    children: dict[str, Child],
    target: float,
    options: SearchOptions,
    say: Say,
) -> tuple[dict[str, Any] | None, str]:
    """ScaNN and the best peer at one recall, in turns."""
    ours = next(row for row in rows if row["index"] == SCANN and row["target"] == target)
    best = [row for row in _leaders(rows, options) if row["target"] == target]
    if ours["queries/s"] is None or not best:
        return None, f"recall@{_K} {target}: nothing to compare"
    asked = {
        SCANN: (SCANN, _setting(ours["setting"])),
        EXACT_SCORES: (SCANN, _setting(ours["setting"]) | {EXACT_SCORES: 1}),
        best[0]["index"]: (best[0]["index"], _setting(best[0]["setting"])),
    }
    if _AS_INSTALLED in children:
        asked[_AS_INSTALLED] = (_AS_INSTALLED, _setting(ours["setting"]))
    laps: dict[str, list[Lap]] = {name: [] for name in asked}
    for turn in range(options.repeats):
        for name, (child, setting) in asked.items():
            lap = children[child].ask("lap", setting=setting)
            laps[name].append(Lap(lap["seconds"], lap["cpu_seconds"]))
        say(f"recall {target}: turn {turn + 1} of {options.repeats}")
    for row in (ours, best[0]):
        middle = median(laps[row["index"]])
        row["queries/s"] = round(options.queries / middle.seconds, 1)
        row["queries/cpu-s"] = round(options.queries / max(middle.cpu_seconds, 1e-9), 1)
    peer = laps[best[0]["index"]]
    found, exactly = (ratio(peer, laps[name]) for name in (SCANN, EXACT_SCORES))
    line = (
        f"recall@{_K} {target}: ScaNN {ours['queries/s']:,.0f} queries/s, the best peer "
        f"({best[0]['index']}) {best[0]['queries/s']:,.0f}: {found.seconds:.2f}x "
        f"({found.cpu_seconds:.2f}x by processor time); with the scores of exact search to the "
        f"last bit {exactly.seconds:.2f}x ({exactly.cpu_seconds:.2f}x)"
    )
    figures = {
        "peer": best[0]["index"],
        "queries/s": round(found.seconds, 3),
        "queries/cpu-s": round(found.cpu_seconds, 3),
        "queries/s, exact scores": round(exactly.seconds, 3),
        "queries/cpu-s, exact scores": round(exactly.cpu_seconds, 3),
    }
    if _AS_INSTALLED in asked:
        gained = ratio(laps[_AS_INSTALLED], laps[SCANN])
        line += f"; {gained.seconds:.2f}x of ScaNN as its wheel runs"
        figures["queries/s, of ScaNN as installed"] = round(gained.seconds, 3)
    return figures, line


def _setting(shown: str) -> dict[str, int]:
    """The setting that `_shown` wrote."""
    pairs = (pair.rsplit(" ", 1) for pair in shown.split(", "))
    return {name: int(value) for name, value in pairs}
