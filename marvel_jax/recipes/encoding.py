"""What `marvel encode` does."""

import hashlib
import os
import time
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from marvel_jax.data.item_json import item_from_json
from marvel_jax.data.items import Candidate, Item
from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.records import IdTable, Records
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files
from marvel_jax.parallel import schedulers
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode_calls import Tally
from marvel_jax.retrieval.encode_shards import SHARD_ROWS, Share, encode_share, failures_path
from marvel_jax.retrieval.store_types import StoreType

_ANYWHERE = "nowhere:1"  # the processes do not talk, so no address is derived


@dataclass(frozen=True, kw_only=True)
class EncodingOptions:
    """How a pool is encoded; see `retrieval.encode_shards.encode_share`.

    `compute` is the type of weights and matmuls. `process_id` and `num_processes` are a
    scheduler's where they are not given, and one process where there is none.
    """

    dtype: StoreType = "float32"
    dimension: int | None = None
    compute: str = "float32"
    batch_tokens: int = 4096
    shard_rows: int = SHARD_ROWS
    tolerate: int = 0
    process_id: int | None = None
    num_processes: int | None = None

    def __post_init__(self) -> None:
        if self.tolerate < 0:
            raise MarvelError(f"tolerate={self.tolerate}: give how many items may lack, from 0 on.")


def encode_pool(
    model: str, *, pool: Path, out: Path, options: EncodingOptions | None = None
) -> Outcome:
    """Embeds the candidates of an M-BEIR folder or a jsonl into a store."""
    options = EncodingOptions() if options is None else options
    share, device = find_share(options.process_id, options.num_processes)
    say = Console(stderr=True).print
    started = time.perf_counter()
    if pool.is_dir():
        candidates = MbeirFolder(pool).pool("test")
        IdTable(candidates, "did")  # an id that occurs twice is told before hours of encoding
    else:
        candidates = read_items(pool)
    if device is not None:
        _see_only(device)
    if share.processes > 1:
        say(f"process {share.process} of {share.processes}")

    def read(number: int) -> tuple[str, Item]:
        candidate = candidates[number]
        return candidate.id, candidate.item

    tally = Tally()
    store = encode_share(
        Embedder.from_pretrained(model, dtype=options.compute),
        read,
        len(candidates),
        out,
        source_hash=hash_files(*(file.path for file in candidates.files)),
        dtype=options.dtype,
        dimension=options.dimension,
        tolerate=options.tolerate,
        shard_rows=options.shard_rows,
        batch_tokens=options.batch_tokens,
        share=share,
        progress=Pace(say, tally),
        tally=tally,
    )
    seconds = time.perf_counter() - started
    facts: dict[str, Any] = {
        "out": str(out),
        "whole": store is not None,
        "encoded": tally.items,
        "copies": tally.copies,
        "tokens": tally.tokens,
        "token_fill": round(tally.token_fill, 4),
        "seconds": round(seconds, 1),
    }
    if store is None:
        line = f"{out}: this process is done, {tally.items:,} items in {seconds:.0f} s; the last "
        return Outcome(facts, [f"{line}of the others makes the store whole"])
    facts |= {
        "count": len(store),
        "dimension": store.dimension,
        "dtype": store.dtype,
        "failures": store.manifest.failures,
    }
    kept = f"{len(store):,} vectors of {store.dimension} numbers ({store.dtype})"
    lines = [f"{out}: {kept} in {seconds:.0f} s"]
    if tally.items:
        lines.append(
            f"{tally.items:,} items encoded here, {tally.copies:,} of them copies; "
            f"{tally.token_fill:.1%} of the tokens were real"
        )
    if store.manifest.failures:
        lines.append(f"{store.manifest.failures:,} items are lacking: see {failures_path(out)}")
    return Outcome(facts, lines)


class Pace:
    """Turns (done, total) and a tally into a line now and then: speed, padding, time left."""

    def __init__(self, say: Callable[[str], object], tally: Tally, *, every: float = 5.0) -> None:
        self._say, self._tally, self._every = say, tally, every
        self._started = self._last = time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        """Reports if `every` seconds have passed."""
        now = time.perf_counter()
        if now - self._last < self._every or not self._tally.items:
            return
        self._last = now
        seconds = now - self._started
        pace = self._tally.items / seconds
        self._say(
            f"  {done:,} of {total:,}, {pace:,.1f} items/s, "
            f"{self._tally.tokens / seconds:,.0f} tokens/s, "
            f"{1 - self._tally.token_fill:.1%} padding, {_spell((total - done) / pace)} left"
        )


def find_share(
    process_id: int | None,
    num_processes: int | None,
    *,
    environment: Mapping[str, str] | None = None,
) -> tuple[Share, int | None]:
    """This process's share, and the one device of its host that it may use (None: all).

    What is not given is asked of the scheduler; without one, this process does all.

    Raises:
      MarvelError: one of the two is given without the other and no scheduler tells it, or the
        process is not among so many.
    """
    device = None
    if process_id is None and num_processes == 1:  # also inside a scheduler's step
        return Share(), None
    if process_id is None or num_processes is None:
        told = os.environ if environment is None else environment
        place = schedulers.detect(told, coordinator=_ANYWHERE)
        if place is None and not (process_id is None and num_processes is None):
            lacking = "--process-id" if process_id is None else "--num-processes"
            raise MarvelError(
                f"several processes need {lacking} too, for example --num-processes 4 "
                "--process-id 0, and so on up to 3."
            )
        if place is not None:
            process_id = place.process_id if process_id is None else process_id
            num_processes = place.num_processes if num_processes is None else num_processes
            device = place.local_device
    found = Share(process_id or 0, num_processes or 1)
    if not 0 <= found.process < found.processes:
        raise MarvelError(
            f"--process-id {found.process}: with --num-processes {found.processes} it is 0 to "
            f"{found.processes - 1}."
        )
    return found, device


def _see_only(device: int) -> None:
    """Leaves a host's other accelerators to its other processes."""
    import jax

    for platform in ("cuda", "rocm"):
        jax.config.update(f"jax_{platform}_visible_devices", str(device))


def read_items(path: Path) -> Records[Candidate]:
    """Candidates of a jsonl: `id`, and the `text`, `image`, `video` or `parts` of `data.item_json`.

    Paths count from the file's folder. Every line is checked once; then candidates are read when
    they are asked for.

    Raises:
      MarvelError: a line is broken, has no id or no content, or an id occurs twice.
    """
    items = Records([JsonLines(path)], _CandidateMaker(path.parent))
    keys = array("Q")
    for candidate in items:
        digest = hashlib.blake2b(candidate.id.encode(), digest_size=8).digest()
        keys.append(int.from_bytes(digest, "little"))
    if not len(items):
        raise MarvelError(f"{path} holds no item.")
    found = np.asarray(keys)
    order = np.argsort(found, kind="stable")
    for place in np.flatnonzero(found[order][1:] == found[order][:-1]):
        first, second = (int(order[place + step]) for step in (0, 1))
        if items[first].id == items[second].id:
            id = items[second].id
            raise MarvelError(f"{items.where(second)}: id {id!r} occurs twice; rename one.")
    return items


@dataclass(frozen=True)
class _CandidateMaker:
    root: Path

    def __call__(self, row: dict[str, Any], where: str) -> Candidate:
        id = row.get("id")
        if not isinstance(id, str) or not id:
            raise MarvelError(f"{where}: expected an id (text), found {id!r}.")
        item = item_from_json(row, root=self.root, where=f"{where}: {id!r}", id=id)
        return Candidate(id, item, item.modality)


def _spell(seconds: float) -> str:
    """Seconds, or hours and minutes."""
    if seconds < 600:
        return f"{seconds:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:02.0f} min"
