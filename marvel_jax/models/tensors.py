"""Tensors in safetensors files: read part by part by name, written shard after shard."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json, write_json
from marvel_jax.models import names

FLOATS = ("F64", "F32", "F16", "BF16")


class _Entry(NamedTuple):
    path: Path
    shape: tuple[int, ...]
    dtype: str


class Stored:
    """One open tensor on disk: `stored[slices]` reads those bytes and no others."""

    def __init__(self, view: Any, shape: tuple[int, ...]) -> None:
        self._view = view
        self.shape = shape

    def __getitem__(self, index: names.Region) -> np.ndarray:
        return self._view[index]


class Weights:
    """The tensors of a folder by name, in one file or several.

    Only the headers are read when it is made. A file is open while one of its tensors is: it is
    mapped into memory, and what has been read of a mapping counts as memory of this process.
    """

    def __init__(self, folder: Path, *, name: str = "model.safetensors") -> None:
        self._entries: dict[str, _Entry] = {}
        self.metadata: dict[str, str] = {}
        for path in _files(folder, name):
            with _open(path) as file:
                self.metadata |= file.metadata() or {}
                for key in list(file.keys()):
                    if key in self._entries:
                        raise MarvelError(
                            f"{path}: weight {key} is in another file of {folder} too."
                        )
                    view = file.get_slice(key)
                    shape = tuple(view.get_shape())
                    self._entries[key] = _Entry(path, shape, str(view.get_dtype()))

    def names(self) -> set[str]:
        return set(self._entries)

    def shape(self, key: str) -> tuple[int, ...]:
        return self._entries[key].shape

    def dtype(self, key: str) -> str:
        """As safetensors writes it, such as BF16."""
        return self._entries[key].dtype

    @contextlib.contextmanager
    def open(self, key: str) -> Iterator[Stored]:
        """The tensor, for reading parts of it."""
        entry = self._entries[key]
        with _open(entry.path) as file:
            yield Stored(file.get_slice(key), entry.shape)

    def get(self, key: str) -> np.ndarray:
        """The whole tensor."""
        with _open(self._entries[key].path) as file:
            return file.get_tensor(key)


def write(folder: Path, tensors: Iterator[tuple[str, np.ndarray]], *, max_shard_bytes: int) -> None:
    """Writes model.safetensors, or several files and their index above `max_shard_bytes`.

    Only one file's tensors are in memory besides what the iterator itself holds.
    """
    shards: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    size = total = 0

    def flush() -> None:
        write_file(folder / f"shard-{len(shards)}", shard)
        shards.append(list(shard))
        shard.clear()

    for name, array in tensors:
        if shard and size + array.nbytes > max_shard_bytes:
            flush()
            size = 0
        shard[name] = array
        size += array.nbytes
        total += array.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / "model.safetensors")
        return
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / name)
        weight_map |= dict.fromkeys(keys, name)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / _index("model.safetensors"), index)


def write_file(
    path: Path, arrays: dict[str, np.ndarray], *, metadata: dict[str, str] | None = None
) -> None:
    """Writes one file that torch's side reads too."""
    # transformers refuses a file whose metadata does not say "pt".
    safetensors.numpy.save_file(arrays, path, metadata={"format": "pt", **(metadata or {})})
    # safetensors makes files that only their owner can read: follow the user's own default.
    path.chmod(path.parent.stat().st_mode & 0o666)


def _index(name: str) -> str:
    return f"{name}.index.json"


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        opened = safetensors.safe_open(path, framework="np")
    except (safetensors.SafetensorError, OSError) as error:
        raise MarvelError(_why(path, error)) from error
    with opened as file:
        yield file


def _why(path: Path, error: Exception) -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return (
                f"{path} is a pointer of Git LFS and holds no weights: run `git lfs pull` in its "
                "folder, or fetch the model with `hf download`."
            )
    return (
        f"{path} is not a whole safetensors file ({error}): the download or the copy was cut "
        "short. Copy it again; for a model of the Hub, `hf download OWNER/NAME --force-download`."
    )


def _files(folder: Path, name: str) -> list[Path]:
    index_path = folder / _index(name)
    if index_path.is_file():
        index = read_json(index_path)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise MarvelError(f"{index_path}: field weight_map is missing.")
        files = [folder / part for part in sorted(set(index["weight_map"].values()))]
        absent = [path.name for path in files if not path.is_file()]
        if absent:
            raise MarvelError(
                f"{folder}: {', '.join(absent)} of {index_path.name} is missing: the download is "
                "not whole. Fetch the model again."
            )
        return files
    if (folder / name).is_file():
        return [folder / name]
    if (folder / name).is_dir():
        raise MarvelError(f"{folder / name} is a folder, where the file of weights should be.")
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise MarvelError(
            f"{folder} holds its weights as {', '.join(pickles)}: pickles can run any code when "
            "they are opened and are never read. Convert them with transformers or peft: "
            "save_pretrained(..., safe_serialization=True)."
        )
    raise MarvelError(f"{folder} has no {name} and no {index_path.name}.")
