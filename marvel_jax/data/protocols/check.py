"""The data doctor for test sets beside M-BEIR: files, fields, ids, counts and pictures."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from marvel_jax.data import video_file
from marvel_jax.data.doctor import Checked, CheckOptions, Progress
from marvel_jax.data.doctor_images import examine
from marvel_jax.data.doctor_problems import Findings, Kind, Problem
from marvel_jax.data.doctor_workers import Workers, available_cores
from marvel_jax.data.items import Image, Item
from marvel_jax.data.protocols.protocol import Protocol, SetData
from marvel_jax.errors import MarvelError

_WORTHWHILE = 4  # tasks of pictures from which processes of their own pay for their start


def check_set(
    protocol: Protocol,
    root: Path | str,
    findings: Findings,
    *,
    options: CheckOptions | None = None,
    progress: Progress | None = None,
) -> Checked:
    """Looks at a set's folder and adds what it finds to `findings`.

    What the reader refuses is one problem, since what follows hangs on it; ids, counts and
    pictures are all told. An interruption (Ctrl-C) ends it early.

    Raises:
      MarvelError: the folder is missing, or videos are to be decoded and PyAV is not installed.
    """
    options = CheckOptions() if options is None else options
    root = Path(root)
    checked = Checked(stage="files")
    if not root.is_dir():
        raise MarvelError(f"{root} is not a folder.")
    try:
        _add(findings, _absent(protocol, root))
        checked.stage = "lines"
        try:
            data = protocol.read(root)
        except MarvelError as error:
            findings.add(Problem(Kind.WRONG_FIELD, protocol.name, None, None, str(error)))
            checked.complete = True
            return checked
        checked.records = {name: len(items) for name, items in data.collections.items()}
        _add(findings, _ids(data, root))
        if options.counts != "none" and protocol.sizes:
            checked.counts_from = f"{protocol.title} as published"
            _add(findings, _counts(protocol, data))
        checked.stage = "pictures"
        if options.images != "none":
            _pictures(data, root, findings, checked, options, progress)
    except KeyboardInterrupt:
        return checked
    checked.complete = True
    return checked


def _add(findings: Findings, problems: Iterable[Problem]) -> None:
    for problem in problems:
        findings.add(problem)


def _absent(protocol: Protocol, root: Path) -> Iterator[Problem]:
    for entry in protocol.layout:
        name = entry.split(" ")[0]
        if "NAME" not in name and not (root / name).exists():
            yield Problem(Kind.MISSING_FILE, name, None, None, "not there")


def _ids(data: SetData, root: Path) -> Iterator[Problem]:
    for name, items in data.collections.items():
        seen: set[str] = set()
        for item in items:
            if str(item.id) in seen:
                message = f"the id {item.id!r} was used before among {name}"
                yield Problem(Kind.DUPLICATE_ID, name, None, item.id, message)
            seen.add(str(item.id))
    try:
        data.check(root)
    except MarvelError as error:
        yield Problem(Kind.DANGLING_QRELS, "answers", None, None, str(error))


def _counts(protocol: Protocol, data: SetData) -> Iterator[Problem]:
    for test in data.tests:
        size = protocol.sizes.get(test.name)
        if size is None:
            continue
        found = len(data.collections[test.asks])
        if found != size.queries:
            message = f"{found:,} queries; published are {size.queries:,}"
            yield Problem(Kind.WRONG_COUNT, test.name, None, None, message)
        if size.pool is not None and not protocol.own_galleries:
            pool = len(data.collections[test.seeks])
            if pool != size.pool:
                message = f"a pool of {pool:,}; published are {size.pool:,}"
                yield Problem(Kind.WRONG_COUNT, test.name, None, None, message)


class _Task(NamedTuple):
    pictures: Sequence[tuple[Path, str, bool]]  # the first id that names it, whether it is no video
    decode: bool


def _look(task: _Task) -> list[tuple[Kind, str] | None]:
    return [
        examine(path, decode=task.decode) if still else _film(path, decode=task.decode)
        for path, _, still in task.pictures
    ]


def _film(video: Path, *, decode: bool) -> tuple[Kind, str] | None:
    """What is wrong with a video: whether it is there, and with `decode` all of its frames."""
    if not video.is_file():
        return Kind.IMAGE_MISSING, "there is no such file"
    if decode:
        try:  # the last frame is behind all others
            video_file.read_frames(video, lambda total: [total - 1], lambda frame: None)
        except video_file.BrokenVideoError as error:
            return Kind.IMAGE_UNDECODABLE, str(error)
    return None


def _pictures(
    data: SetData,
    root: Path,
    findings: Findings,
    checked: Checked,
    options: CheckOptions,
    progress: Progress | None,
) -> None:
    named: dict[Path, tuple[str, bool]] = {}
    for items in data.collections.values():
        for item in items:
            for path, still in _paths(item):
                named.setdefault(path, (str(item.id), still))
    checked.pictures = len(named)
    every = [(path, id, still) for path, (id, still) in named.items()]
    decode = options.images == "decode"
    if decode and not all(still for _, _, still in every):
        video_file.require_pyav()
    size = options.pictures
    tasks = [_Task(every[at : at + size], decode) for at in range(0, len(every), size)]
    with Workers(available_cores() if options.jobs is None else options.jobs) as workers:
        results = workers.map(_look, tasks, worthwhile=len(tasks) >= _WORTHWHILE)
        for task, looked in zip(tasks, results, strict=True):
            for (path, id, _), found in zip(task.pictures, looked, strict=True):
                if found is not None:
                    short = str(path.relative_to(root) if path.is_relative_to(root) else path)
                    message = f"{id} names {short}: {found[1]}"
                    findings.add(Problem(found[0], short, None, id, message, short))
            checked.looked_at += len(looked)
            if progress is not None:
                progress("pictures", checked.looked_at, checked.pictures)


def _paths(item: Item) -> list[tuple[Path, bool]]:
    """The files that an item names, and whether each is a picture and no video."""
    media = [part for part in item.parts if not isinstance(part, str)]
    return [
        (Path(part.source), isinstance(part, Image))
        for part in media
        if isinstance(part.source, str | Path)
    ]
