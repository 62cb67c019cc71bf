"""WebDataset shards as a source: pictures with captions in tar files, read at any place."""

import json
import tarfile
import uuid
import zipfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from marvel_jax.data.byte_file import ByteFile
from marvel_jax.data.items import TASKS, Candidate, Image, Item, Query
from marvel_jax.data.pairs import Made
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_bytes

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
_VERSION = 1
_BLOCK = 512  # bytes; a tar file is made of them


class _Shard(NamedTuple):
    """Where each sample's picture and caption are in a tar file."""

    keys: np.ndarray  # [N] str
    images: np.ndarray  # [N, 2] int64: first byte, byte behind the last
    captions: np.ndarray  # [N, 2] int64
    as_json: np.ndarray  # [N] bool: the caption is a field of a JSON object


class WebDatasetSource:
    """Captions that ask, pictures that answer: a `RetrievalSource` over tar shards.

    Written by specification, not checked on published shards. Neighbouring members with one name
    up to its first dot are a sample: a picture (jpg, jpeg, png or webp) and a caption, as text in
    .txt or as the field `caption_field` of .json; .txt goes before. Sample n of all shards, in the
    order of their names, is query and candidate "0:n".

    Nothing is unpacked. A shard's members are listed once, by the headers alone, and the list is
    kept beside the shard (or in memory where the folder cannot be written); samples are then read
    by their place. The webdataset library reads shards from front to back only, and a batch that
    is known from (seed, step) needs any place; hence the standard library's tarfile.

    Raises:
      MarvelError: there is no shard, one is compressed or broken, or samples lack a part: the
        message counts them and names the first.
    """

    def __init__(
        self, path: Path | str, *, caption_field: str = "caption", keep_index: bool = True
    ) -> None:
        self.paths = _find_shards(path)
        self._field = caption_field
        self._files = [ByteFile(shard) for shard in self.paths]
        self._shards = [_index(shard, keep=keep_index) for shard in self.paths]
        self._bounds = np.cumsum([0, *(len(shard.keys) for shard in self._shards)])
        if not self._bounds[-1]:
            raise MarvelError(f"{path}: the shards hold no sample.")

    @property
    def queries(self) -> Sequence[Query]:
        """The captions."""
        return Made(int(self._bounds[-1]), self._query)

    @property
    def candidates(self) -> Sequence[Candidate]:
        """The pictures, as their files' bytes."""
        return Made(int(self._bounds[-1]), self._candidate)

    @property
    def instructions(self) -> dict[tuple[int, str, str], tuple[str, ...]]:
        """None."""
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of what the shards list; neither pictures nor captions are read for it."""
        listed = [part.tobytes() for shard in self._shards for part in shard]
        return hash_bytes(b"webdataset", self._field.encode(), *listed)

    def candidate_index(self, id: str) -> int:
        """The position of a candidate.

        Raises:
          MarvelError: there is none of this id.
        """
        dataset, _, number = id.partition(":")
        if dataset != "0" or not number.isdecimal() or int(number) >= self._bounds[-1]:
            raise MarvelError(f"Candidate {id} is not among 0:0 to 0:{self._bounds[-1] - 1}.")
        return int(number)

    def _locate(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._bounds, index, side="right")) - 1
        return shard, index - int(self._bounds[shard])

    def _query(self, index: int) -> Query:
        id = f"0:{index}"
        shard, place = self._locate(index)
        start, end = self._shards[shard].captions[place].tolist()
        where = f"{self.paths[shard]}, sample {self._shards[shard].keys[place]}"
        text = _caption(
            self._files[shard].read(start, end),
            field=self._field if self._shards[shard].as_json[place] else None,
            where=where,
        )
        return Query(id=id, item=Item.of(text=text, id=id), task=TASKS[0], positives=(id,))

    def _candidate(self, index: int) -> Candidate:
        id = f"0:{index}"
        shard, place = self._locate(index)
        start, end = self._shards[shard].images[place].tolist()
        name = f"{self.paths[shard]}, sample {self._shards[shard].keys[place]}"
        image = Image(self._files[shard].read(start, end), name=name)
        return Candidate(id=id, item=Item.of(image=image, id=id), modality="image")


def _find_shards(path: Path | str) -> list[Path]:
    """A folder's *.tar, one tar file, or what a pattern such as shards/train-*.tar finds."""
    path = Path(path)
    if path.is_dir():
        found = sorted(path.glob("*.tar"))
    elif any(mark in path.name for mark in "*?["):
        found = sorted(path.parent.glob(path.name))
    else:
        found = [path] if path.is_file() else []
    if not found:
        raise MarvelError(
            f"{path}: there is no shard. Give a folder with .tar files, one of them, or a pattern "
            "such as shards/train-*.tar."
        )
    return found


def _index(path: Path, *, keep: bool) -> _Shard:
    stat = path.stat()
    kept = path.with_name(f".{path.name}.v{_VERSION}-{stat.st_size}-{stat.st_mtime_ns}.npz")
    if keep and kept.is_file():
        try:
            with np.load(kept, allow_pickle=False) as stored:
                return _Shard(**{field: stored[field] for field in _Shard._fields})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            pass  # damaged: it is only a cache, so list again
    shard = _list_members(path)
    if keep:
        partial = kept.with_name(f"{kept.name}.partial-{uuid.uuid4().hex[:8]}")
        try:
            with partial.open("wb") as stream:
                np.savez(stream, **shard._asdict())
            partial.replace(kept)
        except OSError:  # a folder that cannot be written: list again next time
            partial.unlink(missing_ok=True)
    return shard


def _list_members(path: Path) -> _Shard:
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last, end = None, 0
    try:
        with tarfile.open(path, "r:") as shard:
            while (member := shard.next()) is not None:
                shard.members.clear()  # type: ignore[attr-defined]  # it keeps every header else
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if not member.isfile():
                    continue
                folder, slash, name = member.name.rpartition("/")
                stem, _, extension = name.partition(".")
                key, extension = f"{folder}{slash}{stem}", extension.lower()
                if key in samples and (key != last or extension in samples[key]):
                    raise MarvelError(
                        f"{path}: the sample {key} comes twice: its members must be neighbours "
                        "and of different kinds."
                    )
                samples.setdefault(key, {})[extension] = (
                    member.offset_data,
                    member.offset_data + member.size,
                )
                last = key
    except tarfile.TarError as error:
        raise MarvelError(
            f"{path} cannot be read as a tar file ({error}). A compressed one has to be unpacked "
            "to .tar first: its samples cannot be read by their place."
        ) from error
    if path.stat().st_size < end + _BLOCK:  # a tar file ends with empty blocks
        raise MarvelError(f"{path} is cut off: it ends without a tar file's end mark.")
    return _complete(path, samples)


def _complete(path: Path, samples: dict[str, dict[str, tuple[int, int]]]) -> _Shard:
    lacking = []
    images, captions, as_json = [], [], []
    for key, parts in samples.items():
        image = next((parts[kind] for kind in IMAGES if kind in parts), None)
        kind = next((kind for kind in CAPTIONS if kind in parts), None)
        if image is None or kind is None:
            lacking.append(f"{key} ({', '.join(parts)})")
            continue
        images.append(image)
        captions.append(parts[kind])
        as_json.append(kind == "json")
    if lacking:
        raise MarvelError(
            f"{path}: {len(lacking)} of {len(samples)} samples lack a picture "
            f"({', '.join(IMAGES)}) or a caption ({', '.join(CAPTIONS)}). The first is "
            f"{lacking[0]}. Leave them out of the shard, or give them the missing part."
        )
    return _Shard(
        keys=np.array(list(samples), np.str_),
        images=np.array(images, np.int64).reshape(-1, 2),
        captions=np.array(captions, np.int64).reshape(-1, 2),
        as_json=np.array(as_json, bool),
    )


def _caption(content: bytes, *, field: str | None, where: str) -> str:
    try:
        text = content.decode("utf-8")
        value = text if field is None else json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise MarvelError(f"{where}: the caption cannot be read ({error}).") from error
    if field is not None:
        value = value.get(field) if isinstance(value, dict) else None
    if not isinstance(value, str) or not value.strip():
        named = "the caption" if field is None else f"the field {field!r}"
        raise MarvelError(f"{where}: {named} is no text but {value!r}.")
    return value
