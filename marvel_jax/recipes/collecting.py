"""What `marvel index | search` do with collections."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from marvel_jax.collection import versions
from marvel_jax.collection.build import BuildOptions, Built, build_collection
from marvel_jax.collection.collection import Collection, Found, load_embedder
from marvel_jax.collection.entry import Entry, Kind, check_kind
from marvel_jax.collection.judge import judge, read_labelled
from marvel_jax.collection.source import told_left_out
from marvel_jax.data.items import Item
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.encoding import Pace
from marvel_jax.recipes.evaluation import Ticker
from marvel_jax.recipes.outcome import EXIT_ERROR, Outcome
from marvel_jax.retrieval.encode_calls import Tally
from marvel_jax.retrieval.store_manifest import partial_path

_NAMED = 5  # failures told; all are in the collection
_TEXT_SHOWN = 60


def is_store(path: Path) -> bool:
    """Whether it is a vector store, or one that is not finished."""
    return any(path.glob("vectors-*.npy")) or partial_path(path).exists()


def index_collection(
    what: Path,
    *,
    out: Path,
    model: str,
    options: BuildOptions | None = None,
    labelled: Path | None = None,
    tolerate: int = 0,
) -> Outcome:
    """Makes a collection, or brings it up to date.

    The exit code is 1 where more files than `tolerate` could not be used; the collection is there
    without them.
    """
    if tolerate < 0:
        raise MarvelError(f"tolerate={tolerate}: give how many files may fail, from 0 on.")
    if is_store(what):
        raise MarvelError(f"{what} is a vector store: leave --model out to index its vectors.")
    say = Console(stderr=True, highlight=False, soft_wrap=True).print
    started = time.perf_counter()
    tally = Tally()
    built = build_collection(
        what,
        out,
        model=model,
        options=options,
        labelled=labelled,
        say=say,
        reading=Ticker(say, "read"),
        encoding=Pace(say, tally),
        tally=tally,
    )
    seconds = time.perf_counter() - started
    code = EXIT_ERROR if len(built.failures) > tolerate else 0
    return Outcome(_facts(built, seconds), told(built, seconds), code)


def told(built: Built, seconds: float) -> list[str]:
    """A collection that was made, in lines for a person."""
    manifest = built.manifest
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in manifest.counts.items())
    done = f"{manifest.count:,} entries ({kinds}), {built.encoded:,} encoded in {seconds:.0f} s"
    lines = [
        f"{built.folder}: {done}",
        built.changes.told() + ("" if built.new else ": it stays as it was"),
    ]
    if manifest.cut:
        lines.append(
            f"{manifest.cut:,} texts are longer than the model reads: only the beginning counts"
        )
    if manifest.left_out:
        lines.append(told_left_out(manifest.left_out))
    if built.failures:
        lines.append(
            f"{len(built.failures):,} could not be used: see "
            f"{versions.current(built.folder) / 'failures.jsonl'}"
        )
        lines += [_plain(f"  {one.file}: {one.error}") for one in built.failures[:_NAMED]]
        if len(built.failures) > _NAMED:
            lines.append(f"  and {len(built.failures) - _NAMED:,} more")
    return lines


def _facts(built: Built, seconds: float) -> dict[str, Any]:
    manifest = built.manifest
    return {
        "out": str(built.folder),
        "new": built.new,
        "count": manifest.count,
        "counts": manifest.counts,
        "encoded": built.encoded,
        "changes": built.changes._asdict(),
        "failures": len(built.failures),
        "cut": manifest.cut,
        "left_out": manifest.left_out,
        "scann": manifest.has_scann,
        "dimensions": list(manifest.dimensions),
        "seconds": round(seconds, 1),
    }


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A query of a collection: texts and a picture, or an entry (`like`); see `Collection.search`.

    `instruction` None is the first preset of the kinds; an empty one is none.
    """

    text: str | None = None
    image: Path | None = None
    like: str | None = None
    instruction: str | None = None
    kind: Kind | None = None
    k: int = 10
    method: str = "exact"
    dimension: int | None = None
    collapse: bool = True

    def __post_init__(self) -> None:
        blank = (self.text is None or not self.text.strip()) and self.image is None
        if blank == (self.like is None):
            raise MarvelError("give --text, --image or both, or --like alone.")
        if self.kind is not None:
            check_kind(self.kind)


def search_collection(folder: Path, asked: Asked, *, sheet: Path | None = None) -> Outcome:
    """Searches a collection: a table of hits, and a contact sheet if asked for.

    An entry is not like itself: it and its copies are left out of what is like it.
    """
    collection = _open(folder)
    instruction = None
    liked = None if asked.like is None else collection.row_of(asked.like)
    if liked is not None:
        vectors = collection.vector(liked)[None]
    else:
        item = Item.of(text=asked.text, image=asked.image, id="query")
        instruction = asked.instruction
        if instruction is None:
            instruction = next(
                iter(collection.presets(check_kind(item.modality), asked.kind)), None
            )
        vectors = load_embedder(collection).encode([item.with_instruction(instruction or None)])
    found = collection.search(
        vectors,
        k=asked.k + (liked is not None),
        kind=asked.kind,
        method=asked.method,
        dimension=asked.dimension,
        collapse=asked.collapse,
    )[0]
    pairs = [
        (hit, collection.entry(hit.row, gone=True))
        for hit in found.hits
        if liked not in (hit.row, *hit.copies)
    ]
    if liked is not None and asked.collapse:  # ScaNN may miss it and find a copy
        content = collection.entry(liked, gone=True).content
        pairs = [(hit, entry) for hit, entry in pairs if entry.content != content]
    found = found._replace(hits=tuple(hit for hit, _ in pairs[: asked.k]))
    entries = [entry for _, entry in pairs[: asked.k]]
    lines = [f"asked: {_plain(instruction)}"] if instruction else []
    lines += [
        _line(rank, hit.score, entry, len(hit.copies))
        for rank, (hit, entry) in enumerate(zip(found.hits, entries, strict=True), start=1)
    ]
    if not found.hits:
        what = "nothing" if liked is None else "nothing else"
        kind = "" if asked.kind is None else f" of kind {asked.kind}"
        lines.append(f"{folder} has {what}{kind}.")
    lines.append(_speed(found, asked, len(collection)))
    if sheet is not None:
        shown = None if liked is None else collection.entry(liked, gone=True)
        lines += _draw(sheet, asked, instruction, found, entries, liked=shown)
    facts = {
        "hits": [
            {
                "rank": rank,
                "id": entry.id,
                "score": round(hit.score, 6),
                "kind": entry.kind,
                "name": entry.name,
                "text": entry.text,
                "image": None if entry.image is None else str(entry.image),
                "copies": [collection.entry(row, gone=True).id for row in hit.copies],
            }
            for rank, (hit, entry) in enumerate(zip(found.hits, entries, strict=True), start=1)
        ],
        "instruction": instruction,
        "milliseconds": round(found.search_ms, 3),
        "recall": found.recall,
        "sheet": None if sheet is None else str(sheet),
    }
    return Outcome(facts, lines)


def judge_collection(
    folder: Path, queries: Path, *, method: str = "exact", dimension: int | None = None
) -> Outcome:
    """Scores a collection on labelled queries: hit@k; see `collection.judge`."""
    collection = _open(folder)
    labelled = read_labelled(queries, collection)
    judgement = judge(
        collection, load_embedder(collection), labelled, method=method, dimension=dimension
    )
    ks = list(judgement.groups[0].hits)
    lines = [f"{'':<28}{'queries':>8}" + "".join(f"{f'hit@{k}':>24}" for k in ks)]
    for group in judgement.groups:
        scores = "".join(
            f"{f'{100 * one.mean:.1f}% ({100 * one.low:.1f} to {100 * one.high:.1f})':>24}"
            for one in group.hits.values()
        )
        lines.append(f"{group.name:<28}{group.queries:>8,}{scores}")
    if judgement.unknown:
        lines.append(
            f"{judgement.unknown:,} right answers are not in the collection and count as not found"
        )
    facts = {
        "groups": [
            {
                "name": group.name,
                "queries": group.queries,
                "hits": {str(k): one._asdict() for k, one in group.hits.items()},
            }
            for group in judgement.groups
        ],
        "unknown": judgement.unknown,
    }
    return Outcome(facts, lines)


def _open(folder: Path) -> Collection:
    if not versions.is_collection(folder) and is_store(folder):
        raise MarvelError(
            f"{folder} is a vector store: search it with the model that made it, as `marvel search "
            f"MODEL --store {folder} --text ...`."
        )
    say = Console(stderr=True, highlight=False).print
    return Collection.open(folder, progress=Ticker(say, "vectors verified"))


def _line(rank: int, score: float, entry: Entry, copies: int) -> str:
    text = _plain(" ".join((entry.text or "").split()))
    if len(text) > _TEXT_SHOWN:
        text = f"{text[: _TEXT_SHOWN - 3]}..."
    notes = f"  (+{copies} like it)" if copies else ""
    if entry.image is None and entry.kind != "text":
        notes += "  (its picture has left the collection's folders)"
    return f"{rank:>4}  {score:.4f}  {entry.kind:<10}  {_plain(entry.name)}  {text}{notes}".rstrip()


def _speed(found: Found, asked: Asked, count: int) -> str:
    how = asked.method if asked.dimension is None else f"{asked.method}, {asked.dimension} numbers"
    recall = "" if found.recall is None else f", recall {found.recall:.2f} against exact"
    return f"{count:,} entries in {found.search_ms:.1f} ms ({how}{recall})"


def _draw(
    sheet: Path,
    asked: Asked,
    instruction: str | None,
    found: Found,
    entries: list[Entry],
    *,
    liked: Entry | None,
) -> list[str]:
    from marvel_jax.collection.sheet import Tile, write_sheet

    tiles = [
        Tile(
            rank=str(rank),
            score=f"{hit.score:.3f}" + (f"  +{len(hit.copies)} like it" if hit.copies else ""),
            name=entry.name,
            text=entry.text,
            image=entry.image,
        )
        for rank, (hit, entry) in enumerate(zip(found.hits, entries, strict=True), start=1)
    ]
    text, image = asked.text, asked.image
    if liked is not None:
        text, image = f"like {liked.name}", liked.image
        if liked.text is not None:
            text += f": {liked.text}"
    drawn = write_sheet(sheet, tiles, text=text, image=image, asked=instruction or "")
    return [f"{drawn.path}: {len(tiles)} results", *map(_plain, drawn.notes)]


def _plain(text: str) -> str:
    """Without what a terminal would obey: names and texts are the corpus's, not ours."""
    return "".join(one if one.isprintable() else " " for one in text)
