"""A source whose negatives are all that a mined file lists: what a reranker is trained to refuse.

A retriever's hard negatives are filtered and few. A reranker has to order the whole list, so it is
trained on any of the first results that is no known positive.
"""

from pathlib import Path

import numpy as np

from marvel_jax.data.items import RetrievalSource
from marvel_jax.data.keyed_lines import Offenders, check_origin
from marvel_jax.data.mined import MinedQueries, MinedSource, read_mined
from marvel_jax.errors import MarvelError

_ADVICE = (
    'Nothing is trained on it: mine again for this source, with record="all" and a depth beyond the '
    "number of right answers that a query has."
)


def with_listed_negatives(
    source: RetrievalSource, path: Path | str, *, top: int, model_hash: str | None = None
) -> MinedSource:
    """The source, each query's negatives being its mined results of rank 1 to `top`.

    Known positives are left out, and so are copies of them that mining found by content. A query
    that occurs several times has the same negatives each time.

    Args:
      source: the queries and candidates that were mined for.
      path: the mined file (`record="all"`), its manifest beside it.
      top: how many results of each query are looked at, positives counted.
      model_hash: the model that must have retrieved; None asks nothing.

    Raises:
      MarvelError: the file was made by another model, of another pool or query set, or holds the
        chosen negatives only; a query has no line or nothing but positives, a line no query, or an
        id is no candidate. All offenders are counted and the first few named.
    """
    path = Path(path)
    manifest, lines = read_mined(path)
    check_origin(path, manifest, source, {"model_hash": model_hash})
    record = manifest.get("settings", {}).get("record", "all")
    if record != "all":
        raise MarvelError(
            f"{path} records only {record} candidates, and a reranker learns from the whole list: "
            'mine again with record="all".'
        )
    offenders = Offenders()
    positives = {query.id: set(query.positives) for query in source.queries}
    line_of: dict[str, int] = {}
    ids: list[bytes] = []
    counts: list[int] = []
    for line in lines:
        if line.qid in line_of:
            offenders.add("queries with several lines", line.qid)
            continue
        line_of[line.qid] = len(counts)
        if line.qid not in positives:
            offenders.add("lines for no query of the source", line.qid)
        known = positives.get(line.qid, set())
        found = [
            name.encode()
            for name, rank, reason in zip(line.candidates, line.ranks, line.reasons, strict=True)
            if rank is not None
            and rank <= top
            and name not in known
            and reason not in ("copy_of_positive", "copy")
        ]
        if not found:
            offenders.add(f"queries without a negative among the first {top}", line.qid)
        ids += found
        counts.append(len(found))
    for name in np.unique(np.array(ids, np.bytes_)):
        try:
            source.candidate_index(name.decode())
        except MarvelError:
            offenders.add("ids that are no candidate of the pool", name.decode())
    for qid in positives:
        if qid not in line_of:
            offenders.add("queries without a line", qid)
    offenders.refuse(f"{path} does not fit the source", advice=_ADVICE)
    queries = MinedQueries(
        source.queries,
        np.array(ids, np.bytes_),
        np.cumsum([0, *counts], dtype=np.int64),
        np.array([line_of[query.id] for query in source.queries], np.int32),
    )
    # Other ranks are other negatives: the fingerprint says so.
    return MinedSource(
        source, queries, {**manifest, "content_hash": f"{manifest['content_hash']} {top}"}
    )
