"""The weight of a reranker: fitted on validation queries and judged on others, pool by pool."""

import dataclasses
from pathlib import Path
from typing import Any

from marvel_jax.data.mbeir import MbeirFolder, MbeirSource
from marvel_jax.data.teacher import read_teacher
from marvel_jax.recipes.stages import Fuse, Judged
from marvel_jax.retrieval.fusion import Reranked, fit
from marvel_jax.retrieval.fusion_report import compare


def fit_and_judge(stage: Fuse) -> dict[str, Any]:
    """What `fusion.json` holds: by pool the weights, and each set before and after.

    Raises:
      MarvelError: what reading or judging refuses.
    """
    pools: dict[str, Any] = {}
    for pool, judged in stage.test.items():
        weights = fit(
            read_sets(stage.validation[pool]),
            form=stage.form,
            scope=stage.scope,
            sure=stage.sure,
            seed=stage.seed,
        )
        report = compare(read_sets(judged), weights, seed=stage.seed)
        pools[pool] = {
            "weights": weights.to_file(),
            "sets": [
                {name: _plain(value) for name, value in vars(one).items()}
                | {"verdict": one.verdict}
                for one in report.sets
            ],
            "mean_recall": report.mean_recall,
            "mean_fused": report.mean_fused,
            "mean_change": report.mean_change._asdict(),
            "hurts": list(report.hurts),
            "lines": [f"{pool} pool, the reranker's weight by task", *report.lines()],
        }
    return {"fusion": dataclasses.asdict(stage)["form"], "pools": pools}


def read_sets(judged: Judged) -> list[Reranked]:
    """The scored lists of a split, set by set.

    Raises:
      MarvelError: the scores are not those of the folder's queries.
    """
    layout = MbeirFolder(judged.data)
    source = listed_source(layout, judged.split)
    lists = read_teacher(Path(judged.scores), source)
    place = {query.id: number for number, query in enumerate(source.queries)}
    return [
        Reranked.of(
            one.name,
            source,
            lists,
            k=one.k,
            places=[place[query.id] for query in one.queries],
        )
        for one in layout.test_sets(judged.split)
    ]


def listed_source(layout: MbeirFolder, split: str) -> MbeirSource:
    """What the lists of a split are of: of training what `Mine` reads, else what `Recall` does."""
    return layout.source(split) if split == "train" else layout.judged_source(split)


def _plain(value: Any) -> Any:
    return value._asdict() if hasattr(value, "_asdict") else value
