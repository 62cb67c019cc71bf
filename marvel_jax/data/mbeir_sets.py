"""M-BEIR's sixteen sets: names, ids, tasks and sizes, and how a part of them is chosen by name."""

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from marvel_jax.data.items import TASKS
from marvel_jax.errors import MarvelError

TextKind = Literal["caption", "headline", "question", "passage"]


class MbeirSet(NamedTuple):
    """One task of one data set. Sizes are those of the published data.

    `train` counts thousands of training queries, after the up-sampling that UniIR makes of the
    small sets (1.33 million in all); `asks` and `answers` are the kinds of text on the query's
    and on the candidate's side.
    """

    name: str
    dataset: int
    task: int
    train: int
    asks: TextKind | None
    answers: TextKind | None
    test_queries: int
    pool: int
    relevant: float  # candidates that answer a query, on average

    @property
    def full_name(self) -> str:
        """As in the file names: `nights_task4`."""
        return f"{self.name}_task{self.task}"


SETS: tuple[MbeirSet, ...] = (
    MbeirSet("visualnews", 0, 0, 99, "headline", None, 19_995, 542_246, 1.00),
    MbeirSet("mscoco", 9, 0, 100, "caption", None, 24_809, 5_000, 1.01),
    MbeirSet("fashion200k", 1, 0, 15, "caption", None, 1_719, 201_824, 2.82),
    MbeirSet("webqa", 2, 1, 50, "question", "passage", 2_455, 544_457, 2.04),
    MbeirSet("edis", 3, 2, 50, "headline", "headline", 3_241, 1_047_067, 2.57),
    MbeirSet("webqa", 2, 2, 50, "question", "caption", 2_511, 403_196, 1.44),
    MbeirSet("visualnews", 0, 3, 100, None, "headline", 20_000, 537_568, 1.00),
    MbeirSet("mscoco", 9, 3, 113, None, "caption", 5_000, 24_809, 5.00),
    MbeirSet("fashion200k", 1, 3, 15, None, "caption", 4_889, 61_707, 1.00),
    MbeirSet("nights", 4, 4, 50, None, None, 2_120, 40_038, 1.00),
    MbeirSet("oven", 5, 6, 150, "question", "passage", 50_004, 676_667, 9.85),
    MbeirSet("infoseek", 6, 6, 141, "question", "passage", 11_323, 611_651, 6.52),
    MbeirSet("fashioniq", 7, 7, 50, "question", None, 6_003, 74_381, 1.00),
    MbeirSet("cirr", 8, 7, 50, "question", None, 4_170, 21_551, 1.01),
    MbeirSet("oven", 5, 8, 150, "question", "passage", 14_741, 335_135, 17.72),
    MbeirSet("infoseek", 6, 8, 143, "question", "passage", 17_593, 481_782, 7.47),
)

DATASETS: Mapping[str, int] = {one.name: one.dataset for one in SETS}
"""M-BEIR's ten data sets by name."""

_CHOICE = re.compile(r"(?P<name>(?!task\d)[a-z0-9][a-z0-9_-]*?)?(?:(?:^|_)task(?P<task>\d+))?")


class Choice(NamedTuple):
    """Queries of a data set, of a task, or of one task of one data set."""

    dataset: int | None
    task: int | None

    def of(self, datasets: np.ndarray, tasks: np.ndarray) -> np.ndarray:
        """Which queries of these data sets and tasks [N] are meant: bool [N]."""
        found = np.ones(len(datasets), bool)
        if self.dataset is not None:
            found &= datasets == self.dataset
        if self.task is not None:
            found &= tasks == self.task
        return found


def parse_choice(text: str, names: Mapping[str, int]) -> Choice:
    """Reads `nights`, `nights_task4` or `task4`; a data set may also be its number, `10_task0`.

    Raises:
      MarvelError: the name is not among `names`, or M-BEIR has no such task.
    """
    match = _CHOICE.fullmatch(text.strip().lower())
    name, task = (match["name"], match["task"]) if match else (None, None)
    if name is None and task is None:
        raise MarvelError(f"{text!r} names no set: write nights, nights_task4 or task4.")
    if task is not None and int(task) not in TASKS:
        raise MarvelError(f"{text!r} names task {task}; M-BEIR has {', '.join(map(str, TASKS))}.")
    dataset = None
    if name is not None:
        dataset = int(name) if name.isdigit() else names.get(name)
        if dataset is None:
            raise MarvelError(
                f"{text!r} names no data set: there are {', '.join(sorted(names))}, alone or with "
                "a task as in nights_task4; a task of all sets is task4."
            )
    return Choice(dataset, None if task is None else int(task))


def choose(
    datasets: np.ndarray,
    tasks: np.ndarray,
    *,
    include: Sequence[str],
    exclude: Sequence[str],
    names: Mapping[str, int],
    where: str,
) -> np.ndarray:
    """The queries to keep: bool [N]. An empty `include` means all; `exclude` goes before it.

    Raises:
      MarvelError: a choice names what does not exist or what no query is of, or none is left.
    """
    kept = np.full(len(datasets), not include)
    for text in include:
        kept |= _found(text, datasets, tasks, names, f"{where}: include")
    for text in exclude:
        kept &= ~_found(text, datasets, tasks, names, f"{where}: exclude")
    if not kept.any():
        raise MarvelError(
            f"{where}: include={list(include)} and exclude={list(exclude)} leave no query."
        )
    return kept


def _found(
    text: str, datasets: np.ndarray, tasks: np.ndarray, names: Mapping[str, int], where: str
) -> np.ndarray:
    try:
        found = parse_choice(text, names).of(datasets, tasks)
    except MarvelError as error:
        raise MarvelError(f"{where}: {error}") from error
    if not found.any():
        raise MarvelError(f"{where}: no query is of {text!r}: leave it out, or check its task.")
    return found
