"""The report's figures as CSV, one long table for each subject, for a spreadsheet or pandas."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from marvel_jax.retrieval.analysis_against import Comparison
from marvel_jax.retrieval.analysis_obedience import Obedience
from marvel_jax.retrieval.analysis_tradeoff import Tradeoff
from marvel_jax.retrieval.metrics import Interval
from marvel_jax.retrieval.protocols import PoolScores
from marvel_jax.retrieval.report import Report
from marvel_jax.retrieval.report_analyses import Analyses

_TEST = "pool set k queries ours theirs difference low high p p_holm wins losses"


def tables(report: Report) -> dict[str, str]:
    """File name -> CSV text; what the report does not have is left out. Shares are 0 to 1."""
    found = {
        "scores.csv": _csv(
            "set task pool pool_size queries metric k value low high", _scores(report)
        )
    }
    analyses = report.analyses or Analyses()
    if analyses.published:
        found["published.csv"] = _csv(
            "table pool system set percent note source", _published(analyses)
        )
    if analyses.obedience:
        found["obedience.csv"] = _csv(
            "set task k wanted kind name value low high", _obedience(analyses.obedience)
        )
    if analyses.copies:
        found["copies.csv"] = _csv(
            "set pool k standard queries_with_copies collapsed low high change change_low "
            "change_high",
            (
                (one.name, one.pool, one.k, one.standard, one.queries, *one.collapsed, *one.change)
                for one in analyses.copies.sets
            ),
        )
    if analyses.against:
        found["against.csv"] = _csv(_TEST, _comparison(analyses.against))
    if analyses.reranked:
        found["reranked.csv"] = _csv(
            f"order {_TEST}",
            ((one.ours, *row) for one in analyses.reranked for row in _comparison(one)),
        )
    if analyses.paraphrases:
        found["paraphrases.csv"] = _csv(
            "set pool instruction value", _paraphrases(analyses.paraphrases)
        )
    if analyses.tradeoff:
        found["tradeoff.csv"] = _csv(
            "dtype dimension search bytes_per_vector gigabytes recall_at_10 milliseconds score "
            "low high",
            _tradeoff(analyses.tradeoff),
        )
    return found


def _csv(head: str, rows: Iterable[Sequence[Any]]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(head.split())
    writer.writerows(rows)
    return stream.getvalue()


def _scores(report: Report) -> Iterator[Sequence[Any]]:
    for one in report.evaluation.sets:
        for pool, scores in (("local", one.local_pool), ("global", one.global_pool)):
            for metric, k, value in _metrics(scores):
                yield (one.name, one.task, pool, scores.size, one.num_queries, metric, k, *value)
    for pool, mean in (
        ("local", report.evaluation.mean_local),
        ("global", report.evaluation.mean_global),
    ):
        queries = sum(one.num_queries for one in report.evaluation.sets)
        yield ("mean", "", pool, "", queries, "main", "", *mean)


def _metrics(scores: PoolScores) -> Iterator[tuple[str, int | str, Interval]]:
    for k, value in scores.hit.items():
        yield "hit", k, value
    for k, value in scores.recall.items():
        yield "recall", k, value
    yield "mrr", "", scores.mrr
    yield "ndcg", 10, scores.ndcg
    yield "map", "", scores.average_precision


def _published(analyses: Analyses) -> Iterator[Sequence[Any]]:
    for one in analyses.published:
        table = one.table
        for system in table.systems:
            for name in one.sets:
                score = system.scores[name]
                yield table.name, table.pool, system.name, name, score, system.note, table.source


def _obedience(obedience: Obedience) -> Iterator[Sequence[Any]]:
    for one in obedience.sets:
        said = (one.name, one.task, one.k, one.wanted)
        yield (*said, "share", one.wanted, *one.share)
        yield (*said, "drop", "local to global", *one.drop)
        yield (*said, "drop", "to other modalities", one.to_modality, "", "")
        yield (*said, "drop", "to other candidates", one.to_datasets, "", "")
        for kind, shares in (("modality", one.by_modality), ("data set", one.by_dataset)):
            for name, share in shares.items():
                yield (*said, kind, name, share, "", "")


def _comparison(comparison: Comparison) -> Iterator[Sequence[Any]]:
    for pool, sets in comparison.sets.items():
        for one in (*sets, comparison.means[pool]):
            test = one.test
            said = (pool, one.name, one.k or "", one.queries, one.ours, one.theirs)
            yield (*said, *test.difference, test.p, test.adjusted, test.wins, test.losses)


def _tradeoff(tradeoff: Tradeoff) -> Iterator[Sequence[Any]]:
    for one in tradeoff.points:
        kept = (one.dtype, one.dimension, one.search, one.bytes_per_vector, one.gigabytes)
        yield (*kept, one.recall, one.milliseconds, *one.score)


def _paraphrases(paraphrases: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for one in paraphrases["sets"]:
        for pool in ("local", "global"):
            values = one[f"{pool}_pool"]["values"]
            for instruction, value in zip(one["instructions"], values, strict=True):
                yield one["name"], pool, instruction, value
