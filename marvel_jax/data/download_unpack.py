"""Unpacks M-BEIR's pictures from the parts of their archive, without joining these on disk."""

import io
import shutil
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, cast

from marvel_jax.data.download import ARCHIVE
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json, write_json

FOLDER = "mbeir_images"
_MARK = Path(".cache") / "marvel" / "unpacked.json"

Progress = Callable[[str, int, int], None]  # (stage, bytes read, bytes in all)


def archive_parts(folder: Path) -> list[Path]:
    """The parts of the archive that are there, in order."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if ARCHIVE.fullmatch(path.name))


def is_unpacked(folder: Path, sizes: Mapping[str, int]) -> bool:
    """Whether an archive of parts of these sizes was unpacked to its end; they may be gone."""
    return (folder / _MARK).is_file() and read_json(folder / _MARK) == dict(sizes)


def bytes_unpacked(folder: Path) -> int:
    """The bytes of the pictures that are in mbeir_images/ already, whole."""
    files = (path for path in (folder / FOLDER).rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files if path.suffix != ".partial")


def unpack(folder: Path, *, progress: Progress | None = None) -> int:
    """Writes the pictures to mbeir_images/; returns how many files the archive has.

    Files that are there with their size are not written again, so an interrupted run goes on,
    though it reads the archive from its beginning. Every file is whole or absent.

    Raises:
      MarvelError: there is no part, one is missing, the archive is broken, or it holds what does
        not belong into mbeir_images/.
    """
    parts = archive_parts(folder)
    numbers = [int(path.name.rpartition("-")[2]) for path in parts]
    if not parts or numbers != list(range(len(parts))):
        found = ", ".join(path.name for path in parts) or "none"
        raise MarvelError(
            f"{folder}: expected the parts of {FOLDER}.tar.gz from part-00 on, found {found}. "
            "Fetch them with `marvel data download mbeir --only images`."
        )
    total = sum(path.stat().st_size for path in parts)
    count = 0
    reader = _Parts(parts)
    try:
        with tarfile.open(fileobj=cast(BinaryIO, reader), mode="r|gz") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                _write(archive, member, folder)
                count += 1
                if progress is not None:
                    progress("unpack", reader.read_bytes, total)
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise MarvelError(
            f"The archive in {folder} breaks off or is broken after {reader.read_bytes:,} of "
            f"{total:,} bytes ({error}): is its last part there? Remove the part and fetch it "
            "again."
        ) from error
    write_json(folder / _MARK, {path.name: path.stat().st_size for path in parts})
    return count


def _write(archive: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    steps = [step for step in member.name.split("/") if step not in ("", ".")]
    if FOLDER not in steps or ".." in steps:
        raise MarvelError(
            f"The archive in {folder} holds {member.name!r}, which does not belong into {FOLDER}/: "
            "unpack it by hand."
        )
    path = folder.joinpath(*steps[steps.index(FOLDER) :])
    if path.is_file() and path.stat().st_size == member.size:
        return
    content = archive.extractfile(member)
    assert content is not None
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as out:
        shutil.copyfileobj(content, out)
    partial.replace(path)


class _Parts(io.RawIOBase):
    """Files read one after the other as if they were one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._left = list(paths)
        self._open: BinaryIO | None = None
        self.read_bytes = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        found = b""
        while not found and (self._open is not None or self._left):
            if self._open is None:
                self._open = self._left.pop(0).open("rb")
            found = self._open.read(size)
            if not found:
                self._open.close()
                self._open = None
        self.read_bytes += len(found)
        return found
