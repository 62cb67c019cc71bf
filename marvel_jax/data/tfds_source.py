"""A TFDS data set of `tfds_builders` as a source of queries and candidates, by random access."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from marvel_jax.data.items import TASKS, Candidate, Image, Item, Query
from marvel_jax.data.tfds_builders import FOLDER, NO_PICTURE
from marvel_jax.errors import MarvelError

_BLOCK = 128
_KEPT_BYTES = 256 << 20  # of rows, and of pictures

_Record = TypeVar("_Record", Query, Candidate)
_Value = TypeVar("_Value")


class TfdsRows(Sequence[_Record], Generic[_Record]):
    """Rows of a TFDS data source, made into queries or candidates when they are asked for.

    Rows are read in blocks, of which the last 256 MiB are kept: ArrayRecord takes 0.3 ms for one
    row and 0.8 ms for 128 neighbours.
    """

    def __init__(self, rows: Any, make: Callable[[bytes], _Record]) -> None:
        self._rows = rows
        self._make: Callable[[bytes], _Record] = make
        self._length = len(rows)
        self._blocks: _Kept[list[bytes]] = _Kept(_block_bytes)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> _Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[_Record]: ...
    def __getitem__(self, index: int | slice) -> _Record | list[_Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(f"record {index} of {self._length}")
        block, offset = divmod(index % self._length, _BLOCK)
        rows = self._blocks.get(block)
        if rows is None:
            stop = min((block + 1) * _BLOCK, self._length)
            rows = self._rows.__getitems__(list(range(block * _BLOCK, stop)))
            self._blocks.put(block, rows)
        return self._make(rows[offset])


@dataclass(frozen=True)
class TfdsSource:
    """A `RetrievalSource` over `tfds.data_source`; images stay encoded until they are needed.

    Checked on data sets that `tfds_builders.write` made. It presents the same queries and
    candidates in the same order as the M-BEIR layout that it was written from, and has the same
    fingerprint. Make it with `TfdsSource.open`.
    """

    queries: TfdsRows[Query]
    candidates: TfdsRows[Candidate]
    instructions: Mapping[tuple[int, str, str], tuple[str, ...]]
    fingerprint: str

    @classmethod
    def open(cls, corpus: Path | str, split: str = "train") -> "TfdsSource":
        """Opens one split of a corpus folder in which `tfds_builders.write` has written.

        Raises:
          MarvelError: the folder holds no such data set, or not this split.
        """
        root = Path(corpus) / FOLDER
        pictures = _Pictures(_data_source(root, "pictures", "pictures"))
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


class _Kept(Generic[_Value]):
    """What was read last, up to some bytes. Safe among threads; a copy elsewhere starts empty."""

    def __init__(self, measure: Callable[[_Value], int]) -> None:
        self._measure = measure
        self._entries: OrderedDict[int, _Value] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: int) -> _Value | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: int, value: _Value) -> None:
        with self._lock:
            if key not in self._entries:
                self._bytes += self._measure(value)
            self._entries[key] = value
            while self._bytes > _KEPT_BYTES and len(self._entries) > 1:
                self._bytes -= self._measure(self._entries.popitem(last=False)[1])

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, (self._measure,)


def _encoded_bytes(image: Image) -> int:
    return len(image.source) if isinstance(image.source, bytes) else 0


def _block_bytes(block: list[bytes]) -> int:
    return sum(map(len, block))


class _Pictures:
    """The encoded pictures, the last read of them kept: many rows show the same one."""

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self._kept: _Kept[Image] = _Kept(_encoded_bytes)

    def item(self, id: str, fields: Any) -> Item:
        """The item of a candidate's or query's row; its picture as the file's bytes."""
        number = _integer(fields, "picture")
        image = None if number == NO_PICTURE else self._picture(number)
        return Item.of(text=_text(fields, "text") or None, image=image, id=id)

    def _picture(self, number: int) -> Image:
        image = self._kept.get(number)
        if image is None:
            fields = _fields(self._rows[number])
            content = bytes(fields["image"].bytes_list.value[0])
            image = Image(content, name=_text(fields, "path"))
            self._kept.put(number, image)
        return image


@dataclass(frozen=True)
class _QueryMaker:
    pictures: _Pictures

    def __call__(self, row: bytes) -> Query:
        fields = _fields(row)
        id = _text(fields, "id")
        return Query(
            id=id,
            item=self.pictures.item(id, fields),
            task=TASKS[_integer(fields, "task")],
            positives=tuple(_text(fields, "positives").split()),
            # Version 1 of the data set had none.
            negatives=tuple(_text(fields, "negatives").split()) if "negatives" in fields else (),
            dataset=int(id.partition(":")[0]),
        )


@dataclass(frozen=True)
class _CandidateMaker:
    pictures: _Pictures

    def __call__(self, row: bytes) -> Candidate:
        fields = _fields(row)
        id = _text(fields, "id")
        item = self.pictures.item(id, fields)
        return Candidate(id=id, item=item, modality=item.modality)


def _fields(row: bytes) -> Any:
    """A row's fields. TFDS's own decoding takes 50 microseconds a row, this takes 5."""
    return tf_example_pb2.Example.FromString(row).features.feature


def _text(fields: Any, name: str) -> str:
    return str(fields[name].bytes_list.value[0], "utf-8")


def _integer(fields: Any, name: str) -> int:
    return int(fields[name].int64_list.value[0])


def _builder(root: Path, config: str) -> Any:
    """The newest version of the configuration, under whichever name it was written."""
    found = sorted(root.glob(f"*/{config}/*/dataset_info.json"))
    if not found:
        raise MarvelError(
            f"{root} holds no TFDS data set with the configuration {config}: `marvel data emoji "
            f"--out {root.parent}` writes one for emoji, data.tfds_builders.write for any folder "
            "in the M-BEIR layout."
        )
    return tfds.builder_from_directory(str(found[-1].parent))


def _data_source(root: Path, config: str, split: str) -> Any:
    builder = _builder(root, config)
    if split not in builder.info.splits:
        found = ", ".join(builder.info.splits)
        raise MarvelError(f"{root}: {config} has the splits {found}, but not {split!r}.")
    return builder.as_data_source(
        split=split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
