"""The main job, end to end on real pictures: corpus, training, stores, ScaNN, scores, report."""

import dataclasses
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from rich.console import Console

from marvel_jax.collection.versions import is_collection
from marvel_jax.data import emoji
from marvel_jax.data.items import TASKS, Item
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.errors import MarvelError
from marvel_jax.files import read_json, read_jsonl, write_json
from marvel_jax.recipes.demo_collection import build_demo
from marvel_jax.recipes.emoji import train_config
from marvel_jax.recipes.evaluation import Evaluated, evaluate_embedder, score_table
from marvel_jax.recipes.outcome import Outcome
from marvel_jax.recipes.reporting import analyse
from marvel_jax.retrieval import evaluation_folder
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import instructed
from marvel_jax.retrieval.report import Curve, Example, Report, pick_examples
from marvel_jax.retrieval.report_page import write_report
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.export import export_params
from marvel_jax.training.loop import TrainResult, train
from marvel_jax.training.state import initial_values, parameter_count

_SHORT_STEPS = 20
_SHORT_EMOJI = 400


def run_quickstart(workdir: Path, *, seed: int, short: bool) -> Outcome:
    """Runs what is not done yet of the quickstart in `workdir`.

    The folder then holds corpus/, train/ (a run), model/ (a Hugging Face folder), store/ and
    index/ of the trained model, untrained/ (the same before the first step), report/ and
    collection/, which `marvel search` and `marvel serve` open.

    Raises:
      MarvelError: a font is missing, or the folder holds a quickstart with another seed or size.
    """
    console = Console(stderr=True)
    if seed < 0:
        raise MarvelError(f"seed {seed} is negative: give 0 or more.")
    settings = {"seed": seed, "short": short}
    require_same_quickstart(workdir / "quickstart.json", settings)
    clock = Stages(workdir / "stages.json", console)
    with clock.stage("corpus", done=(workdir / "corpus").is_dir()):
        limit = _SHORT_EMOJI if short else None
        build_corpus(workdir / "corpus", seed=seed, limit=limit, say=clock.say)
    # Only now: a quickstart that cannot begin must not keep the folder for itself.
    write_json(workdir / "quickstart.json", settings)
    config = train_config(str(workdir / "corpus"), seed=seed)
    if short:
        paced = dataclasses.replace(config.checkpoint, every=10)
        config = dataclasses.replace(config, steps=_SHORT_STEPS, checkpoint=paced)
    with clock.stage("train", done=(workdir / "model").is_dir()):
        result = train(config, workdir / "train")
        if result.interrupted:
            raise KeyboardInterrupt
        if not (workdir / "model").is_dir():
            export_params(workdir / "train", workdir / "model", result.state.params)
    layout = MbeirFolder(workdir / "corpus")
    reported = (workdir / "report" / "report.json").is_file()
    with clock.stage("evaluate", done=reported):
        trained = Embedder.from_pretrained(workdir / "model")
        evaluated = evaluate_embedder(trained, layout, workdir=workdir, seed=seed, say=clock.say)
    with clock.stage("untrained", done=reported):
        untrained = evaluate_embedder(
            untrained_embedder(config, result),
            layout,
            workdir=workdir / "untrained",
            seed=seed,
            scann=False,
            say=clock.say,
        )
    with clock.stage("report", done=reported):
        report = make_report(
            workdir,
            config,
            result,
            evaluated,
            untrained,
            layout,
            seconds=clock.total("seconds"),
            evaluation_seconds=clock.spent["evaluate"]["seconds"],
        )
        page = write_report(report, workdir / "report")
    collection = workdir / "collection"
    with clock.stage("collection", done=is_collection(collection)):
        if not is_collection(collection):
            build_demo(
                workdir, evaluated.store, embedder=trained, layout=layout, seed=seed, say=clock.say
            )
    lines = [
        *score_table(evaluated.evaluation, untrained=untrained.evaluation),
        f"{clock.total('seconds'):.0f} s, {clock.total('cpu_seconds') / 60:.1f} CPU-minutes: "
        + ", ".join(f"{name} {spent['seconds']:.0f} s" for name, spent in clock.spent.items()),
        f"report: {page}",
        f"search it: marvel serve {collection}",
    ]
    facts = {
        "workdir": str(workdir),
        "report": str(page),
        "collection": str(collection),
        "scores": evaluated.evaluation.to_dict(),
        "untrained": untrained.evaluation.to_dict(),
        "stages": clock.spent,
    }
    return Outcome(facts, lines)


def require_same_quickstart(path: Path, settings: dict[str, Any]) -> None:
    """Holds a quickstart against the one whose settings are in the folder, if there is one."""
    if path.exists() and (found := read_json(path)) != settings:
        raise MarvelError(
            f"{path.parent} holds a quickstart with {found}, not {settings}: choose another "
            "--workdir, or remove that folder."
        )


def build_corpus(folder: Path, *, seed: int, limit: int | None, say: Callable[[str], None]) -> None:
    """Builds the emoji corpus, or checks that the one there has the seed."""
    if folder.is_dir():
        found = emoji.read_manifest(folder)["seed"]
        if found != seed:
            raise MarvelError(f"{folder} was built with seed {found}, not {seed}: remove it.")
        return
    stages: set[str] = set()

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages.add(stage)
            say(f"{stage} {total:,} emoji" if total > 1 else stage)

    emoji.build(folder, seed=seed, limit=limit, progress=progress)


def untrained_embedder(config: TrainConfig, result: TrainResult) -> Embedder:
    """The model before its first step: the weights that the seed gives."""
    inputs = result.inputs
    params, _ = initial_values(config, inputs.architecture, weights=None, temperature=None)
    settings = config.embedding
    return Embedder(
        params["model"],
        inputs.architecture,
        inputs.processor,
        attention=settings.attention,
        pooling=settings.pooling,
    )


def make_report(
    workdir: Path,
    config: TrainConfig,
    result: TrainResult,
    evaluated: Evaluated,
    untrained: Evaluated,
    layout: MbeirFolder,
    *,
    seconds: float,
    evaluation_seconds: float,
) -> Report:
    """Everything that the page shows."""
    rows = [row for _, row in read_jsonl(workdir / "train" / "metrics.jsonl")]
    manifest = emoji.read_manifest(workdir / "corpus")
    drawn, languages = manifest["emoji"]["drawn"], len(manifest["languages"])
    pairs = config.data.global_batch * len(rows)
    weights = config.data.task_weights or dict.fromkeys(TASKS, 1.0)
    trained_tasks = {task for task, weight in weights.items() if weight > 0}
    facts = {
        "Model": f"Qwen2-VL architecture, {parameter_count(result.state.params):,} parameters, "
        "from scratch",
        "Training": f"{len(rows):,} steps of {config.data.global_batch} pairs ({pairs:,} pairs), "
        f"seed {config.seed}, {sum(row['seconds'] for row in rows):.0f} s",
        "Evaluation": f"{len(evaluated.store):,} candidates and the queries encoded, indexed and "
        f"searched in {evaluation_seconds:.0f} s",
        "Machine": machine(),
        "Versions": versions(),
    }
    return Report(
        title="marvel-jax quickstart",
        corpus=f"{drawn:,} emoji pictures and their names in {languages} languages; every test "
        "query asks with or for a picture, a name or a combination that training never showed.",
        seconds=seconds,
        evaluation=evaluated.evaluation,
        untrained=untrained.evaluation,
        trained={name for name, one in evaluated.test_sets.items() if one.task.id in trained_tasks},
        examples=examples(evaluated, layout, seed=config.seed),
        curves=[
            Curve("loss", [(row["step"], row["loss"]) for row in rows]),
            Curve("temperature", [(row["step"], row["temperature"]) for row in rows]),
        ],
        analyses=analyse(
            evaluation_folder.read(workdir), evaluated.evaluation, layout, shown=0, seed=config.seed
        ),
        facts=facts,
        commands=[
            f"./launch/quickstart --seed {config.seed} --workdir {workdir}",
            f"marvel evaluate {workdir}/model --data {workdir}/corpus --workdir {workdir}/again",
        ],
    )


def examples(
    evaluated: Evaluated, layout: MbeirFolder, *, seed: int
) -> dict[str, tuple[Example, ...]]:
    """A few queries of each set with what was retrieved, drawn by seed."""
    pool = layout.pool("test")
    place = {candidate.id: number for number, candidate in enumerate(pool)}

    def candidate(id: str) -> Item:
        return pool[place[id]].item

    found = {}
    for name, one in evaluated.test_sets.items():

        def query(number: int, queries: Any = one.queries) -> Item:
            return instructed(queries[number], layout.instructions, seed=seed)

        found[name] = pick_examples(
            evaluated.sets[name],
            evaluated.evaluation.rankings[name].local_pool,
            evaluated.store,
            query=query,
            candidate=candidate,
            seed=seed,
        )
    return found


class Stages:
    """Wall and CPU seconds of each stage over all resumes, in a file; a `kill -9` loses its own."""

    def __init__(self, path: Path, console: Console) -> None:
        self._path = path
        self._console = console
        self.spent: dict[str, dict[str, float]] = read_json(path) if path.exists() else {}

    def say(self, line: str) -> None:
        """One line of progress."""
        self._console.print(f"  {line}", highlight=False, soft_wrap=True)

    def total(self, unit: str) -> float:
        """All stages together: "seconds" or "cpu_seconds"."""
        return sum(spent[unit] for spent in self.spent.values())

    @contextmanager
    def stage(self, name: str, *, done: bool) -> Iterator[None]:
        """Times the body, even if it is interrupted; looking at what was `done` counts nothing."""
        self._console.print(f"[bold]{name}[/bold]" + (" (done before)" if done else ""))
        if done and name in self.spent:
            yield
            return
        started, cpu = time.perf_counter(), cpu_seconds()
        before = self.spent.get(name, {"seconds": 0.0, "cpu_seconds": 0.0})
        try:
            yield
        finally:
            self.spent[name] = {
                "seconds": round(before["seconds"] + time.perf_counter() - started, 1),
                "cpu_seconds": round(before["cpu_seconds"] + cpu_seconds() - cpu, 1),
            }
            write_json(self._path, self.spent)


def cpu_seconds() -> float:
    """CPU time of this process and its finished children."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(sum(resource.getrusage(kind)[:2]) for kind in kinds)


def machine() -> str:
    """What the run ran on, for a reader of its figures."""
    device = jax.devices()[0]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{count} CPU cores, {len(jax.devices())} x {device.device_kind}, {platform.machine()}"


def versions() -> str:
    """The versions that decide a result."""
    names = ("jax", "flax", "transformers", "scann")
    found = []
    for name in names:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return f"Python {platform.python_version()}, " + ", ".join(found)
