"""The TFDS emoji data set as a source of queries and candidates, by random access."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import tensorflow_datasets as tfds

from marvel_jax.data.items import TASKS, Candidate, Image, Item, Query
from marvel_jax.data.tfds_builders import FOLDER, NAME, NO_PICTURE, VERSION
from marvel_jax.errors import MarvelError

_CHUNK = 2048

_Record = TypeVar("_Record", Query, Candidate)


class TfdsRows(Sequence[_Record], Generic[_Record]):
    """Rows of a TFDS data source, made into queries or candidates when they are asked for."""

    def __init__(self, rows: Any, make: Callable[[Mapping[str, Any]], _Record]) -> None:
        self._rows = rows
        self._make = make

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> _Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Record]: ...
    def __getitem__(self, index: int | slice) -> _Record | list[_Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        return self._make(self._rows[index % len(self)])

    def __iter__(self) -> Iterator[_Record]:
        """In chunks, twice as fast as row by row."""
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            for row in self._rows.__getitems__(list(range(start, stop))):
                yield self._make(row)


@dataclass(frozen=True)
class TfdsSource:
    """A `RetrievalSource` over `tfds.data_source`; images stay encoded until they are needed.

    It presents the same queries and candidates in the same order as the M-BEIR layout that it
    was written from, and has the same fingerprint. Make it with `TfdsSource.open`.
    """

    queries: TfdsRows[Query]
    candidates: TfdsRows[Candidate]
    instructions: Mapping[tuple[int, str, str], tuple[str, ...]]
    fingerprint: str

    @classmethod
    def open(cls, corpus: Path | str, split: str = "train") -> "TfdsSource":
        """Opens one split (train or test) of the corpus folder that `emoji.build` wrote.

        Raises:
          MarvelError: the folder holds no such data set, or not this split.
        """
        root = Path(corpus) / FOLDER
        pictures = _Pictures(
            _data_source(root, "pictures", "pictures", {"image": tfds.decode.SkipDecoding()})
        )
        metadata = _builder(root, "queries").info.metadata
        return cls(
            queries=TfdsRows(_data_source(root, "queries", split), _QueryMaker(pictures)),
            candidates=TfdsRows(_data_source(root, "candidates", split), _CandidateMaker(pictures)),
            instructions={
                (dataset, query, candidate): tuple(prompts)
                for dataset, query, candidate, *prompts in metadata["instructions"]
            },
            fingerprint=metadata["fingerprints"][split],
        )

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {candidate.id: index for index, candidate in enumerate(self.candidates)}

    def candidate_index(self, id: str) -> int:
        """The position of a candidate.

        Raises:
          MarvelError: the split has no candidate with this id.
        """
        try:
            return self._positions[id]
        except KeyError:
            raise MarvelError(
                f"Candidate {id} is not among the {len(self.candidates)} of this split."
            ) from None


@dataclass(frozen=True)
class _Pictures:
    rows: Any

    def item(self, row: Mapping[str, Any]) -> Item:
        """The item of a candidate's or query's row; its picture as the file's bytes."""
        image = None
        if row["picture"] != NO_PICTURE:
            picture = self.rows[int(row["picture"])]
            image = Image(picture["image"], name=picture["path"].decode())
        return Item.of(text=row["text"].decode() or None, image=image, id=row["id"].decode())


@dataclass(frozen=True)
class _QueryMaker:
    pictures: _Pictures

    def __call__(self, row: Mapping[str, Any]) -> Query:
        id = row["id"].decode()
        return Query(
            id=id,
            item=self.pictures.item(row),
            task=TASKS[int(row["task"])],
            positives=tuple(row["positives"].decode().split()),
            dataset=int(id.partition(":")[0]),
        )


@dataclass(frozen=True)
class _CandidateMaker:
    pictures: _Pictures

    def __call__(self, row: Mapping[str, Any]) -> Candidate:
        item = self.pictures.item(row)
        return Candidate(id=item.id or "", item=item, modality=item.modality)


def _builder(root: Path, config: str) -> Any:
    folder = root / NAME / config / VERSION
    if not (folder / "dataset_info.json").is_file():
        raise MarvelError(
            f"{folder} holds no TFDS data set: `marvel data emoji --out {root.parent}` writes one."
        )
    return tfds.builder_from_directory(str(folder))


def _data_source(
    root: Path, config: str, split: str, decoders: Mapping[str, Any] | None = None
) -> Any:
    builder = _builder(root, config)
    if split not in builder.info.splits:
        found = ", ".join(builder.info.splits)
        raise MarvelError(f"{root}: {config} has the splits {found}, but not {split!r}.")
    return builder.as_data_source(split=split, decoders=decoders)
