"""The judgements of M-BEIR's test sets: which candidates are relevant to each query."""

from pathlib import Path

from marvel_jax.data.items import Candidate, Query
from marvel_jax.data.records import IdTable, Records
from marvel_jax.errors import MarvelError


def read_qrels(
    path: Path, *, queries: Records[Query], pool: Records[Candidate]
) -> dict[str, frozenset[str]]:
    """Reads `qid 0 did relevance task` lines: by query the relevant candidates.

    A relevance of 0 is not kept.

    Raises:
      MarvelError: the file is missing, a line is broken or names a query or candidate that there
        is not, or a query has no relevant candidate.
    """
    if not path.is_file():
        raise MarvelError(f"{path} does not exist: the queries of {queries.files[0].path} need it.")
    query_table, pool_table = IdTable(queries, "qid"), IdTable(pool, "did")
    relevant: dict[str, set[str]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:  # a broken id is then unknown
        for number, line in enumerate(lines, start=1):
            columns = line.split()
            if not columns:
                continue
            if len(columns) != 5 or not columns[3].isdigit():
                raise MarvelError(
                    f"{path}, line {number}: expected `qid 0 did relevance task`, found "
                    f"{line.strip()!r}."
                )
            qid, _, did, relevance, _ = columns
            for id, table in ((qid, query_table), (did, pool_table)):
                if table.find(id) is None:
                    raise MarvelError(
                        f"{path}, line {number}: {id} is not in {', '.join(table.paths)}."
                    )
            if int(relevance) > 0:
                relevant.setdefault(qid, set()).add(did)
    for index in range(len(queries)):
        id = queries[index].id
        if id not in relevant:
            raise MarvelError(
                f"{queries.where(index)}: query {id} has no relevant candidate in {path}."
            )
    return {id: frozenset(ids) for id, ids in relevant.items()}
