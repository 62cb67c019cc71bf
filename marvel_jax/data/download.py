"""Published corpora from the Hugging Face Hub: what there is, what of it is wanted, fetching it."""

import contextlib
import errno
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from marvel_jax.data.mbeir_sets import DATASETS, parse_choice
from marvel_jax.errors import MarvelError

MBEIR_REPO = "TIGER-Lab/M-BEIR"
NLI_REPO, NLI_FILE = "princeton-nlp/datasets-for-simcse", "nli_for_simcse.csv"

ARCHIVE = re.compile(r"mbeir_images\.tar\.gz\.part-\d+")
"""M-BEIR's pictures: one archive, cut in parts that only together can be read."""

KINDS = ("queries", "pools", "qrels", "instructions", "images")
SPLITS = ("train", "val", "test")

LARGE = 1_000_000_000
"""Files from this size on are fetched in a way that goes on within a file: the Hub's client fetches
an interrupted file anew, which for a part of M-BEIR's archive is 48 GB."""

_FOLDERS = {"query": "queries", "cand_pool": "pools", "qrels": "qrels"}
_FOLDERS |= {"instructions": "instructions"}
_SET = re.compile(r"mbeir_(?P<name>[a-z0-9]+)_task(?P<task>\d)")
_SPLIT = re.compile(r"(?:^|[/_])(train|val|test)(?=[/_.])")
_ATTEMPTS = 5
_CHUNK = 1 << 20

Progress = Callable[[str, int, int], None]  # (file, bytes there, bytes in all)


class RemoteFile(NamedTuple):
    """A file of a repository: its path, its bytes, and its SHA-256 where the Hub has one."""

    name: str
    size: int
    sha256: str | None


class Listing(NamedTuple):
    """The files of a data set's repository at one commit."""

    repo: str
    revision: str
    files: tuple[RemoteFile, ...]


def list_files(repo: str) -> Listing:
    """Asks the Hub for a data set's newest commit and its files.

    Raises:
      MarvelError: the Hub cannot be reached, or has no such data set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    with _told(repo):
        api = HfApi(endpoint=_endpoint())
        revision = str(api.dataset_info(repo).sha)
        tree = api.list_repo_tree(repo, recursive=True, revision=revision, repo_type="dataset")
        found = [
            RemoteFile(file.path, file.size, file.lfs.sha256 if file.lfs else None)
            for file in tree
            if isinstance(file, RepoFile)
        ]
    return Listing(repo, revision, tuple(sorted(found)))


def choose_mbeir(files: Sequence[RemoteFile], only: Sequence[str]) -> tuple[RemoteFile, ...]:
    """The files of M-BEIR that are wanted; none named means all.

    Names are of kinds of files (`queries`, `images`, ...), of splits (`test`), or of sets
    (`nights`, `nights_task4`, `task4`). Those of one sort are alternatives, and a file must fit
    each sort that is named; what has no split or no set fits every one, as the archive of pictures
    does and the union files.

    Raises:
      MarvelError: a name means nothing, or nothing is left.
    """
    kinds = {name for name in only if name in KINDS}
    splits = {name for name in only if name in SPLITS}
    sets = [name for name in only if name not in kinds | splits]
    try:
        choices = [parse_choice(name, DATASETS) for name in sets]
    except MarvelError as error:
        known = f"{', '.join(KINDS)}; {', '.join(SPLITS)}; sets as nights, nights_task4 or task4"
        raise MarvelError(f"--only: {error} There are also {known}.") from error

    def wanted(file: RemoteFile) -> bool:
        kind, split, of = _kind(file.name), _SPLIT.search(file.name), _SET.search(file.name)
        if kind is None or (kinds and kind not in kinds):
            return False
        if kind != "images" and splits and split is not None and split[1] not in splits:
            return False
        if not choices or of is None:
            return True
        number, task = DATASETS.get(of["name"]), int(of["task"])
        return any(
            choice.dataset in (None, number) and choice.task in (None, task) for choice in choices
        )

    chosen = tuple(file for file in files if wanted(file))
    if not chosen:
        raise MarvelError(f"--only {' '.join(only)} leaves no file of {MBEIR_REPO}.")
    return chosen


def bytes_missing(files: Sequence[RemoteFile], folder: Path) -> int:
    """How many bytes have yet to be fetched: files that are there in part count in part."""
    missing = 0
    for file in files:
        path, partial = folder / file.name, _partial(folder, file)
        if path.is_file() and path.stat().st_size == file.size:
            continue
        there = partial.stat().st_size if file.size >= LARGE and partial.is_file() else 0
        missing += max(file.size - there, 0)
    return missing


def fetch(
    listing: Listing,
    files: Sequence[RemoteFile],
    folder: Path,
    *,
    progress: Progress | None = None,
) -> None:
    """Brings files of a listing into a folder; what is there already is not fetched again.

    Raises:
      MarvelError: the Hub cannot be reached or ends the connection again and again, or a file is
        not what the listing says. The same call goes on where it stopped.
    """
    from huggingface_hub import snapshot_download

    folder.mkdir(parents=True, exist_ok=True)
    small = [file.name for file in files if file.size < LARGE]
    if small:
        with _told(listing.repo):
            snapshot_download(
                listing.repo,
                repo_type="dataset",
                revision=listing.revision,
                local_dir=folder,
                allow_patterns=small,
                endpoint=_endpoint(),
            )
    for file in files:
        if file.size >= LARGE:
            _fetch_large(listing, file, folder, progress)
        path = folder / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            found = path.stat().st_size if path.is_file() else "no"
            raise MarvelError(
                f"{path} has {found} bytes after its download, expected {file.size}: remove it and "
                "run the same command again."
            )


def _fetch_large(
    listing: Listing, file: RemoteFile, folder: Path, progress: Progress | None
) -> None:
    path, partial = folder / file.name, _partial(folder, file)
    if path.is_file() and path.stat().st_size == file.size:
        return
    partial.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while (before := partial.stat().st_size if partial.is_file() else 0) < file.size:
        try:
            with _told(listing.repo):
                _append(listing, file, partial, progress)
        except MarvelError:
            now = partial.stat().st_size if partial.is_file() else 0
            failures = 0 if now > before else failures + 1
            if failures >= _ATTEMPTS:
                raise
    if partial.stat().st_size > file.size or _differs(partial, file.sha256):
        partial.unlink()
        raise MarvelError(
            f"{file.name} of {listing.repo} came with other bytes than the Hub lists, and was "
            "removed: run the same command again."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(path)


def _append(listing: Listing, file: RemoteFile, partial: Path, progress: Progress | None) -> None:
    """Fetches what a partial file lacks, as far as the connection holds."""
    from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(
        listing.repo,
        file.name,
        repo_type="dataset",
        revision=listing.revision,
        endpoint=_endpoint(),
    )
    with partial.open("ab") as out:
        headers = build_hf_headers() | {"Range": f"bytes={out.tell()}-"}
        headers["Accept-Encoding"] = "identity"
        with get_session().stream("GET", url, headers=headers, follow_redirects=True) as response:
            hf_raise_for_status(response)
            if response.status_code != 206:  # all of it, whatever was asked for
                out.truncate(0)
            for chunk in response.iter_bytes(_CHUNK):
                out.write(chunk)
                if progress is not None:
                    progress(file.name, out.tell(), file.size)


def _kind(name: str) -> str | None:
    return "images" if ARCHIVE.fullmatch(name) else _FOLDERS.get(name.partition("/")[0])


def _partial(folder: Path, file: RemoteFile) -> Path:
    return folder / ".cache" / "marvel" / f"{file.name.replace('/', '--')}.part"


def _differs(path: Path, sha256: str | None) -> bool:
    if sha256 is None:
        return False
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() != sha256


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


@contextlib.contextmanager
def _told(repo: str) -> Iterator[None]:
    """Failures of the Hub's client as one message; a full disk and Ctrl-C stay what they are."""
    try:
        yield
    except Exception as error:  # The client raises its own, its transport's and the system's.
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix("Got: ")
        raise MarvelError(
            f"{repo} could not be had from the Hugging Face Hub ({cause.rstrip('.')}). Check the "
            "connection, HF_ENDPOINT, and that HF_HUB_OFFLINE is not set; the same command goes on "
            "where this one stopped."
        ) from error
