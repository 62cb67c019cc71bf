"""A folder, a jsonl or a pool becomes a collection, and what is there already is not encoded again.

What something is, is told by its content: a file that was renamed, or that is there twice, has one
vector and was encoded once. The version before stays in place until the new one is whole.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from marvel_jax.collection import versions, write
from marvel_jax.collection.changes import Changes, compare
from marvel_jax.collection.entry import entry_record, item_of, kind_of
from marvel_jax.collection.fresh import Place, encode_fresh, left_parts, places_of
from marvel_jax.collection.instructions import Prompts
from marvel_jax.collection.manifest import CollectionManifest
from marvel_jax.collection.options import COMPUTE, settle
from marvel_jax.collection.options import BuildOptions as BuildOptions
from marvel_jax.collection.source import Failure, Read, Source, find_source
from marvel_jax.data.mbeir import read_instructions
from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, read_jsonl, write_jsonl
from marvel_jax.retrieval import prefetch
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode_calls import Tally
from marvel_jax.retrieval.store import VectorStore

_MOST_PROMPTS = 8  # of the source's own, for a pair of kinds: M-BEIR has dozens
_NAMED = 5

Say = Callable[[str], None]
Progress = Callable[[int, int], None]


class Built(NamedTuple):
    """What `build_collection` did. encoded: contents encoded now. new: whether there is a new
    version; without a difference there is none.
    """

    folder: Path
    manifest: CollectionManifest
    changes: Changes
    failures: tuple[Failure, ...]
    encoded: int
    new: bool


class _Before(NamedTuple):
    manifest: CollectionManifest
    folder: Path
    records: list[dict[str, Any]]


def build_collection(
    what: Path,
    out: Path,
    *,
    model: str,
    options: BuildOptions | None = None,
    embedder: Embedder | None = None,
    reuse: VectorStore | None = None,
    labelled: Path | None = None,
    say: Say = lambda line: None,
    reading: Progress | None = None,
    encoding: Progress | None = None,
    tally: Tally | None = None,
) -> Built:
    """Makes the collection `out` of `what`, or brings it up to date; a killed run goes on.

    Args:
      what: see `source.find_source`.
      out: the collection's folder.
      model: a Hugging Face folder or a Hub id, which the collection keeps.
      options: how; what is left out is as it was made before.
      embedder: the model, where it is loaded already.
      reuse: a store of the same model whose ids are those of `what`, made of the same content.
      labelled: a jsonl of queries and their answers to keep with it (see `judge`); None keeps the
        one that is there.
      say: told in words of what takes its time.
      reading: told of items read, (done, in all).
      encoding: told of items encoded.
      tally: counts tokens.

    Raises:
      MarvelError: there is nothing to index or nothing that can be used; the collection there was
        made otherwise; or another process is at it.
    """
    options = BuildOptions() if options is None else options
    source = find_source(
        what, roots=options.roots or (), captions=bool(options.captions), apart=out
    )
    if out.exists() and not versions.is_collection(out) and not _is_begun(out):
        raise MarvelError(f"{out} exists and is not a collection: choose another folder.")
    with versions.locked(out):
        before = _before(out)
        if before is not None and not options.again:
            _require_same_source(before.manifest, source, options.captions, out)
        asked, options = options, settle(options, before and before.manifest, out)
        source = source.under(options.roots or (), captions=bool(options.captions))
        rows, failures = _read(source, reading)
        if embedder is None:
            embedder = Embedder.from_pretrained(model, dtype=options.compute or COMPUTE)
        fields = embedder.manifest_fields()
        parts = versions.encoded(out) / (options.compute or COMPUTE)
        known = left_parts(parts, fields) | _known(out, before, fields, options)
        if reuse is not None:
            reuse.require(**fields)
            by_id = places_of(reuse)
            known |= {row.content: by_id[row.id] for row in rows if row.id in by_id}
        fresh = {row.content: row for row in rows if row.content not in known}
        encoded = encode_fresh(
            embedder,
            list(fresh.values()),
            parts,
            batch_tokens=options.batch_tokens,
            progress=encoding,
            tally=tally,
        )
        places = known | encoded.places
        failures += [
            Failure(row.id, _file_of(row), encoded.reasons[row.content])
            for row in rows
            if row.content in encoded.reasons
        ]
        rows = [row for row in rows if row.content in places]
        if not rows:
            raise MarvelError(_nothing_usable(source, failures))
        return _finish(
            out,
            before,
            rows,
            failures,
            places,
            source=source,
            model=_model_name(model),
            embedder=embedder,
            options=options,
            asked=asked,
            labelled=labelled,
            encoded=len(encoded.places),
            say=say,
        )


def _finish(
    out: Path,
    before: _Before | None,
    rows: list[Read],
    failures: list[Failure],
    places: Mapping[str, Place],
    *,
    source: Source,
    model: str,
    embedder: Embedder,
    options: BuildOptions,
    asked: BuildOptions,
    labelled: Path | None,
    encoded: int,
    say: Say,
) -> Built:
    """Writes the new version, unless nothing differs from the one before."""
    if labelled is None and before is not None:
        kept = before.folder / write.LABELLED
        labelled = kept if kept.is_file() else None
    queries = None if labelled is None else write.labelled_rows(labelled)
    cut = _cut(rows, embedder)
    records = [
        entry_record(
            id=row.id, name=row.name, parts=row.parts, content=row.content, cut=row.content in cut
        )
        for row in rows
    ]
    old = {} if before is None else {one["id"]: one["content"] for one in before.records}
    changes = compare(old, {row.id: row.content for row in rows})
    fields = embedder.manifest_fields()
    manifest = CollectionManifest(
        model=model,
        embedder=fields,
        compute=options.compute or COMPUTE,
        source=str(source.path),
        source_kind=source.kind,
        captions=source.captions,
        roots=tuple(map(str, source.roots)),
        count=len(rows),
        counts=dict(sorted(Counter(kind_of(row.parts) for row in rows).items())),
        failures=len(failures),
        cut=sum(row.content in cut for row in rows),
        left_out=dict(source.left_out),
        changes=changes._asdict(),
        dimensions=write.dimensions_of(options.dimensions, embedder.dimension, len(rows)),
        has_scann=write.wants_scann(
            len(rows),
            embedder.dimension,
            asked=bool(options.scann),
            must=bool(asked.scann),
            say=say,
        ),
        asked_dimensions=options.dimensions,
        asked_scann=bool(options.scann),
        built=datetime.now(UTC).isoformat(timespec="seconds"),
        instructions=_prompts(source),
    )
    if before is not None and _is_same(before, manifest, records, failures, queries):
        versions.switch(out, before.folder)  # forgets what was left lying
        return Built(out, before.manifest, changes, tuple(failures), encoded, new=False)
    version = versions.following(out)
    with atomic_folder(version) as folder:
        write.write_entries(folder, records, rows)
        write.write_failures(folder, failures)
        store = write.write_store(folder, rows, places, fields)
        write.write_truncated(folder, store, manifest.dimensions)
        if manifest.has_scann:
            write.write_scann(folder, store, say=say)
        if queries is not None:
            write_jsonl(folder / write.LABELLED, queries)
        manifest.write(folder)
    versions.switch(out, version)
    return Built(out, manifest, changes, tuple(failures), encoded, new=True)


def _before(out: Path) -> _Before | None:
    if not versions.is_collection(out):
        return None
    folder = versions.current(out)
    records = [record for _, record in read_jsonl(folder / write.ENTRIES)]
    return _Before(CollectionManifest.read(folder), folder, records)


def _is_begun(out: Path) -> bool:
    """Whether it is empty, or a collection whose first run has not ended."""
    return out.is_dir() and all(
        one.name in (".lock", versions.encoded(out).name) or one.name.startswith((".v", "v0"))
        for one in out.iterdir()
    )


def _require_same_source(
    found: CollectionManifest, source: Source, captions: bool | None, out: Path
) -> None:
    for name, there, here in (
        ("made of", found.source, str(source.path)),
        ("made with captions", found.captions, found.captions if captions is None else captions),
    ):
        if there != here:
            raise MarvelError(
                f"{out} was {name}: {there}; not {here}. Give that, or choose another --out, or "
                "add --again: then this takes its place."
            )


def _known(
    out: Path, before: _Before | None, fields: Mapping[str, Any], options: BuildOptions
) -> dict[str, Place]:
    """Vectors by content of the version there, if this embedder made them.

    Raises:
      MarvelError: another made them, and that is not accepted.
    """
    if before is None:
        return {}
    different = [name for name in fields if before.manifest.embedder.get(name) != fields[name]]
    if different and not options.again:
        name = different[0]
        raise MarvelError(
            f"{out} was made with {name}={before.manifest.embedder.get(name)!r}, and this model "
            f"has {name}={fields[name]!r}: vectors of both cannot be searched together. Use "
            f"{before.manifest.model}, choose another --out, or encode all of it --again."
        )
    if different or before.manifest.compute != options.compute:
        return {}
    store = VectorStore.open(before.folder / write.STORE)
    return places_of(store, [record["content"] for record in before.records])


def _read(source: Source, progress: Progress | None) -> tuple[list[Read], list[Failure]]:
    pieces = source.pieces()
    rows: list[Read] = []
    failures: list[Failure] = []
    with prefetch.workers() as pool:
        for found in prefetch.ahead(pool, source.read, pieces, depth=64):
            if isinstance(found, Failure):
                failures.append(found)
            else:
                rows.append(found)
            if progress is not None:
                progress(len(rows) + len(failures), len(pieces))
    return rows, failures


def _cut(rows: Sequence[Read], embedder: Embedder) -> set[str]:
    """Contents whose text is longer than the model reads."""
    reads = embedder.processor
    found: set[str] = set()
    # No text has more tokens than bytes, but for the blanks that templates put around it.
    long = [row for row in rows if _bytes(row) + 8 > reads.max_text_tokens]
    if long:
        all_of_it = dataclasses.replace(reads, max_text_tokens=1 << 30)
        for row in {row.content: row for row in long}.values():
            item = item_of([part for part in row.parts if isinstance(part, str)], id=row.id)
            if all_of_it.lengths(item) != reads.lengths(item):
                found.add(row.content)
    return found


def _bytes(row: Read) -> int:
    return sum(len(part.encode()) for part in row.parts if isinstance(part, str))


def _prompts(source: Source) -> Prompts:
    """The instructions of an M-BEIR folder, those of its data sets together."""
    table = source.roots[0] / "instructions" / "query_instructions.tsv"
    if source.kind != "mbeir" or not table.is_file():
        return {}
    found: dict[tuple[str, str], tuple[str, ...]] = {}
    for (_, query, target), prompts in read_instructions(table).items():
        joined = (*found.get((query, target), ()), *prompts)
        found[query, target] = tuple(dict.fromkeys(joined))[:_MOST_PROMPTS]
    return found


def _is_same(
    before: _Before,
    manifest: CollectionManifest,
    records: list[dict[str, Any]],
    failures: Sequence[Failure],
    queries: list[dict[str, Any]] | None,
) -> bool:
    there = dataclasses.replace(before.manifest, built=manifest.built, changes=manifest.changes)
    told = [record for _, record in read_jsonl(before.folder / write.FAILURES)]
    path = before.folder / write.LABELLED
    kept = [record for _, record in read_jsonl(path)] if path.is_file() else None
    return (
        there == manifest
        and before.records == records
        and told == [one._asdict() for one in failures]
        and kept == queries
    )


def _file_of(row: Read) -> str:
    return next((str(part) for part in row.parts if isinstance(part, Path)), row.name)


def _model_name(model: str) -> str:
    """A folder by its whole path, so that the collection finds it from anywhere."""
    return str(Path(model).resolve()) if Path(model).is_dir() else model


def _nothing_usable(source: Source, failures: Sequence[Failure]) -> str:
    told = "; ".join(f"{one.file}: {one.error}" for one in failures[:_NAMED])
    more = f"; and {len(failures) - _NAMED} more" if len(failures) > _NAMED else ""
    return f"{source.path}: nothing of it can be used: {told}{more}."
