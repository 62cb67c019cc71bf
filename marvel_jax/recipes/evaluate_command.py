"""What `marvel evaluate` does."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.models import hub
from marvel_jax.recipes.evaluation import evaluate_embedder, save, score_table
from marvel_jax.recipes.kept_parts import PARAPHRASES
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.paraphrases import score_paraphrases
from marvel_jax.recipes.reranking import RerankOptions, check_options, rerank_evaluation
from marvel_jax.reranker_settings import RerankerSettings
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.protocols import Evaluation
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.reranked_scores import RerankedEvaluation
from marvel_jax.retrieval.store_types import StoreType


@dataclass(frozen=True)
class WithReranker:
    """A reranker's folder or Hub id, and how its scores are used."""

    model: str
    options: RerankOptions
    prompt: str | None = None


def with_reranker(
    model: str | None,
    *,
    top: int,
    weights: str | None,
    fit_split: str | None,
    prompt: str | None,
) -> WithReranker | None:
    """The reranker that was asked for, or None.

    Raises:
      MarvelError: no reranker, but what only one uses; or options that cannot be together.
    """
    if model is None:
        given = {"--weights": weights, "--fit-split": fit_split, "--prompt": prompt}
        unused = [flag for flag, value in given.items() if value is not None]
        if unused:
            raise MarvelError(f"{', '.join(unused)} without --reranker: name a reranker.")
        return None
    return WithReranker(model, RerankOptions(top=top, weights=weights, fit_split=fit_split), prompt)


def evaluate_model(
    model: str,
    *,
    data: Path,
    workdir: Path,
    seed: int,
    scann: bool,
    held_out: Sequence[str] = (),
    dtype: StoreType = "float32",
    dimension: int | None = None,
    compute: str = "float32",
    tolerate: int = 0,
    all_instructions: bool = False,
    reranker: WithReranker | None = None,
) -> Outcome:
    """Scores a model on every test set of an M-BEIR folder."""
    console = Console(stderr=True)

    def say(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    layout = MbeirFolder(data)
    if reranker is not None:  # what cannot be used is told before anything is encoded
        check_options(reranker.options, layout)
        RerankerSettings.read(hub.resolve(reranker.model), prompt=reranker.prompt)
    embedder = Embedder.from_pretrained(model, dtype=compute)
    options = _options(
        seed=seed,
        exact_only=not scann,
        held_out=held_out,
        dtype=dtype,
        dimension=dimension,
        compute=compute,
        tolerate=tolerate,
    )
    evaluated = evaluate_embedder(
        embedder,
        layout,
        workdir=workdir,
        seed=seed,
        scann=scann,
        model=model,
        held_out=held_out,
        dtype=dtype,
        dimension=dimension,
        tolerate=tolerate,
        told={"compute": compute, "tolerate": tolerate, "options": options},
        say=say,
    )
    lines = [*score_table(evaluated.evaluation), *group_lines(evaluated.evaluation)]
    if all_instructions:
        spread = score_paraphrases(
            embedder, evaluated, layout, workdir=workdir, tolerate=tolerate, say=say
        )
        with_all = [*options, "--all-instructions"]
        evaluated.kept.put(PARAPHRASES, {"scores": spread.to_dict(), "options": with_all})
        lines += spread.lines()
    if reranker is not None:
        found = Reranker.from_pretrained(reranker.model, prompt=reranker.prompt, dtype=compute)
        reranked = rerank_evaluation(
            found,
            embedder,
            evaluated,
            layout,
            reranker.options,
            workdir=workdir,
            seed=seed,
            tolerate=tolerate,
            say=say,
        )
        lines += reranked_lines(reranked)
        about = {
            "model": reranker.model,
            "hash": found.model_hash,
            "top": reranker.options.top,
            "weights": reranker.options.origin_of_weights,
        }
        named = {"model": reranker.model, "top": reranker.options.top}
        part = {
            "scores": {**named, **reranked.to_dict()},
            "about": about,
            "options": [*options, *_reranking(reranker)],
        }
        scores = save(workdir, evaluated, reranked=reranked.orders, part=part)
    else:
        scores = save(workdir, evaluated)
    return Outcome(scores, lines)


def _options(**given: Any) -> list[str]:
    """The options of `marvel evaluate` that say what was not left as it is by default."""
    flags = {"exact_only": False, "seed": 0, "tolerate": 0, "dtype": "float32"}
    defaults = {**flags, "compute": "float32", "dimension": None, "held_out": ()}
    found: list[str] = []
    for name, value in given.items():
        value = tuple(value) if name == "held_out" else value
        if value == defaults[name]:
            continue
        found.append(f"--{name.replace('_', '-')}")
        if value is not True:
            found += map(str, value if isinstance(value, tuple) else (value,))
    return found


def _reranking(reranker: WithReranker) -> list[str]:
    """The options of a reranker."""
    options = reranker.options
    given = {"--weights": options.weights, "--fit-split": options.fit_split}
    found = ["--reranker", reranker.model, "--top", str(options.top)]
    for flag, value in {**given, "--prompt": reranker.prompt}.items():
        found += [flag, value] if value is not None else []
    return found


def group_lines(evaluation: Evaluation) -> list[str]:
    """Means by kind of task, and of seen and held-out sets, where there is more than one set."""
    groups = evaluation.by_task if len(evaluation.by_task) < len(evaluation.sets) else ()
    lines = []
    for group in (*groups, *evaluation.by_protocol):
        local, union = group.local_pool, group.global_pool
        lines.append(
            f"mean of {f'{group.name}, {len(group.sets)}':<17}local "
            f"{f'{local.mean:.3f} [{local.low:.3f}, {local.high:.3f}]':<22}"
            f"global {union.mean:.3f} [{union.low:.3f}, {union.high:.3f}]"
        )
    return lines


def reranked_lines(reranked: RerankedEvaluation) -> list[str]:
    """Reranked and fused beside retrieval, a set a line, and what the reranker took."""
    lines = []
    for name, pool in reranked.pools.items():
        lines.append(
            f"{f'{name} pool':<22}{'retrieval':<11}{'reranked':<11}{'fused':<8}{'weight':<8}change"
        )
        for one in pool.sets:
            change = one.change_fused
            lines.append(
                f"{one.name:<22}{one.retrieval.mean:<11.3f}{one.reranked.hit[one.k].mean:<11.3f}"
                f"{one.fused.hit[one.k].mean:<8.3f}{one.weight:<8.2f}"
                f"{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}] {one.verdict}"
            )
        change = pool.mean_change_fused
        lines.append(
            f"{'mean':<22}{pool.mean_retrieval:<11.3f}{pool.mean_reranked:<11.3f}"
            f"{pool.mean_fused:<16.3f}{change.mean:+.3f} [{change.low:+.3f}, {change.high:+.3f}]"
        )
        kinds = pool.by_task if len(pool.by_task) < len(pool.sets) else ()
        lines += [
            f"{f'{group.name}, {len(group.sets)}':<22}{group.retrieval:<11.3f}"
            f"{group.reranked:<11.3f}{group.fused:.3f}"
            for group in (*kinds, *pool.by_protocol)
        ]
    cost = reranked.cost
    lines.append(
        f"reranker: {cost.pairs:,} pairs in {cost.seconds:,.1f} s "
        f"({cost.pairs_per_second:,.1f} pairs/s)"
    )
    return lines
