"""Published tables with our row among theirs, as the page shows them."""

from collections.abc import Mapping
from typing import NamedTuple

from marvel_jax.retrieval.protocols import Evaluation
from marvel_jax.retrieval.published import Beside

_NAMES = {
    "visualnews": "Visual\N{SOFT HYPHEN}News",
    "mscoco": "MSCOCO",
    "fashion200k": "Fashion\N{SOFT HYPHEN}200K",
    "webqa": "WebQA",
    "edis": "EDIS",
    "nights": "NIGHTS",
    "oven": "OVEN",
    "infoseek": "Info\N{SOFT HYPHEN}Seek",
    "fashioniq": "Fashion\N{SOFT HYPHEN}IQ",
    "cirr": "CIRR",
}


class PublishedRow(NamedTuple):
    """One system: percent by set, its mean over the sets shown, and whether it is ours."""

    name: str
    scores: Mapping[str, float]
    mean: float
    note: str
    ours: bool


class PublishedView(NamedTuple):
    """One table; `columns` are (set, its data set's name, its task), `best` the highest by set."""

    name: str
    metric: str
    source: str
    columns: list[tuple[str, str, str]]
    rows: list[PublishedRow]
    best: Mapping[str, float]
    whole: bool


def published_view(one: Beside, evaluation: Evaluation) -> PublishedView:
    """A published table with our scores in percent as its first row, the others by their mean."""
    sets = {scores.name: scores for scores in evaluation.sets}
    pools = {
        name: scores.local_pool if one.table.pool == "local" else scores.global_pool
        for name, scores in sets.items()
    }
    ours = {name: 100 * pools[name].hit[sets[name].k].mean for name in one.sets}
    rows = [PublishedRow("This run", ours, sum(ours.values()) / len(ours), "", True)]
    others = [
        PublishedRow(system.name, system.scores, one.means[system.name], system.note, False)
        for system in one.table.systems
    ]
    rows += sorted(others, key=lambda row: row.mean, reverse=True)
    return PublishedView(
        name=one.table.name,
        metric=one.table.metric,
        source=one.table.source,
        columns=[
            (name, _NAMES.get(name.rpartition("_")[0], name), sets[name].task) for name in one.sets
        ],
        rows=rows,
        best={name: max(round(row.scores[name], 1) for row in rows) for name in one.sets},
        whole=len(one.sets) == len(one.table.sets),
    )
