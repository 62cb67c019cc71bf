"""What an evaluation leaves in its folder: rankings, scores and what they are of.

    evaluation.json     model, data, seed, sets, ...; written last, so with it the folder is whole
    scores.json         the scores (`Evaluation.to_dict`)
    rankings/NAME.npz   what was retrieved for a set's queries, as rows of the store
    store/ queries/ index/    the vectors and the ScaNN index that it was made with

A file of rankings holds, for Q queries and lists of K = 50 results:

    query_ids       [Q] text
    k               the cut of the set's main score
    local_rows, local_scores, global_rows, global_scores
                    [Q, K] int32 and float32; -1 and -inf where a list ends before K
    relevant_rows, relevant_counts
                    the right answers: rows of all queries one after the other, how many each has
    relevant_local  bool, as long as relevant_rows: which of them are in the set's own pool
    reranked_local_rows, fused_global_scores, ...
                    after a reranker: the same lists by P(Yes) alone, and by the fused score
    origin          a hash of what the lists were made from; other lists are not used again

While sets are searched, `rankings/.NAME.local.npz` holds the local lists of those that are done.
"""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json_object, write_json
from marvel_jax.retrieval.exact import TopK
from marvel_jax.retrieval.retrieval_sets import Rankings

VERSION = 2
ABOUT, SCORES = "evaluation.json", "scores.json"
ORDERS = ("reranked", "fused")
"""The orders besides the retrieval's that a file of rankings may hold."""


class SetRankings(NamedTuple):
    """The content of one file of rankings.

    relevant: for each query the rows of its right answers; one behind the store's last row has no
    vector. relevant_local: those in the set's own pool. reranked: by name of the order
    ("reranked", "fused"), empty without a reranker.
    """

    name: str
    k: int
    query_ids: list[str]
    retrieved: Rankings
    relevant: list[np.ndarray]
    relevant_local: list[np.ndarray]
    reranked: Mapping[str, Rankings]
    origin: str


@dataclass(frozen=True)
class EvaluationFolder:
    """A whole evaluation, read as it is asked for.

    about: evaluation.json. scores: scores.json. sets: names of the test sets.
    """

    path: Path
    about: Mapping[str, Any]
    scores: Mapping[str, Any]
    sets: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sets", tuple(self.about["sets"]))

    def rankings(self, name: str) -> SetRankings:
        """What was retrieved for a set.

        Raises:
          MarvelError: there is no such set, or its file is missing or damaged.
        """
        if name not in self.sets:
            raise MarvelError(f"{self.path} holds no set {name!r}; there are {list(self.sets)}.")
        return read_rankings(self.path, name)

    @property
    def store_path(self) -> Path:
        """The vectors of all candidates."""
        return self.path / "store"

    @property
    def index_path(self) -> Path | None:
        """The ScaNN index, if there is one."""
        path = self.path / "index"
        return path if path.is_dir() else None

    def queries_path(self, name: str) -> Path:
        """The vectors of a set's queries under the instructions that were evaluated."""
        return self.path / "queries" / f"seed-{self.about['seed']}" / name


def read(path: Path | str) -> EvaluationFolder:
    """Opens the folder of a finished evaluation.

    Raises:
      MarvelError: it is not one, is unfinished, or of another version.
    """
    path = Path(path)
    if not (path / ABOUT).is_file():
        raise MarvelError(
            f"{path} holds no finished evaluation ({ABOUT} is not there). Make one, or finish it: "
            f"`marvel evaluate MODEL --data DIR --workdir {path}`."
        )
    about = read_json_object(path / ABOUT)
    if about.get("version") != VERSION or not isinstance(about.get("sets"), list):
        raise MarvelError(
            f"{path / ABOUT}: version is {about.get('version')!r}, this marvel-jax reads "
            f"{VERSION}. Run `marvel evaluate` again: vectors that are there are kept."
        )
    return EvaluationFolder(path, about, read_json_object(path / SCORES))


def write(path: Path | str, *, scores: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Writes scores.json and evaluation.json; the rankings of `about["sets"]` must be there.

    Raises:
      MarvelError: rankings of a set are missing or damaged.
    """
    path = Path(path)
    for name in about["sets"]:
        read_rankings(path, name)
    write_json(path / SCORES, scores)
    write_json(path / ABOUT, {"version": VERSION, **about})


def says(path: Path | str, *, scores: Mapping[str, Any], about: Mapping[str, Any]) -> bool:
    """Whether the folder is whole with just these scores and facts."""
    try:
        found = read(path)
    except MarvelError:
        return False
    wanted = json.loads(json.dumps([scores, {"version": VERSION, **about}]))  # lists for tuples
    return [found.scores, found.about] == wanted


def holds(path: Path | str, lists: SetRankings, *, any_order: bool = False) -> bool:
    """Whether the file of a set holds these lists; with `any_order`, and any of a reranker's."""
    try:
        found = read_rankings(path, lists.name)
    except MarvelError:
        return False
    same = (found.origin, found.k, found.query_ids) == (lists.origin, lists.k, lists.query_ids)
    orders = found.reranked if any_order else lists.reranked
    return (
        same
        and set(orders) == set(found.reranked)
        and all(_equal(found.reranked[name], orders[name]) for name in orders)
        and _equal(found.retrieved, lists.retrieved)
        and _all_equal(found.relevant, lists.relevant)
        and _all_equal(found.relevant_local, lists.relevant_local)
    )


def begin(path: Path | str) -> None:
    """From here on until `write` the folder is not a whole evaluation."""
    (Path(path) / ABOUT).unlink(missing_ok=True)


def write_rankings(
    path: Path | str,
    name: str,
    *,
    k: int,
    query_ids: Sequence[str],
    retrieved: Rankings,
    relevant: Sequence[np.ndarray],
    relevant_local: Sequence[np.ndarray] | None = None,
    reranked: Mapping[str, Rankings] | None = None,
    origin: str,
) -> None:
    """Writes the file of one set under a temporary name and renames it.

    `relevant_local` has those of `relevant` that are in the set's own pool; None is all of them.
    """
    local = relevant if relevant_local is None else relevant_local
    arrays: dict[str, np.ndarray] = {
        "query_ids": np.array(query_ids, np.str_),
        "k": np.array(k),
        "origin": np.array(origin),
        "relevant_rows": np.concatenate(relevant).astype(np.int64),
        "relevant_counts": np.array([len(rows) for rows in relevant], np.int32),
        "relevant_local": np.concatenate(
            [np.isin(rows, own) for rows, own in zip(relevant, local, strict=True)]
        ),
    }
    for prefix, rankings in (("", retrieved), *(reranked or {}).items()):
        stem = f"{prefix}_" if prefix else ""
        for pool, found in (("local", rankings.local_pool), ("global", rankings.global_pool)):
            arrays[f"{stem}{pool}_rows"] = found.indices.astype(np.int32)
            arrays[f"{stem}{pool}_scores"] = found.scores.astype(np.float32)
    file = _file(path, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("wb") as stream:
        np.savez(stream, allow_pickle=False, **arrays)
    partial.replace(file)
    _local_file(path, name).unlink(missing_ok=True)


def write_local(path: Path | str, name: str, found: TopK, *, origin: str) -> None:
    """Keeps a set's local lists until `write_rankings` has all of its lists."""
    file = _local_file(path, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    with partial.open("wb") as stream:
        np.savez(stream, rows=found.indices, scores=found.scores, origin=np.array(origin))
    partial.replace(file)


def read_local(path: Path | str, name: str, *, origin: str) -> TopK | None:
    """The local lists that `write_local` kept, if they are whole and of this origin."""
    try:
        with np.load(_local_file(path, name), allow_pickle=False) as stored:
            if str(stored["origin"]) != origin:
                return None
            return TopK(stored["scores"], stored["rows"])
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None  # not there, or not whole: it is searched again


def read_rankings(path: Path | str, name: str) -> SetRankings:
    """The rankings of one set, of a whole evaluation or of one under way.

    Raises:
      MarvelError: the file is missing, damaged or of other arrays.
    """
    file = _file(path, name)
    if not file.is_file():
        raise MarvelError(f"{file} does not exist: run `marvel evaluate` again.")
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {key: stored[key] for key in stored.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise MarvelError(
            f"{file} is damaged ({error}): remove it and run `marvel evaluate` again."
        ) from error
    try:
        counts = arrays["relevant_counts"]
        relevant, local = (
            np.split(arrays[key], np.cumsum(counts)[:-1])
            for key in ("relevant_rows", "relevant_local")
        )
        found = SetRankings(
            name=name,
            k=int(arrays["k"]),
            query_ids=arrays["query_ids"].tolist(),
            retrieved=_both(arrays, ""),
            relevant=relevant,
            relevant_local=[rows[own] for rows, own in zip(relevant, local, strict=True)],
            reranked={
                order: _both(arrays, f"{order}_")
                for order in ORDERS
                if f"{order}_local_rows" in arrays
            },
            origin=str(arrays["origin"]),
        )
    except KeyError as error:
        raise MarvelError(
            f"{file} has no array {error}: remove it and run `marvel evaluate` again."
        ) from error
    queries = len(found.query_ids)
    lengths = {len(one.indices) for one in found.retrieved} | {len(counts)}
    if lengths != {queries}:
        raise MarvelError(
            f"{file}: {queries} queries, but arrays for {sorted(lengths)}: remove it and run "
            "`marvel evaluate` again."
        )
    return found


def _equal(first: Rankings, second: Rankings) -> bool:
    return all(_all_equal(one, other) for one, other in zip(first, second, strict=True))


def _all_equal(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> bool:
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def _both(arrays: Mapping[str, np.ndarray], stem: str) -> Rankings:
    return Rankings(
        *(
            TopK(arrays[f"{stem}{pool}_scores"], arrays[f"{stem}{pool}_rows"])
            for pool in ("local", "global")
        )
    )


def _local_file(path: Path | str, name: str) -> Path:
    return Path(path) / "rankings" / f".{name}.local.npz"


def _file(path: Path | str, name: str) -> Path:
    return Path(path) / "rankings" / f"{name}.npz"
