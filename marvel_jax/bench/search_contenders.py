"""What `marvel bench search` compares: ScaNN as it is configured here, and FAISS's indexes."""

import json
import os
import sys
from pathlib import Path

import numpy as np

from marvel_jax.bench import faiss_peers
from marvel_jax.bench.search_child import Answers, Contender, Setting
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.scann_config import ScannConfig
from marvel_jax.retrieval.scann_index import ScannIndex
from marvel_jax.retrieval.store import VectorStore

SCANN = "scann"
EXACT_SCORES = "exact_scores"
_LEAVES = (2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 91, 128, 181, 256, 362, 512, 724, 1024)
_REORDER = (20, 40, 60, 90, 140, 210, 320, 640)


def contender(name: str, *, threads: int) -> Contender:
    """One of `SCANN` and `faiss_peers.NAMES`."""
    if name == SCANN:
        return Scann(threads=threads)
    if name in faiss_peers.NAMES:
        return faiss_peers.FaissPeer(name, threads=threads)
    raise MarvelError(f"{name!r}: choose of {', '.join((SCANN, *faiss_peers.NAMES))}.")


class Scann:
    """The index that `marvel index` builds where memory suffices.

    It answers with ScaNN's own float32 scores, as FAISS answers with its own; with the setting
    `exact_scores` as `marvel evaluate` has it, scored again to the last bit of exact search. ScaNN
    takes the cores that the process may use; so its process is bound to `threads` of them.
    """

    def __init__(self, *, threads: int) -> None:
        self._index: ScannIndex | None = None

    def build(self, store: VectorStore, *, workdir: Path) -> float | None:
        """By the rule, in one shard, and kept in the workdir."""
        path = workdir / "index"
        if path.is_dir():
            self._index = ScannIndex.open(path, store)
            return self._index.build_seconds
        config = ScannConfig(kind="tree", vectors="index", shard_rows=len(store))
        self._index = ScannIndex.build(store, config, path=path, memory_gb=1e6)
        return None

    def settings(self) -> list[list[Setting]]:
        """The grid."""
        assert self._index is not None
        most = self._index.config.leaves or 1
        return [
            [{"search_leaves": leaves, "reorder": reorder} for leaves in _LEAVES if leaves <= most]
            for reorder in _REORDER
        ]

    def search(self, queries: np.ndarray, k: int, setting: Setting) -> np.ndarray:
        """int32 [Q, k]: the rows found."""
        assert self._index is not None
        own = {name: value for name, value in setting.items() if name != EXACT_SCORES}
        if EXACT_SCORES in setting:
            return self._index.search(queries, k, **own).indices
        return self._index.find(queries, k, **own).rows


def main() -> None:
    """Answers, as one contender, the lines of standard input; see `search_child.Child`."""
    asked = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):  # before any thread is started
        mine = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, mine[: asked["threads"]])
    found = contender(asked["name"], threads=asked["threads"])
    answers = Answers(found, Path(asked["workdir"]))
    for line in sys.stdin:
        order = json.loads(line)
        call = getattr(answers, order.pop("call"))
        sys.stdout.write(json.dumps(call(**order)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
