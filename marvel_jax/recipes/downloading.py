"""What `marvel data download` does."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import (
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from marvel_jax.data import download, download_unpack
from marvel_jax.data.download import Listing, RemoteFile
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import Outcome


def download_mbeir(folder: Path, *, only: Sequence[str], unpack: bool) -> Outcome:
    """Fetches M-BEIR or a part of it, and unpacks its pictures if asked."""
    listing = download.list_files(download.MBEIR_REPO)
    files = download.choose_mbeir(listing.files, only)
    archive = [file for file in files if download.ARCHIVE.fullmatch(file.name)]
    if unpack and not archive:
        raise MarvelError("--unpack is for the pictures: add images to --only.")
    there = download_unpack.is_unpacked(folder, {file.name: file.size for file in archive})
    if there:  # the parts may be gone, and are not wanted again
        files, archive = tuple(file for file in files if file not in archive), []
    # JPEGs in an archive are hardly smaller than on disk.
    unpacked = sum(file.size for file in archive)
    extra = 0
    if unpack and archive:  # an interrupted run goes on beside what it has written
        extra = max(0, unpacked - download_unpack.bytes_unpacked(folder))
    needed = _say_disk(listing, files, folder, extra=extra)
    pictures = 0
    with _bar() as progress:
        download.fetch(listing, files, folder, progress=progress)
        if unpack and archive:
            pictures = download_unpack.unpack(folder, progress=progress)
    lines = [_fetched(listing, files, folder)]
    if there:
        lines.append(f"{folder / download_unpack.FOLDER}: unpacked before")
    elif pictures:
        done = f"{pictures:,} pictures; the parts of the archive may be removed"
        lines.append(f"{folder / download_unpack.FOLDER}: {done}")
    elif archive:
        parts = f"the pictures are still in {len(archive)} parts of one archive"
        lines.append(f"{parts}; unpack them, {_size(unpacked)} more:")
        lines.append(f"  marvel data download mbeir --dir {folder} --only images --unpack")
    lines += ["then look whether all is there and whole:", f"  marvel data check {folder}"]
    facts = _facts(listing, files, folder, needed) | {"unpacked": there or pictures > 0}
    return Outcome(facts, lines)


def download_nli(folder: Path) -> Outcome:
    """Fetches SimCSE's sentence triplets, with which the recipe begins."""
    listing = download.list_files(download.NLI_REPO)
    files = tuple(file for file in listing.files if file.name == download.NLI_FILE)
    if not files:
        raise MarvelError(f"{download.NLI_REPO} holds no {download.NLI_FILE} any more.")
    needed = _say_disk(listing, files, folder, extra=0)
    with _bar() as progress:
        download.fetch(listing, files, folder, progress=progress)
    lines = [
        _fetched(listing, files, folder),
        f"{folder / download.NLI_FILE}: columns sent0, sent1, hard_neg; the first stage reads it",
    ]
    return Outcome(_facts(listing, files, folder, needed), lines)


def _say_disk(listing: Listing, files: Sequence[RemoteFile], folder: Path, *, extra: int) -> int:
    """Says how much disk is needed and there, before anything is fetched; returns the need."""
    missing = download.bytes_missing(files, folder)
    needed = missing + extra
    existing = next(
        path for path in (folder.absolute(), *folder.absolute().parents) if path.exists()
    )
    free = shutil.disk_usage(existing).free
    parts = f"{_size(missing)} to fetch" + (f" and {_size(extra)} to unpack" if extra else "")
    Console(stderr=True, highlight=False).print(
        f"{listing.repo} at {listing.revision[:12]}: {len(files)} files, "
        f"{_size(sum(file.size for file in files))}; {parts}; {_size(free)} free in {folder}",
        soft_wrap=True,
    )
    if needed > free:
        raise MarvelError(
            f"{folder} has {_size(free)} free and {_size(needed)} are needed ({parts}): make room, "
            "choose another --dir, or take a part with --only (test; queries pools qrels "
            "instructions leave out the pictures)."
        )
    return needed


def _fetched(listing: Listing, files: Sequence[RemoteFile], folder: Path) -> str:
    size = _size(sum(file.size for file in files))
    return f"{folder}: {len(files)} files of {listing.repo} at {listing.revision}, {size}"


def _facts(
    listing: Listing, files: Sequence[RemoteFile], folder: Path, needed: int
) -> dict[str, object]:
    return {
        "folder": str(folder),
        "repo": listing.repo,
        "revision": listing.revision,
        "files": len(files),
        "bytes": sum(file.size for file in files),
        "bytes_needed": needed,
    }


def _size(count: int) -> str:
    """Bytes as the Hub writes them: powers of a thousand."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{count} B" if unit == "B" else f"{value:,.1f} {unit}"


@contextlib.contextmanager
def _bar() -> Iterator[download.Progress]:
    columns = TextColumn("{task.description}"), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        tasks = {}

        def report(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name, completed=done)
            bar.update(tasks[name], completed=done, total=total)

        yield report
