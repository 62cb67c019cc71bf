"""Where queries and candidates come from, in one description, and how it is opened."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from marvel_jax.data.items import RetrievalSource
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.mined import with_negatives
from marvel_jax.data.mmeb_pairs import MmebPairs
from marvel_jax.data.pair_captions import CaptionPairs
from marvel_jax.data.pair_csv import NliTriplets
from marvel_jax.data.pair_jsonl import JsonPairs
from marvel_jax.data.pairs import PairSource
from marvel_jax.data.plan_groups import PartShare
from marvel_jax.data.taught import with_teachers
from marvel_jax.data.webdataset import WebDatasetSource
from marvel_jax.errors import MarvelError

Reader = Literal["mbeir", "tfds", "nli", "captions", "jsonl", "webdataset", "mmeb"]

# What the path of a reader of folders is to be, and how one is made.
_WHAT_FOLDER = {
    "mbeir": "M-BEIR or of a corpus in its layout, or make a synthetic one there (`marvel data "
    "make-mbeir {0}`) or one of emoji (`marvel data emoji --out {0}`).",
    "tfds": "a corpus with a TFDS data set, or make one of emoji there (`marvel data emoji --out "
    "{0}`).",
}
_WITH_IMAGES = ("captions", "jsonl", "mmeb")


@dataclass(frozen=True)
class SourceConfig:
    """One source of queries and candidates.

    reader: of what form `path` is. "mbeir" and "tfds": a corpus folder, of which `split` is read.
      "nli": a csv of sentence triplets. "captions": a JSON object of captions (CC3M-595K).
      "jsonl": pairs of any kind, one a line. "webdataset": tar shards (a folder, a file or a
      pattern). "mmeb": the folder of MMEB's training files.
    images: where the relative picture paths of "captions", "jsonl" and "mmeb" begin (None: the
      file's folder).
    include, exclude: parts of an M-BEIR folder ("mbeir" only): "nights", "task4", "oven_task6".
    mined: a file of mined negatives for exactly these queries and candidates, in the place of the
      source's own.
    teacher: a file of teacher scores for exactly these queries and candidates, or several; each
      query then has a list of each, of which a step draws one.
    teacher_shares: how often each of several is drawn (): alike.
    name, weight, task_weights: in a mixture only: what stands before ids (None: the reader), the
      part's share of all batches and its tasks' shares within it (None: by size).
    """

    path: str
    reader: Reader = "mbeir"
    split: str = "train"
    images: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    mined: str | None = None
    teacher: str | tuple[str, ...] | None = None
    teacher_shares: tuple[float, ...] = ()
    name: str | None = None
    weight: float | None = None
    task_weights: dict[int, float] | None = None

    def __post_init__(self) -> None:
        if self.images is not None and self.reader not in _WITH_IMAGES:
            raise MarvelError(
                f"images={self.images!r} with reader={self.reader!r}: only "
                f"{', '.join(_WITH_IMAGES)} take a folder of pictures. Leave it None."
            )
        if (self.include or self.exclude) and self.reader != "mbeir":
            raise MarvelError(
                f"include={list(self.include)}, exclude={list(self.exclude)} with "
                f"reader={self.reader!r}: only 'mbeir' has sets to choose from."
            )
        for field in ("include", "exclude"):
            value = getattr(self, field)
            if isinstance(value, str):  # each of its letters would be a choice
                raise MarvelError(f"{field}={value!r} is one text: write ({value!r},).")
        shares = self.teacher_shares
        if shares and (len(shares) != len(self.teachers) or min(shares) <= 0):
            raise MarvelError(
                f"teacher_shares={list(shares)} with {len(self.teachers)} files of teacher scores: "
                "give each a positive share, or leave it ()."
            )
        _ = self.share

    @property
    def label(self) -> str:
        """The part's name in a mixture."""
        return self.name if self.name is not None else self.reader

    @property
    def teachers(self) -> tuple[str, ...]:
        """The files of teacher scores."""
        if self.teacher is None:
            return ()
        return (self.teacher,) if isinstance(self.teacher, str) else tuple(self.teacher)

    @property
    def share(self) -> PartShare:
        """What the plan has to know of a part."""
        return PartShare(self.weight, self.task_weights)


def open_source(
    config: SourceConfig,
    *,
    field: str = "data",
    retrieved_by: str | None = None,
    taught_by: str | None = None,
) -> RetrievalSource:
    """Opens a source with its mined negatives and its teachers' lists.

    Args:
      config: what to open.
      field: what messages call its description.
      retrieved_by: `model_hash` that the manifests of `mined` and `teacher` must have; None = any.
      taught_by: `teacher_hash` that those of `teacher` must have.

    Raises:
      MarvelError: the path does not exist, or what its reader refuses; or files of mined negatives
        or teacher scores do not fit it, with what is wrong with each of them.
    """
    source = _read(config, field)
    faults: list[str] = []
    if config.mined is not None:
        try:
            source = with_negatives(source, config.mined, model_hash=retrieved_by)
        except MarvelError as error:
            faults.append(str(error))
    if config.teachers:
        try:
            source = with_teachers(
                source,
                config.teachers,
                shares=config.teacher_shares,
                retrieved_by=retrieved_by,
                taught_by=taught_by,
            )
        except MarvelError as error:
            faults.append(str(error))
    if faults:
        raise MarvelError(" ".join(faults))
    return source


def _read(config: SourceConfig, field: str) -> RetrievalSource:
    path = Path(config.path)
    if config.reader in _WHAT_FOLDER and not path.is_dir():
        raise MarvelError(
            f"{field}.path={config.path} does not exist: name the folder of "
            + _WHAT_FOLDER[config.reader].format(config.path)
        )
    if config.reader == "mbeir":
        return MbeirFolder(path).source(
            config.split, include=config.include, exclude=config.exclude
        )
    if config.reader == "tfds":
        from marvel_jax.data.tfds_source import TfdsSource  # half a second to import

        return TfdsSource.open(path, config.split)
    try:
        if config.reader == "webdataset":
            return WebDatasetSource(path)
        if config.reader == "nli":
            return PairSource(NliTriplets(path))
        if config.reader == "captions":
            return PairSource(CaptionPairs(path, images=config.images))
        if config.reader == "mmeb":
            return PairSource(MmebPairs(path, images=config.images))
        return PairSource(JsonPairs(path, images=config.images))
    except MarvelError as error:
        raise MarvelError(f"{field} (reader={config.reader!r}): {error}") from error
