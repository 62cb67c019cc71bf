"""A reranker on top of an evaluation: what it says of the lists, its weight, what it costs."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_json, read_json_object
from marvel_jax.recipes import fusing, recall
from marvel_jax.recipes.evaluation import Evaluated, Say, Ticker
from marvel_jax.recipes.reranked_lists import judge
from marvel_jax.recipes.stages import Judged
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.fusion import FusionWeights, fit, query_key
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.rerank_lists import rerank
from marvel_jax.retrieval.reranked_scores import (
    POOLS,
    Pool,
    RerankedEvaluation,
    fixed_weights,
    score_reranked,
)
from marvel_jax.retrieval.retrieval_sets import DEPTH

PAPER_WEIGHT = 0.5
"""Of the cosine, the rest of P(Yes): U-MARVEL's fusion where no weight was fitted."""


@dataclass(frozen=True)
class RerankOptions:
    """How the results are reranked.

    top: results of each query in each pool. weights: a file that `marvel run` fitted, a number
    (the cosine's share, the same for all), or None. fit_split: the split to fit weights on; never
    the one that is judged. Without either the weight is `PAPER_WEIGHT`.

    Raises:
      MarvelError: both, the test split, or no result to rerank.
    """

    top: int = 50
    weights: str | None = None
    fit_split: str | None = None
    batch_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.weights is not None and self.fit_split is not None:
            raise MarvelError("Weights are given (--weights) or fitted (--fit-split): choose one.")
        if self.fit_split == "test":
            raise MarvelError(
                "--fit-split test: the weight would be judged on the queries that it was fitted "
                "on. Fit it on val."
            )
        if self.top < 1:
            raise MarvelError(f"--top {self.top}: rerank 1 result or more.")
        if self.top > DEPTH:
            raise MarvelError(
                f"--top {self.top}: {DEPTH} results of a query are kept, ask for fewer."
            )

    @property
    def origin_of_weights(self) -> str:
        """Where the weights are from, for readers."""
        if self.fit_split is not None:
            return f"fitted on {self.fit_split}"
        return f"{PAPER_WEIGHT} of the cosine" if self.weights is None else self.weights


def given_weights(options: RerankOptions, names: Sequence[str]) -> dict[Pool, FusionWeights] | None:
    """The weights for sets of these names; None where they are to be fitted.

    Raises:
      MarvelError: the file is not one of `marvel run`'s fusion, lacks a pool or a set, or the
        number is not between 0 and 1.
    """
    if options.fit_split is not None:
        return None
    text = options.weights
    try:
        share = PAPER_WEIGHT if text is None else float(text)
    except ValueError:
        weights = _read_weights(Path(str(text)))
        for one in weights.values():
            for name in names:
                one.of(name)
        return weights
    return dict.fromkeys(POOLS, fixed_weights(share, names))


def check_options(options: RerankOptions, layout: MbeirFolder) -> None:
    """Refuses, before anything is encoded, what cannot be used for the test sets.

    Raises:
      MarvelError: too few results, what `given_weights` refuses, `fit_split` lacks a test set, or
        a weight is, or would be, fitted on queries that are judged.
    """
    tests = layout.test_sets()
    deepest = max(tests, key=lambda one: one.k)
    if options.top < deepest.k:
        raise MarvelError(
            f"--top {options.top}: the score of {deepest.name} looks at the first {deepest.k} "
            f"results: rerank at least {deepest.k}."
        )
    names = [one.name for one in tests]
    weights = given_weights(options, names)
    if weights is None:
        fitting = layout.test_sets(str(options.fit_split))
        lost = [name for name in names if name not in {one.name for one in fitting}]
        if lost:
            raise MarvelError(
                f"--fit-split {options.fit_split}: {layout.root} has no such queries of "
                f"{', '.join(lost)}, so no weight can be fitted for them. Give --weights."
            )
        keys = frozenset(query_key(query) for one in fitting for query in one.queries)
        of_nothing = fixed_weights(PAPER_WEIGHT, names)
        weights = dict.fromkeys(POOLS, dataclasses.replace(of_nothing, fitted_on=keys))
    for one in tests:
        for fitted in weights.values():
            ids = [query.id for query in one.queries] if fitted.fitted_on else []
            fitted.refuse_fitted(one.name, ids, map(query_key, one.queries))


def rerank_evaluation(
    reranker: Reranker,
    embedder: Embedder,
    evaluated: Evaluated,
    layout: MbeirFolder,
    options: RerankOptions,
    *,
    workdir: Path,
    seed: int,
    tolerate: int = 0,
    say: Say,
) -> RerankedEvaluation:
    """Scores the first results of every query in both pools, and fuses; goes on where it stopped.

    Validation's candidates are stored as test's are, and so many of them may be unreadable.

    Raises:
      MarvelError: what reranking, fitting or scoring refuses.
    """
    names = list(evaluated.sets)
    weights = given_weights(options, names)
    if weights is None:
        weights = _fitted(
            reranker,
            embedder,
            evaluated,
            layout,
            options,
            workdir=workdir,
            seed=seed,
            tolerate=tolerate,
            say=say,
        )
    judgements, cost = judge(
        reranker,
        evaluated,
        layout,
        workdir=workdir,
        top=options.top,
        batch_tokens=options.batch_tokens,
        seed=seed,
        say=say,
    )
    return score_reranked(
        evaluated.evaluation,
        {name: one.query_ids for name, one in evaluated.sets.items()},
        judgements,
        weights,
        cost=cost,
        query_keys={
            name: [query_key(query) for query in one.queries]
            for name, one in evaluated.test_sets.items()
        },
        seed=seed,
    )


def _fitted(
    reranker: Reranker,
    embedder: Embedder,
    evaluated: Evaluated,
    layout: MbeirFolder,
    options: RerankOptions,
    *,
    workdir: Path,
    seed: int,
    tolerate: int,
    say: Say,
) -> dict[Pool, FusionWeights]:
    """A weight for each set and pool, fitted on another split's queries."""
    split = str(options.fit_split)
    folder = workdir / "rerank" / split
    kept = folder / "vectors" / "store"
    if not kept.exists():  # the union pool of test serves other splits too
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.symlink_to((workdir / "store").resolve(), target_is_directory=True)
    key = hash_json(
        [
            embedder.manifest_fields(),
            reranker.manifest_fields(),
            options.top,
            seed,
            evaluated.store.content_hash,
        ]
    )
    lists = {pool: folder / f"{key}-{pool}.jsonl" for pool in POOLS}
    say(f"fitting the weights on {split}")
    recall.write_lists(
        embedder,
        layout,
        split=split,
        depth=options.top,
        seed=seed,
        vectors=folder / "vectors",
        out={str(pool): path for pool, path in lists.items()},
        dtype=evaluated.store.dtype,
        dimension=evaluated.store.dimension,
        tolerate=max(tolerate, len(evaluated.missing)),
        say=say,
    )
    weights: dict[Pool, FusionWeights] = {}
    for pool, path in lists.items():
        scores = path.with_suffix(".scores.jsonl")
        if not scores.exists():
            rerank(
                reranker,
                fusing.listed_source(layout, split),
                path,
                scores,
                top=options.top,
                seed=seed,
                batch_tokens=options.batch_tokens,
                progress=Ticker(say, f"lists of {split}, {pool} pool"),
            )
        weights[pool] = fit(fusing.read_sets(Judged(str(scores), str(layout.root), split)))
    return weights


def _read_weights(path: Path) -> dict[Pool, FusionWeights]:
    found: Any = read_json_object(path).get("pools")
    try:
        return {pool: FusionWeights.from_dict(found[pool]["weights"]) for pool in POOLS}
    except (KeyError, TypeError) as error:
        raise MarvelError(
            f"{path} holds no fitted weights of the local and the global pool with the queries "
            f"that they were fitted on ({error!r}): name the fusion.json of a `marvel run` (run "
            "its stage again if it is older), give a number, or fit with --fit-split."
        ) from error
