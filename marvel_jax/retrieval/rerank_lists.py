"""Retrieved lists through a reranker: a mined file in, a file of raw scores out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from marvel_jax.data.items import RetrievalSource
from marvel_jax.data.keyed_lines import Offenders, check_origin, pool_hash, queries_hash
from marvel_jax.data.mined import MinedLine, read_mined
from marvel_jax.data.teacher import teacher_line, teacher_writer
from marvel_jax.errors import MarvelError
from marvel_jax.retrieval.encode import instructed
from marvel_jax.retrieval.rerank import Reranker

_ADVICE = 'Nothing is scored: mine again for this source, with record="all".'


class Retrieved(NamedTuple):
    """One query's retrieved candidates, with their cosines."""

    query: int  # place in the source
    ids: Sequence[str]
    recall: Sequence[float]


def rerank(
    reranker: Reranker,
    source: RetrievalSource,
    mined: Path | str,
    out: Path | str,
    *,
    top: int = 50,
    seed: int = 0,
    batch_tokens: int = 8192,
    block: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Scores the first `top` results of every query of a source; returns the file's manifest.

    The list is what was retrieved, known positives where they were found and nowhere else. A run
    that is killed goes on behind its last whole block.

    Args:
      reranker: the teacher.
      source: queries and candidates; the source that the lists were mined for.
      mined: `retrieval.mining.mine`'s file with `record="all"`.
      out: the file of scores; `data.teacher.read_teacher` reads it.
      top: candidates of each query (50 for M-BEIR in the published recipe, 10 zero-shot).
      seed: chooses each query's instruction, as `retrieval.encode` does.
      batch_tokens: tokens a forward pass.
      block: queries whose pairs are sorted, packed and written together.
      progress: told (queries done, queries in all).

    Raises:
      MarvelError: `out` exists or an unfinished one was made otherwise; the mined file is of
        another source or records the chosen negatives only; a query has no line or an empty list,
        a line no query, or an id is no candidate (all are counted, the first few named).
    """
    if top < 1 or block < 1:
        raise MarvelError(f"top={top}, block={block}: give 1 or more of each.")
    manifest, lists = _read_lists(source, Path(mined), top=top)
    return score_lists(
        reranker,
        source,
        lists,
        out,
        origin={
            "model_hash": manifest.get("model_hash"),
            "lists": manifest["content_hash"],
            "pool": manifest.get("settings", {}).get("pool"),
            "settings": {"top": top, "seed": seed},
        },
        seed=seed,
        batch_tokens=batch_tokens,
        block=block,
        progress=progress,
    )


def score_lists(
    reranker: Reranker,
    source: RetrievalSource,
    lists: Sequence[Retrieved],
    out: Path | str,
    *,
    origin: Mapping[str, Any],
    seed: int = 0,
    batch_tokens: int = 8192,
    block: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """`rerank` of lists that are at hand, one a query; returns the file's manifest.

    `origin` says what made the lists: the manifest's model_hash, lists, pool and settings.
    """
    writer = teacher_writer(
        out,
        {
            **reranker.manifest_fields(),
            "model_hash": origin["model_hash"],
            "source_fingerprint": source.fingerprint,
            "queries_hash": queries_hash(source),
            "pool_hash": pool_hash(source),
            "lists": origin["lists"],
            "pool": origin["pool"],
            "settings": origin["settings"],
        },
    )
    done = {row["qid"] for row in writer.done()}
    left = [one for one in lists if source.queries[one.query].id not in done]
    for start in range(0, len(left), block):
        part = left[start : start + block]
        writer.append(_score(reranker, source, part, seed, batch_tokens))
        if progress is not None:
            progress(len(lists) - len(left) + start + len(part), len(lists))
    return writer.finish({"lists_scored": len(lists)})


def _score(
    reranker: Reranker,
    source: RetrievalSource,
    lists: Sequence[Retrieved],
    seed: int,
    batch_tokens: int,
) -> list[dict[str, Any]]:
    # The same object each time: the reranker knows by it that a candidate comes again.
    items = {
        name: source.candidates[source.candidate_index(name)].item
        for name in dict.fromkeys(name for one in lists for name in one.ids)
    }
    pairs = []
    for one in lists:
        query = instructed(source.queries[one.query], source.instructions, seed=seed)
        pairs += [(query, items[name]) for name in one.ids]
    scores = reranker.score(pairs, batch_tokens=batch_tokens)
    rows, start = [], 0
    for one in lists:
        own = slice(start, start + len(one.ids))
        start = own.stop
        rows.append(
            teacher_line(
                source.queries[one.query].id,
                one.ids,
                yes=scores.yes[own],
                no=scores.no[own],
                recall=np.array(one.recall, np.float32),
            )
        )
    return rows


def _read_lists(
    source: RetrievalSource, path: Path, *, top: int
) -> tuple[dict[str, Any], list[Retrieved]]:
    """The manifest, and the first `top` results of each query of the source, in its order."""
    manifest, lines = read_mined(path)
    check_origin(path, manifest, source, {})
    if manifest.get("settings", {}).get("record", "all") != "all":
        raise MarvelError(
            f"{path} records only the chosen negatives, and a reranker orders the whole list: mine "
            'again with record="all".'
        )
    places: dict[str, int] = {}
    for number, query in enumerate(source.queries):
        places.setdefault(query.id, number)
    offenders = Offenders()
    found: dict[int, Retrieved] = {}
    for line in lines:
        if line.qid not in places:
            offenders.add("lines for no query of the source", line.qid)
            continue
        place = places[line.qid]
        if place in found:
            offenders.add("queries with several lines", line.qid)
            continue
        found[place] = _first(line, place, top)
        if not found[place].ids:
            offenders.add("queries with an empty list", line.qid)
        for name in found[place].ids:
            try:
                source.candidate_index(name)
            except MarvelError:
                offenders.add("ids that are no candidate of the pool", f"{line.qid} -> {name}")
    for qid, place in places.items():
        if place not in found:
            offenders.add("queries without a line", qid)
    offenders.refuse(f"{path} does not fit the source", advice=_ADVICE)
    return manifest, [found[place] for place in sorted(found)]


def _first(line: MinedLine, place: int, top: int) -> Retrieved:
    ranked = sorted(
        (rank, name, similarity)
        for name, rank, similarity in zip(
            line.candidates, line.ranks, line.similarities, strict=True
        )
        if rank is not None and rank <= top
    )
    return Retrieved(
        place,
        tuple(name for _, name, _ in ranked),
        tuple(similarity for *_, similarity in ranked),
    )
