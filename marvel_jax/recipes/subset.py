"""A part of an M-BEIR folder's queries as a folder of its own, linked to all the rest."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.mbeir import read_dataset_names
from marvel_jax.data.mbeir_sets import DATASETS, choose
from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, write_text

Candidates = Literal["all", "own"]

# What is written (the pool where some candidates are left out); everything else is a link.
_OWN, _POOL = ("query", "qrels"), "cand_pool/global"
_RANGE = 1_000_000_000  # of numbers in `JsonLines.ids`


def write_subset(
    root: Path,
    out: Path,
    *,
    split: str,
    shares: tuple[float, float] = (0.0, 1.0),
    most: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    candidates: Candidates = "all",
    seed: int = 0,
) -> int:
    """Writes the folder `out` with some queries of one split of `root`; returns their number.

    Each set's (data set and task) lines are shuffled by `seed`; of them the shares from
    `shares[0]` to `shares[1]` are kept, at most `most`; a share from 0 on keeps one at least.
    Folders made with the same seed from shares that do not overlap have no line in common. Lines
    stay in the file's order. Of training the union file is taken where there is one, of other
    splits the sets' own files, which have judgements.

    With `candidates="own"` the split's union pool keeps those of the queries' data sets alone, and
    what the queries themselves name.

    Raises:
      MarvelError: the shares are no part of 0 to 1, or no query is left, of a set or at all, or a
        choice names none.
    """
    if not 0 <= shares[0] < shares[1] <= 1:
        raise MarvelError(f"first={shares[0]}, last={shares[1]}: give 0 <= first < last <= 1.")
    root = root.expanduser().resolve()
    folder = _query_folder(root, split)
    files = [JsonLines(path) for path in sorted(folder.glob("*.jsonl"))]
    if not files:
        raise MarvelError(f"{folder} holds no .jsonl file of queries.")
    datasets = np.concatenate([one.ids("qid") // _RANGE for one in files])
    tasks = np.concatenate([one.numbers("task_id") for one in files])
    table = root / "instructions" / "query_instructions.tsv"
    kept = choose(
        datasets,
        tasks,
        include=include,
        exclude=exclude,
        names={**DATASETS, **read_dataset_names(table)},
        where=str(folder),
    )
    kept = _share(datasets, tasks, kept, shares, most, seed, where=str(folder))
    with atomic_folder(out) as partial:
        first = 0
        for one in files:
            own = kept[first : first + len(one)]
            first += len(one)
            if own.any():
                _copy(one, own, partial / folder.relative_to(root) / one.path.name)
                _copy_qrels(root, partial, split, one, own)
        linked = set(_OWN)
        if candidates == "own":
            name = f"mbeir_union_{split}_cand_pool.jsonl"
            _copy_pool(root / _POOL / name, partial / _POOL / name, files, kept, datasets)
            for folder_of_pools in ("cand_pool", _POOL):
                _link(root / folder_of_pools, partial / folder_of_pools, but={"global", name})
            linked.add("cand_pool")
        _link(root, partial, but=linked)
    return int(kept.sum())


def _query_folder(root: Path, split: str) -> Path:
    """A union file has no judgements, so it is for training; else where nothing else is there."""
    union, own = root / "query" / f"union_{split}", root / "query" / split
    preferred, other = (union, own) if split == "train" else (own, union)
    return other if other.is_dir() and not preferred.is_dir() else preferred


def _link(root: Path, out: Path, *, but: set[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    for entry in sorted(root.iterdir()):
        if entry.name not in but and not entry.name.startswith("."):
            (out / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())


def _share(
    datasets: np.ndarray,
    tasks: np.ndarray,
    chosen: np.ndarray,
    shares: tuple[float, float],
    most: int | None,
    seed: int,
    *,
    where: str,
) -> np.ndarray:
    """Bool [N]: the lines of each chosen set's part."""
    kept = np.zeros(len(datasets), bool)
    sets = zip(datasets[chosen].tolist(), tasks[chosen].tolist(), strict=True)
    for dataset, task in sorted({*sets}):
        rows = np.flatnonzero((datasets == dataset) & (tasks == task))
        rows = np.random.default_rng([seed, dataset, task]).permutation(rows)
        first, last = (_bound(share, len(rows)) for share in shares)
        if first == last:
            raise MarvelError(
                f"{where}: of data set {dataset}, task {task}, no query is left: it has "
                f"{len(rows)}, and none of them between the shares {shares[0]:g} and "
                f"{shares[1]:g}. Take a larger part, or leave the set out (exclude)."
            )
        kept[rows[first : last if most is None else min(last, first + most)]] = True
    return kept


def _bound(share: float, count: int) -> int:
    """Where a share of some lines ends: the first line is always of the first share."""
    return max(1, round(share * count)) if share > 0 else 0


def _copy_pool(
    pool: Path, out: Path, files: Sequence[JsonLines], kept: np.ndarray, datasets: np.ndarray
) -> None:
    """The candidates of the kept queries' data sets, and those that the queries name."""
    lines = JsonLines(pool)
    ids = lines.ids("did")
    named = np.fromiter(_named(files, kept), np.int64)
    own = np.isin(ids // _RANGE, np.unique(datasets[kept])) | np.isin(ids, named)
    _copy(lines, own, out)


def _named(files: Sequence[JsonLines], kept: np.ndarray) -> Iterator[int]:
    """The positives and negatives of the kept queries, as `JsonLines.ids` has ids."""
    first = 0
    for one in files:
        for index in np.flatnonzero(kept[first : first + len(one)]).tolist():
            for field in ("pos_cand_list", "neg_cand_list"):
                for named in one[index].get(field) or ():
                    did = named["did"] if isinstance(named, dict) else named
                    dataset, _, number = did.partition(":")
                    yield int(dataset) * _RANGE + int(number)
        first += len(one)


def _copy(lines: JsonLines, kept: np.ndarray, path: Path) -> None:
    wanted = {lines.line_number(int(index)) for index in np.flatnonzero(kept)}
    path.parent.mkdir(parents=True, exist_ok=True)
    with lines.path.open("rb") as stream, path.open("wb") as out:
        for number, line in enumerate(stream, start=1):
            if number in wanted:
                out.write(line if line.endswith(b"\n") else line + b"\n")


def _copy_qrels(root: Path, out: Path, split: str, lines: JsonLines, kept: np.ndarray) -> None:
    """The judgements of the kept queries; a union file has none."""
    name = f"qrels/{split}/{lines.path.stem}_qrels.txt"
    if not (root / name).is_file():
        return
    ids = {lines[int(index)]["qid"] for index in np.flatnonzero(kept)}
    rows = (root / name).read_text(encoding="utf-8").splitlines()
    chosen = [row for row in rows if row.split(maxsplit=1)[:1] and row.split()[0] in ids]
    write_text(out / name, "".join(f"{row}\n" for row in chosen))
