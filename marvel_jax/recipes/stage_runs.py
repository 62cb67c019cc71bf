"""How each kind of stage does its work: by what the rooms below already do, with its folder."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from marvel_jax.data import emoji, mbeir_synthetic
from marvel_jax.data.emoji import TOKENIZER_FOLDER
from marvel_jax.data.keyed_lines import manifest_path
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.files import read_json_object, write_json, write_text
from marvel_jax.models import hub
from marvel_jax.models.deepening import deepen
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.parallel import hosts
from marvel_jax.recipes import fusing, recall, score_tables
from marvel_jax.recipes.evaluation import Ticker, evaluate_embedder, score_table
from marvel_jax.recipes.mining import count_lines, mine_negatives
from marvel_jax.recipes.outcome import EXIT_INTERRUPTED, EXIT_TERMINATED, Outcome
from marvel_jax.recipes.stage_record import BEGUN, DONE
from marvel_jax.recipes.stages import (
    Base,
    Deepen,
    Emoji,
    Evaluate,
    Fuse,
    Mine,
    Recall,
    Report,
    Score,
    Stage,
    Subset,
    Synthetic,
    Train,
)
from marvel_jax.recipes.subset import write_subset
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.rerank import Reranker
from marvel_jax.retrieval.rerank_lists import rerank
from marvel_jax.settings import EmbeddingSettings
from marvel_jax.training.export import export_checkpoint
from marvel_jax.training.inputs import fit_to_tokenizer, make_processor
from marvel_jax.training.loop import train

Say = Callable[[str], None]

TABLES = (Fuse, Report)
"""Stages whose lines are what a recipe is run for."""


def run_stage(stage: Stage, folder: Path, say: Say) -> Outcome:
    """Does a stage's work in its folder, or what is left of it; its inputs are paths."""
    return _RUNS[type(stage)](stage, folder, say)


def _emoji(stage: Emoji, folder: Path, say: Say) -> Outcome:
    if not (folder / "corpus").exists():
        emoji.build(folder / "corpus", seed=stage.seed, limit=stage.limit)
    counted = emoji.read_manifest(folder / "corpus")["emoji"]["drawn"]
    return Outcome({"emoji": counted}, [f"{counted:,} emoji"])


def _synthetic(stage: Synthetic, folder: Path, say: Say) -> Outcome:
    if not (folder / "corpus").exists():
        size = mbeir_synthetic.read_size(stage.size)
        mbeir_synthetic.build(folder / "corpus", size=size, seed=stage.seed, with_pairs=True)
    return Outcome({}, [f"a synthetic M-BEIR of size {stage.size}"])


def _base(stage: Base, folder: Path, say: Say) -> Outcome:
    tokenizer = Path(stage.data) / TOKENIZER_FOLDER
    settings = EmbeddingSettings(min_pixels=stage.max_pixels // 4, max_pixels=stage.max_pixels)
    processor = make_processor(tokenizer, settings, stage.architecture)
    architecture = fit_to_tokenizer(stage.architecture, processor)
    if not (folder / "model").exists():
        hub.save(
            folder / "model",
            config=architecture,
            params=jax.device_get(init_params(architecture, key=jax.random.key(stage.seed))),
            attention="causal",
            tokenizer_from=tokenizer,
            documents={"preprocessor_config.json": processor.geometry.to_preprocessor_dict()},
        )
    return Outcome({}, ["a model with weights drawn from the seed"])


def _deepen(stage: Deepen, folder: Path, say: Say) -> Outcome:
    if not (folder / "model").exists():
        checkpoint = hub.load(stage.model)
        params, architecture = deepen(
            checkpoint.params,
            checkpoint.config,
            layers=stage.layers,
            key=jax.random.key(stage.seed),
        )
        hub.save(
            folder / "model",
            config=architecture,
            params=jax.device_get(params),
            attention="causal" if checkpoint.config.text.is_causal else "bidirectional",
            temperature=checkpoint.temperature,
            tokenizer_from=stage.model,
        )
    return Outcome({}, [f"a model with {stage.layers} further layers"])


def _subset(stage: Subset, folder: Path, say: Say) -> Outcome:
    if not (folder / "corpus").exists():
        write_subset(
            Path(stage.data),
            folder / "corpus",
            split=stage.split,
            shares=(stage.first, stage.last),
            most=stage.most,
            include=stage.include,
            exclude=stage.exclude,
            candidates=stage.candidates,
            seed=stage.seed,
        )
    count = len(MbeirFolder(folder / "corpus").source(stage.split, verify=False).queries)
    return Outcome({"queries": count}, [f"{count:,} queries"])


def _train(stage: Train, folder: Path, say: Say) -> Outcome:
    result = train(stage.config, folder)
    facts: dict[str, Any] = {"steps": result.steps}
    if result.interrupted:
        line = f"stopped after {result.steps} of {stage.config.steps} steps; run it again to go on"
        code = EXIT_TERMINATED if result.signal == signal.SIGTERM else EXIT_INTERRUPTED
        return Outcome(facts, [line], code)
    del result  # the state fills the devices' memory

    def export() -> None:
        if not (folder / "model").is_dir():
            export_checkpoint(folder, folder / "model", base=stage.config.model.source)

    hosts.from_main(export)
    return Outcome(facts, [f"trained {facts['steps']:,} steps of {stage.config.data.global_batch}"])


def _mine(stage: Mine, folder: Path, say: Say) -> Outcome:
    out = folder / Mine.outputs["negatives"]
    names = ("queries", "negatives", "queries_with_fewer", "queries_with_none", "reasons")
    if (whole := _whole(out, say)) is not None:
        counts = whole["counts"]
        return Outcome({name: counts[name] for name in names}, count_lines(out, counts))
    _share(stage, stage.vectors, f"queries-seed-{stage.seed}", folder)
    found = mine_negatives(
        stage.model,
        data=Path(stage.data),
        out=out,
        split=stage.split,
        pool=stage.pool,
        preset=stage.preset,
        settings=stage.settings,
        teacher=None if stage.teacher is None else Path(stage.teacher),
        by_content=True,
        chosen_only=stage.chosen_only,
        scann=stage.scann,
        seed=stage.seed,
        workdir=folder / "vectors",
    )
    return Outcome({name: found.facts[name] for name in names}, found.lines)


def _recall(stage: Recall, folder: Path, say: Say) -> Outcome:
    _share(stage, stage.vectors, f"queries/seed-{stage.seed}", folder)
    out = {pool: folder / Recall.outputs[pool] for pool in recall.POOLS}
    for path in out.values():
        _whole(path, say)
    count = recall.write_lists(
        Embedder.from_pretrained(stage.model),
        MbeirFolder(stage.data),
        split=stage.split,
        depth=stage.depth,
        seed=stage.seed,
        vectors=folder / "vectors",
        out=out,
        say=say,
    )
    return Outcome({"queries": count}, [f"{count:,} queries, the best {stage.depth} of each pool"])


def _score(stage: Score, folder: Path, say: Say) -> Outcome:
    out = folder / Score.outputs["scores"]
    manifest = _whole(out, say) or rerank(
        Reranker.from_pretrained(stage.model, prompt=stage.prompt, dtype=stage.dtype),
        fusing.listed_source(MbeirFolder(stage.data), stage.split),
        stage.lists,
        out,
        top=stage.top,
        seed=stage.seed,
        batch_tokens=stage.batch_tokens,
        progress=Ticker(say, "lists"),
    )
    count = manifest["lists_scored"]
    return Outcome({"lists": count}, [f"{count:,} lists of up to {stage.top} candidates"])


def _evaluate(stage: Evaluate, folder: Path, say: Say) -> Outcome:
    evaluated = evaluate_embedder(
        Embedder.from_pretrained(stage.model),
        MbeirFolder(stage.data),
        workdir=folder / "vectors",
        seed=stage.seed,
        scann=stage.scann,
        say=say,
    )
    scores = evaluated.evaluation
    write_json(folder / "scores.json", scores.to_dict())
    facts = {"local": scores.mean_local.mean, "global": scores.mean_global.mean}
    return Outcome(facts, score_table(scores))


def _fuse(stage: Fuse, folder: Path, say: Say) -> Outcome:
    report = fusing.fit_and_judge(stage)
    write_json(folder / "fusion.json", report)
    return Outcome({}, [line for pool in report["pools"].values() for line in pool["lines"]])


def _report(stage: Report, folder: Path, say: Say) -> Outcome:
    table = score_tables.read_columns([(one.label, Path(one.scores)) for one in stage.columns])
    write_json(folder / "table.json", table.to_dict())
    page = [f"# {stage.title}", ""] if stage.title else []
    shown = table.averages() if stage.averages else table.lines()
    write_text(folder / "table.md", "\n".join([*page, *table.markdown()]) + "\n")
    return Outcome({}, [*([stage.title] if stage.title else []), *shown])


def _same_queries(other: Path, folder: Path) -> bool:
    """Whether two stages embed the same queries with the same model, by their records.

    An evaluation has no choice of a split: it is the test split's.
    """
    if not (other / DONE).is_file():
        return False
    found, own = read_json_object(other / DONE), read_json_object(folder / BEGUN)
    return all(
        found["inputs"].get(name, {}).get("hash") == own["inputs"][name]["hash"]
        for name in ("model", "data")
    ) and all(
        found["fields"].get(name, default) == own["fields"][name]
        for name, default in (("split", "test"), ("seed", None))
    )


def _share(stage: Stage, vectors: str | None, queries: str, folder: Path) -> None:
    """Links vectors of an earlier stage, where they are, so that they are not made again.

    Those of the pool, and where it embedded the same queries, those of the `queries`.
    """
    if vectors is None:
        return
    parts = [str(stage.pool_vectors)]
    if _same_queries(Path(vectors).parent, folder):
        parts.append(queries)
    for part in parts:
        there, here = (Path(vectors) / part).resolve(), folder / "vectors" / part
        if there.is_dir() and not here.is_symlink() and not here.exists():
            here.parent.mkdir(parents=True, exist_ok=True)
            here.symlink_to(there, target_is_directory=True)


def _whole(path: Path, say: Say) -> dict[str, Any] | None:
    """The manifest of a file that a killed stage left whole; None where there is none.

    A file without its manifest is of no use to anybody, and is removed.
    """
    if not path.exists():
        return None
    beside = manifest_path(path)
    if beside.is_file():
        return read_json_object(beside)
    say(f"  {path} has lost its manifest and is made again")
    path.unlink()
    return None


_RUNS: Mapping[type[Stage], Callable[[Any, Path, Say], Outcome]] = {
    Emoji: _emoji,
    Synthetic: _synthetic,
    Base: _base,
    Deepen: _deepen,
    Subset: _subset,
    Train: _train,
    Mine: _mine,
    Recall: _recall,
    Score: _score,
    Evaluate: _evaluate,
    Fuse: _fuse,
    Report: _report,
}
