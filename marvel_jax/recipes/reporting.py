"""What `marvel report` does: everything that explains an evaluation, on one page and in tables."""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from marvel_jax.data.items import Item
from marvel_jax.data.mbeir import MbeirFolder, read_dataset_names
from marvel_jax.data.records import IdTable
from marvel_jax.errors import MarvelError
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.reporting_tradeoff import measure_tradeoff
from marvel_jax.retrieval import evaluation_folder
from marvel_jax.retrieval.analysis import Candidates, JudgedSet
from marvel_jax.retrieval.analysis_against import Comparison, compare
from marvel_jax.retrieval.analysis_copies import copies
from marvel_jax.retrieval.analysis_gallery import Gallery, gallery
from marvel_jax.retrieval.analysis_obedience import obedience
from marvel_jax.retrieval.encode import instructed
from marvel_jax.retrieval.evaluation_folder import EvaluationFolder
from marvel_jax.retrieval.protocols import Evaluation
from marvel_jax.retrieval.published import SetSize, beside
from marvel_jax.retrieval.report import Report
from marvel_jax.retrieval.report_analyses import Analyses
from marvel_jax.retrieval.report_page import write_report
from marvel_jax.retrieval.report_scores import judged_sets, read_scores
from marvel_jax.retrieval.store import VectorStore

Say = Callable[[str], None]

_DIFFERING = {
    "seed": "Seed of the instructions",
    "data": "Data",
    "dtype": "Type of the stored vectors",
    "dimension": "Numbers a vector",
    "compute": "Computed in",
    "missing": "Candidates that could not be read",
}
"""What two evaluations may differ in besides the model, by the field of evaluation.json."""

_ORDERS = {"reranked": "the reranker alone", "fused": "retrieval and reranker, fused"}


def report_evaluation(
    workdir: Path,
    *,
    against: Path | None,
    out: Path | None,
    data: Path | None,
    tradeoff: bool,
    tradeoff_queries: int,
    shown: int,
    seed: int,
) -> Outcome:
    """Writes the report of an evaluation's folder; see `marvel report --help`."""
    console = Console(stderr=True)
    folder = evaluation_folder.read(workdir)
    scores = read_scores(folder.scores, where=folder.path / evaluation_folder.SCORES)
    layout = MbeirFolder(_data_folder(folder, data))
    analyses = analyse(
        folder,
        scores,
        layout,
        against=evaluation_folder.read(against) if against else None,
        tradeoff_queries=tradeoff_queries if tradeoff else 0,
        shown=shown,
        seed=seed,
        say=lambda line: console.print(f"  {line}", highlight=False, soft_wrap=True),
    )
    held = {one.name for one in scores.sets if one.held_out}
    model = folder.about.get("model") or folder.path.name
    report = Report(
        title=f"Evaluation of {Path(model).name}",
        corpus=_corpus(scores),
        seconds=None,
        evaluation=scores,
        untrained=None,
        trained={one.name for one in scores.sets} - held if held else None,
        examples={},
        curves=[],
        facts=_facts(folder, model),
        commands=_commands(folder, model, layout, against),
        analyses=analyses,
    )
    target = out or folder.path / "evaluation-report"
    page = write_report(report, target)
    facts = {"report": str(page), "folder": str(target), **_headline(scores, analyses)}
    return Outcome(facts, [*_lines(scores, analyses), f"report: {page}"])


def analyse(
    folder: EvaluationFolder,
    scores: Evaluation,
    layout: MbeirFolder,
    *,
    against: EvaluationFolder | None = None,
    tradeoff_queries: int = 0,
    shown: int = 2,
    seed: int = 0,
    say: Say = lambda line: None,
) -> Analyses:
    """Everything that explains the scores of an evaluation.

    Args:
      folder: the evaluation.
      scores: its scores, as `read_scores` reads them.
      layout: the data that it was made on.
      against: another evaluation, to be tested against on the same queries.
      tradeoff_queries: how many queries a set for the table over dimension, type and search,
        which re-scores converted stores; 0 leaves it out.
      shown: successes and failures shown of each set.
      seed: of bootstraps, swaps and draws.
      say: told what is done.

    Raises:
      MarvelError: files are missing or damaged, or the data or the other run have other queries.
    """
    store = VectorStore.open(folder.store_path, check="layout")
    say(f"reading the rankings of {len(scores.sets)} sets over {len(store):,} candidates")
    sets = judged_sets(folder, scores)
    candidates = Candidates(
        store,
        layout.pool("test"),
        datasets={
            number: name
            for name, number in read_dataset_names(
                layout.root / "instructions" / "query_instructions.tsv"
            ).items()
        },
    )
    say("modality obedience")
    obeyed = obedience(sets, candidates, seed=seed)
    say("copies")
    compute = folder.about.get("compute", "float32")
    collapsed = copies(sets, candidates, compute=compute, seed=seed)
    compared = None
    if against is not None:
        say(f"comparing with {against.path}")
        compared = _against(folder, sets, against, seed=seed)
    table = None
    if tradeoff_queries:
        table = measure_tradeoff(folder, store, sets, queries=tradeoff_queries, seed=seed, say=say)
    say("galleries")
    return Analyses(
        obedience=obeyed,
        copies=collapsed,
        published=beside(
            [SetSize(one.name, one.num_queries, one.local_pool.size) for one in scores.sets],
            global_size=scores.sets[0].global_pool.size,
        ),
        against=compared,
        reranked=_reranked(folder, scores, sets, seed=seed),
        reranker_cost=(folder.scores.get("reranked") or {}).get("cost"),
        paraphrases=folder.scores.get("paraphrases"),
        tradeoff=table,
        galleries=_galleries(folder, sets, candidates, layout, shown=shown, seed=seed),
    )


def _against(
    folder: EvaluationFolder, sets: Sequence[JudgedSet], other: EvaluationFolder, *, seed: int
) -> Comparison:
    theirs = read_scores(other.scores, where=other.path / evaluation_folder.SCORES)
    notes = [
        f"{meaning}: {mine!r} here, {there!r} there."
        for field, meaning in _DIFFERING.items()
        if (mine := folder.about.get(field)) != (there := other.about.get(field))
    ]
    names = (_name(folder), _name(other))
    if names[0] == names[1]:
        names = (str(folder.path), str(other.path))
    return compare(sets, judged_sets(other, theirs), names=names, notes=notes, seed=seed)


def _reranked(
    folder: EvaluationFolder, scores: Evaluation, sets: Sequence[JudgedSet], *, seed: int
) -> list[Comparison]:
    found = []
    for order, name in _ORDERS.items():
        again = judged_sets(folder, scores, order=order)
        if again:
            names = {one.name for one in again}
            before = [one for one in sets if one.name in names]
            found.append(compare(again, before, names=(name, "retrieval alone"), seed=seed))
    return found


def _galleries(
    folder: EvaluationFolder,
    sets: Sequence[JudgedSet],
    candidates: Candidates,
    layout: MbeirFolder,
    *,
    shown: int,
    seed: int,
) -> list[Gallery]:
    if not shown:
        return []
    test_sets = {one.name: one for one in layout.test_sets()}
    found = []
    for number, one in enumerate(sets):
        if one.name not in test_sets:
            raise MarvelError(
                f"{layout.root} has no test set {one.name!r}, which {folder.path} was evaluated "
                "on: name the data of the evaluation with --data."
            )
        queries = test_sets[one.name].queries
        table = IdTable(queries, "qid")

        def query(place: int, one: Any = one, queries: Any = queries, table: Any = table) -> Item:
            index = table.find(one.query_ids[place])
            if index is None:
                raise MarvelError(
                    f"{layout.root} has no query {one.query_ids[place]!r}, which {folder.path} "
                    "was evaluated on: name the data of the evaluation with --data."
                )
            return instructed(queries[index], layout.instructions, seed=folder.about["seed"])

        draw = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        found.append(gallery(one, candidates, query=query, count=shown, seed=draw))
    return found


def _data_folder(folder: EvaluationFolder, data: Path | None) -> Path:
    if data is not None:
        return data
    named = Path(folder.about.get("data", ""))
    if not (named / "query").is_dir():
        raise MarvelError(
            f"{folder.path} was evaluated on {named}, which is no M-BEIR folder here: name where "
            "it lies now with --data."
        )
    return named


def _name(folder: EvaluationFolder) -> str:
    return str(folder.about.get("model") or folder.path)


def _corpus(scores: Evaluation) -> str:
    queries = sum(one.num_queries for one in scores.sets)
    size = scores.sets[0].global_pool.size
    missing = sum(one.missing for one in scores.sets)
    lost = f" {missing:,} candidates could not be read: nothing finds them." if missing else ""
    return f"{queries:,} queries of {len(scores.sets)} test sets, {size:,} candidates.{lost}"


def _facts(folder: EvaluationFolder, model: str) -> dict[str, str]:
    about = folder.about
    reranker = about.get("reranker") or {}
    facts = {
        "Model": model,
        "Weights": about.get("model_hash", ""),
        "Data": about.get("data", ""),
        "Vectors": about.get("store", ""),
        "Instructions": f"seed {about['seed']}",
        "Stored as": _stored(about),
        "Computed in": about.get("compute", ""),
        "Results kept a query": str(about.get("depth", "")),
        "Reranker": reranker.get("model", "none"),
        "Weight of the reranker": reranker.get("weights", ""),
        "marvel-jax": about.get("marvel_jax", ""),
    }
    return {name: str(value) for name, value in facts.items() if value}


def _commands(
    folder: EvaluationFolder, model: str, layout: MbeirFolder, against: Path | None
) -> list[str]:
    place = ["--data", str(layout.root), "--workdir", str(folder.path)]
    beside = ["--against", str(against)] if against else []
    told = [
        ["marvel", "evaluate", model, *place, *options]
        for options in folder.about.get("commands", [[]])
    ]
    return [shlex.join(one) for one in (*told, ["marvel", "report", str(folder.path), *beside])]


def _stored(about: Mapping[str, Any]) -> str:
    if "dtype" not in about or "dimension" not in about:
        return ""
    return f"{about['dtype']}, {about['dimension']:,} numbers a vector"


def _headline(scores: Evaluation, analyses: Analyses) -> dict[str, Any]:
    assert analyses.obedience is not None and analyses.copies is not None
    facts: dict[str, Any] = {
        "mean_local": scores.mean_local.mean,
        "mean_global": scores.mean_global.mean,
        "obedience": analyses.obedience.mean,
        "copies_collapsed": {pool: analyses.copies.mean(pool)[1] for pool in ("local", "global")},
    }
    if analyses.against:
        facts["against"] = {
            pool: one.test._asdict() | {"difference": one.test.difference._asdict()}
            for pool, one in analyses.against.means.items()
        }
    return facts


def _lines(scores: Evaluation, analyses: Analyses) -> list[str]:
    facts = _headline(scores, analyses)
    collapsed = facts["copies_collapsed"]
    lines = [
        f"mean hit: local {scores.mean_local.mean:.3f}, global {scores.mean_global.mean:.3f}",
        f"copies in one place: {collapsed['local']:.3f}, {collapsed['global']:.3f}",
        f"of the modality asked for: {facts['obedience']:.3f} of the first results, global pool",
    ]
    if analyses.against:
        for pool, one in analyses.against.means.items():
            mean, low, high = one.test.difference
            lines.append(
                f"against {analyses.against.theirs}, {pool}: {mean:+.3f} [{low:+.3f}, "
                f"{high:+.3f}], p = {one.test.p:.2g}"
            )
    return lines
