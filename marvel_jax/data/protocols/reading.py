"""What readers of sets share: JSON with its place in messages, pictures, plain pickles."""

import csv
import io
import pickle
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from marvel_jax.data.items import Item, Video
from marvel_jax.data.protocols.protocol import Answers, SetData, Test
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json


class Record:
    """A JSON object whose fields are asked for by name and type; `where` is its place."""

    def __init__(self, value: Any, where: str) -> None:
        if not isinstance(value, dict):
            raise MarvelError(f"{where}: expected an object, found {type(value).__name__}.")
        self.value: dict[str, Any] = value
        self.where = where

    def text(self, name: str) -> str:
        """A text that is not blank."""
        found = self.value.get(name)
        if not isinstance(found, str) or not found.strip():
            self._refuse(name, "a text", found)
        return found

    def optional_text(self, name: str) -> str | None:
        """A text, or None where it is absent, null or blank."""
        found = self.value.get(name)
        if found is not None and not isinstance(found, str):
            self._refuse(name, "a text or null", found)
        return found if found and found.strip() else None

    def id(self, name: str) -> str:
        """An id, a text or a whole number, as text."""
        found = self.value.get(name)
        if isinstance(found, bool) or not isinstance(found, int | str) or found == "":
            self._refuse(name, "an id", found)
        return str(found)

    def number(self, name: str) -> int:
        """A whole number."""
        found = self.value.get(name)
        if isinstance(found, bool) or not isinstance(found, int):
            self._refuse(name, "a whole number", found)
        return found

    def values(self, name: str) -> list[Any]:
        """A list."""
        found = self.value.get(name)
        if not isinstance(found, list):
            self._refuse(name, "a list", found)
        return found

    def ids(self, name: str) -> list[str]:
        """A list of ids, as texts."""
        found = self.values(name)
        if not all(isinstance(one, int | str) and not isinstance(one, bool) for one in found):
            self._refuse(name, "a list of ids", found)
        return [str(one) for one in found]

    def object(self, name: str) -> "Record":
        """An object."""
        return Record(self.value.get(name), f"{self.where}, {name}")

    def records(self, name: str) -> "list[Record]":
        """A list of objects."""
        return as_records(self.values(name), f"{self.where}, {name}")

    def _refuse(self, name: str, wanted: str, found: Any) -> NoReturn:
        shown = repr(found)
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        raise MarvelError(f"{self.where}: expected {name} as {wanted}, found {shown}.")


def as_records(values: Any, where: str) -> list[Record]:
    """The objects of a list that is not empty."""
    if not isinstance(values, list) or not values:
        raise MarvelError(f"{where}: expected a list of objects, found {type(values).__name__}.")
    return [Record(value, f"{where}, entry {place}") for place, value in enumerate(values)]


def read_records(path: Path) -> list[Record]:
    """The objects of a JSON list."""
    return as_records(read_json(path), str(path))


def read_record(path: Path) -> Record:
    """The object of a JSON file."""
    return Record(read_json(path), str(path))


def read_texts(path: Path) -> list[str]:
    """The texts of a JSON list."""
    found = read_json(path)
    if not isinstance(found, list) or not found:
        raise MarvelError(f"{path}: expected a list of texts, found {type(found).__name__}.")
    for place, text in enumerate(found):
        if not isinstance(text, str) or not text.strip():
            raise MarvelError(f"{path}, entry {place}: expected a text, found {text!r}.")
    return found


def read_csv(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file with a head, of which these columns are wanted."""
    if not path.is_file():
        raise MarvelError(f"{path} does not exist.")
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream)
        absent = [name for name in columns if name not in (reader.fieldnames or ())]
        if absent:
            raise MarvelError(
                f"{path}: expected columns {', '.join(columns)}, found "
                f"{', '.join(reader.fieldnames or ()) or 'none'}."
            )
        rows = list(reader)
    for place, row in enumerate(rows, start=2):
        if any(not (row[name] or "").strip() for name in columns):
            raise MarvelError(f"{path}, line {place}: one of {', '.join(columns)} is empty.")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text file that are not blank, trimmed."""
    if not path.is_file():
        raise MarvelError(f"{path} does not exist.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise MarvelError(f"{path} is not UTF-8 text: {error}.") from error
    return [line.strip() for line in lines if line.strip()]


def read_plain_pickle(path: Path) -> Any:
    """What a pickle holds, bare or as `torch.save` writes it, if it is plain data.

    A pickle can run any code: this one refuses all that is not text, numbers, lists and such.
    """
    if not path.is_file():
        raise MarvelError(f"{path} does not exist.")
    try:
        content = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith("data.pkl")]
                content = archive.read(names[0])
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except MarvelError as error:
        raise MarvelError(f"{path}: {error}") from error
    except Exception as error:  # a broken pickle fails in any way
        raise MarvelError(f"{path} is not a pickle of plain data: {error!r}.") from error


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        raise MarvelError(f"it holds {module}.{name}, and only plain data is read.")


def picture(
    path: Path, *, id: str, text: str | None = None, instruction: str | None = None
) -> Item:
    """An item of a picture, perhaps with a text behind it."""
    return Item.of(image=path, text=text, instruction=instruction, id=id)


def video(path: Path, *, id: str, **sampling: Any) -> Item:
    """An item of a video; `sampling` are arguments of `Video`: num_frames or fps."""
    return Item(parts=(Video(path, **sampling),), id=id)


def texts(found: Iterable[tuple[str, str]], *, instruction: str | None = None) -> list[Item]:
    """Items of (id, text)."""
    return [Item.of(text=text, id=id, instruction=instruction) for id, text in found]


def captioned(
    images: Sequence[tuple[str, Path]],
    captions: Sequence[tuple[str, str, str]],
    *,
    asks_images: str | None = None,
    asks_captions: str | None = None,
    shown_images: str | None = None,
) -> SetData:
    """Pictures and captions, retrieved by each other.

    Args:
      images: (id, path).
      captions: (id, text, id of its picture).
      asks_images: the instruction of captions that look for pictures.
      asks_captions: the instruction of pictures that look for captions.
      shown_images: an instruction on the pictures that are sought.
    """
    of_image: dict[str, list[str]] = {id: [] for id, _ in images}
    for id, _, image in captions:
        if image not in of_image:
            raise MarvelError(f"caption {id!r} is of picture {image!r}, which is not there.")
        of_image[image].append(id)
    collections: dict[str, Sequence[Item]] = {
        "images": [picture(path, id=id, instruction=shown_images) for id, path in images],
        "captions": texts((id, text) for id, text, _ in captions),
    }
    asking = {"t2i": "captions", "i2t": "images"}
    if asks_images is not None:
        asking["t2i"] = "asking captions"
        collections["asking captions"] = [
            item.with_instruction(asks_images) for item in collections["captions"]
        ]
    if asks_captions != shown_images:
        asking["i2t"] = "asking images"
        collections["asking images"] = [
            item.with_instruction(asks_captions) for item in collections["images"]
        ]
    return SetData(
        collections,
        (
            Test("t2i", asking["t2i"], "images", [Answers((image,)) for _, _, image in captions]),
            Test(
                "i2t",
                asking["i2t"],
                "captions",
                [Answers(tuple(of_image[id])) for id, _ in images],
            ),
        ),
    )
