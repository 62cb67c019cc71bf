"""The judgements of M-BEIR's test sets: which candidates are relevant to each query.

Some are of another data set: what answers a question of OVEN is often in InfoSeek's pool too, and
the other way round. In the global pool such an answer is as right as any; in the set's own pool it
cannot be found.
"""

from collections.abc import Callable
from pathlib import Path

from marvel_jax.data.items import Candidate, Query
from marvel_jax.data.records import IdTable, Records
from marvel_jax.errors import MarvelError


def read_qrels(
    path: Path,
    *,
    queries: Records[Query],
    pool: Records[Candidate],
    everything: Callable[[], IdTable] | None = None,
) -> dict[str, frozenset[str]]:
    """Reads `qid 0 did relevance task` lines: by query the relevant candidates.

    A relevance of 0 is not kept.

    Args:
      path: the file.
      queries: that it judges.
      pool: their local pool.
      everything: the candidates of all sets, asked for once one is not in `pool`; None where the
        local pool is all there is.

    Raises:
      MarvelError: the file is missing, a line is broken or names a query or candidate that there
        is not, or a query has no relevant candidate in the local pool.
    """
    if not path.is_file():
        raise MarvelError(f"{path} does not exist: the queries of {queries.files[0].path} need it.")
    query_table, pool_table = IdTable(queries, "qid"), IdTable(pool, "did")
    relevant: dict[str, set[str]] = {}
    reachable: set[str] = set()  # queries with an answer in the local pool
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
            _check(qid, query_table, path, number)
            local = pool_table.find(did) is not None
            if not local:
                _check(did, pool_table if everything is None else everything(), path, number)
            if int(relevance) > 0:
                relevant.setdefault(qid, set()).add(did)
                if local:
                    reachable.add(qid)
    for index in range(len(queries)):
        id = queries[index].id
        if id not in relevant:
            raise MarvelError(
                f"{queries.where(index)}: query {id} has no relevant candidate in {path}."
            )
        if id not in reachable:
            raise MarvelError(
                f"{queries.where(index)}: none of the relevant candidates that {path} gives to "
                f"query {id} is in {', '.join(pool_table.paths)}, where it is sought. Remove the "
                "query, or add a candidate that answers it."
            )
    return {id: frozenset(ids) for id, ids in relevant.items()}


def _check(id: str, table: IdTable, path: Path, line: int) -> None:
    if table.find(id) is None:
        raise MarvelError(f"{path}, line {line}: {id} is not in {', '.join(table.paths)}.")
