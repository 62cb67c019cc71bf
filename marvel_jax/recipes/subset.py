"""A part of an M-BEIR folder's queries as a folder of its own, linked to all the rest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from marvel_jax.data.json_lines import JsonLines
from marvel_jax.data.mbeir import read_dataset_names
from marvel_jax.data.mbeir_sets import DATASETS, choose
from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, write_text

_OWN = ("query", "qrels")  # what is written; everything else is a link


def write_subset(
    root: Path,
    out: Path,
    *,
    split: str,
    shares: tuple[float, float] = (0.0, 1.0),
    most: int | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> int:
    """Writes the folder `out` with some queries of one split of `root`; returns their number.

    Each set's (data set and task) lines are shuffled by `seed`; of them the shares from
    `shares[0]` to `shares[1]` are kept, at most `most`, at least one. Folders made with the same
    seed from shares that do not overlap have no line in common. Lines stay in the file's order.

    Raises:
      MarvelError: the shares are no part of 0 to 1, or no query is left or a choice names none.
    """
    if not 0 <= shares[0] < shares[1] <= 1:
        raise MarvelError(f"first={shares[0]}, last={shares[1]}: give 0 <= first < last <= 1.")
    root = root.expanduser().resolve()
    union = root / "query" / f"union_{split}"
    folder = union if union.is_dir() else root / "query" / split
    files = [JsonLines(path) for path in sorted(folder.glob("*.jsonl"))]
    if not files:
        raise MarvelError(f"{folder} holds no .jsonl file of queries.")
    datasets = np.concatenate([one.ids("qid") // 1_000_000_000 for one in files])
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
    kept &= _share(datasets, tasks, shares, most, seed)
    if not kept.any():
        raise MarvelError(f"{folder}: no query is left: take a larger part.")
    with atomic_folder(out) as partial:
        first = 0
        for one in files:
            own = kept[first : first + len(one)]
            first += len(one)
            if own.any():
                _copy(one, own, partial / folder.relative_to(root) / one.path.name)
                _copy_qrels(root, partial, split, one, own)
        for entry in sorted(root.iterdir()):
            if entry.name not in _OWN and not entry.name.startswith("."):
                (partial / entry.name).symlink_to(entry, target_is_directory=entry.is_dir())
    return int(kept.sum())


def _share(
    datasets: np.ndarray,
    tasks: np.ndarray,
    shares: tuple[float, float],
    most: int | None,
    seed: int,
) -> np.ndarray:
    """Bool [N]: the lines of each set's part."""
    kept = np.zeros(len(datasets), bool)
    for dataset, task in sorted({*zip(datasets.tolist(), tasks.tolist(), strict=True)}):
        rows = np.flatnonzero((datasets == dataset) & (tasks == task))
        rows = np.random.default_rng([seed, dataset, task]).permutation(rows)
        first, last = (round(share * len(rows)) for share in shares)
        last = max(last, first + 1)
        kept[rows[first : last if most is None else min(last, first + most)]] = True
    return kept


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
