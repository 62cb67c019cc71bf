"""What the commands of `marvel` do; `cli.py` parses and prints."""

import dataclasses
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from marvel_jax.data import emoji
from marvel_jax.data.items import Candidate, Item
from marvel_jax.data.mbeir import MbeirFolder
from marvel_jax.data.processor import Processor
from marvel_jax.errors import MarvelError
from marvel_jax.files import hash_files, read_jsonl, write_json
from marvel_jax.models import hub, lora, peft
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.evaluation import Ticker, evaluate_embedder, score_table
from marvel_jax.recipes.outcome import EXIT_INTERRUPTED, EXIT_TERMINATED, Outcome
from marvel_jax.retrieval import exact
from marvel_jax.retrieval.embedder import Embedder
from marvel_jax.retrieval.encode import encode_candidates
from marvel_jax.retrieval.scann_index import ScannIndex, describe
from marvel_jax.retrieval.store import VectorStore
from marvel_jax.settings import SETTINGS_FILE, EmbeddingSettings, check_tokenizer
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.state import parameter_count

if TYPE_CHECKING:
    from marvel_jax.parallel.watch import Voice
    from marvel_jax.training.loop import Watching


def build_emoji(out: Path, *, seed: int) -> Outcome:
    """Builds the emoji corpus."""
    console = Console(stderr=True)
    with console.status("drawing emoji") as status:

        def report(stage: str, done: int, total: int) -> None:
            status.update(f"{stage} {done:,}/{total:,}")

        built = emoji.build(out, seed=seed, progress=report)
    counted = built.manifest["emoji"]
    queries = sum(built.manifest["training_queries"].values())
    facts = {"out": str(out), "emoji": counted["drawn"], "training_queries": queries}
    undrawn = (
        f"not drawn: {counted['without_glyph']} without a glyph in the font, "
        f"{counted['falling_apart']} that fall apart into several"
    )
    return Outcome(
        facts,
        [
            f"{counted['drawn']:,} emoji drawn, {queries:,} training queries",
            undrawn,
            f"{out}: M-BEIR layout, tokenizer/, tfds/, manifest.json",
        ],
    )


def run_training(
    config: Path,
    workdir: Path,
    *,
    overrides: tuple[str, ...],
    layout: str | None = None,
    profile_steps: str | None = None,
    peak_tflops: float | None = None,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    join_timeout: float | None = None,
    voice: "Voice | None" = None,
) -> Outcome:
    """Trains what a config file describes and writes `workdir/model`.

    Joins the run that the flags or the scheduler tell of, if it has several processes.
    """
    from marvel_jax.parallel import hosts
    from marvel_jax.parallel.chips import GPU_MEMORY_SHARE
    from marvel_jax.training.loop import Watching
    from marvel_jax.training.profiling import parse_steps
    from marvel_jax.training.progress import Teller

    watching = Watching(parse_steps(profile_steps) if profile_steps else None, peak_tflops)
    # Before anything asks for the devices. JAX would take three quarters of a GPU's memory, where
    # `marvel plan` counts on this much.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", str(GPU_MEMORY_SHARE))
    run = hosts.start(
        coordinator,
        num_processes,
        process_id,
        timeout=hosts.JOIN_SECONDS if join_timeout is None else join_timeout,
        say=Teller().say,
        voice=voice,
    )
    with run:
        return _train_to_model(load_config(config, overrides, layout=layout), workdir, watching)


def _train_to_model(loaded: TrainConfig, workdir: Path, watching: "Watching") -> Outcome:
    from marvel_jax.parallel import hosts
    from marvel_jax.training.export import export_checkpoint
    from marvel_jax.training.loop import train

    result = train(loaded, workdir, watching=watching)
    facts: dict[str, Any] = {"workdir": str(workdir), "steps": result.steps}
    facts["interrupted"] = result.interrupted
    # The first process tells a person; the others' logs need not repeat it.
    told = hosts.is_main()
    if result.interrupted:
        line = f"stopped after {result.steps} of {loaded.steps} steps; run it again to go on"
        code = EXIT_TERMINATED if result.signal == signal.SIGTERM else EXIT_INTERRUPTED
        return Outcome(facts, [line] if told else [], code)
    model = workdir / "model"

    def export() -> None:
        if not model.is_dir():
            # From the checkpoint: no process need hold every part of the state.
            export_checkpoint(workdir, model, base=loaded.model.source)

    hosts.from_main(export)
    facts["model"] = str(model)
    lines = [f"trained {result.steps} steps; model: {model}"] if told else []
    return Outcome(facts, lines)


def export_run(
    run: Path, *, out: Path, adapters: bool, step: int | None, base: str | None
) -> Outcome:
    """Writes a run's checkpoint as a Hugging Face folder, or its adapters as PEFT's."""
    from marvel_jax.training.export import export_adapters, export_checkpoint

    write = export_adapters if adapters else export_checkpoint
    step = write(run, out, step=step, base=base)
    what = "the adapters" if adapters else "the model"
    return Outcome({"out": str(out), "step": step}, [f"{out}: {what} after {step} steps"])


def import_checkpoint(source: str, *, out: Path, adapters: str | None = None) -> Outcome:
    """Reads a Hugging Face folder or Hub id in full and writes it as a model folder of ours.

    `adapters`, a folder or Hub id in PEFT's layout, are merged in, in float32; the temperature and
    the settings that they were trained with, where they bring them, take the place of the base's.
    """
    folder = hub.resolve(source)
    settings = EmbeddingSettings.read(folder)
    checkpoint = hub.load(folder)
    processor = Processor.from_folder(folder)
    # A tokenizer that is missing or another model's is told now, not when the model is used.
    check_tokenizer(
        processor.tokenizer.special,
        image_token_id=checkpoint.config.image_token_id,
        vocab_size=checkpoint.config.text.vocab_size,
        name=str(folder),
    )
    documents = {}
    if adapters is not None:
        tuned = hub.resolve(adapters)
        found = peft.load_adapters(tuned, checkpoint.config)
        temperature = checkpoint.temperature if found.temperature is None else found.temperature
        merged = lora.merge(checkpoint.params, found.params, found.lora)
        checkpoint = hub.Checkpoint(checkpoint.config, merged, temperature)
        if (tuned / SETTINGS_FILE).is_file():
            settings = EmbeddingSettings.read(tuned)
            geometry = dataclasses.replace(
                processor.geometry, min_pixels=settings.min_pixels, max_pixels=settings.max_pixels
            )
            documents["preprocessor_config.json"] = geometry.to_preprocessor_dict()
    hub.save(
        out,
        config=checkpoint.config,
        params=checkpoint.params,
        attention=settings.attention,
        temperature=checkpoint.temperature,
        tokenizer_from=folder,
        documents={**documents, SETTINGS_FILE: settings.to_dict()},
    )
    count = parameter_count(checkpoint.params)
    facts = {"out": str(out), "parameters": count, "settings": settings.to_dict()}
    done = "every weight accounted for" + (", adapters merged" if adapters is not None else "")
    return Outcome(facts, [f"{out}: {count:,} parameters, {done}"])


def encode_pool(model: str, *, pool: Path, out: Path) -> Outcome:
    """Embeds the candidates of an M-BEIR folder or a jsonl into a store."""
    say = Console(stderr=True).print
    started = time.perf_counter()
    if pool.is_dir():
        candidates: Any = MbeirFolder(pool).pool("test")
        source_hash = hash_files(*(file.path for file in candidates.files))
    else:
        candidates, source_hash = read_items(pool), hash_files(pool)
    store = encode_candidates(
        Embedder.from_pretrained(model),
        candidates,
        out,
        source_hash=source_hash,
        progress=Ticker(say, "candidates"),
    )
    seconds = time.perf_counter() - started
    facts = {"out": str(out), "count": len(store), "dimension": store.dimension}
    return Outcome(
        facts | {"seconds": round(seconds, 1)},
        [f"{out}: {len(store):,} vectors of {store.dimension} numbers in {seconds:.0f} s"],
    )


def read_items(path: Path) -> list[Candidate]:
    """Reads candidates from a jsonl: `id`, and `text`, `image` (a path beside the file) or both.

    Raises:
      MarvelError: a line is broken, has no id or no content, or an id occurs twice.
    """
    found: dict[str, Candidate] = {}
    for number, row in read_jsonl(path):
        id, text, image = row.get("id"), row.get("text"), row.get("image")
        if not isinstance(id, str) or not id:
            raise MarvelError(f"{path}, line {number}: expected an id (text), found {id!r}.")
        if id in found:
            raise MarvelError(f"{path}, line {number}: id {id!r} occurs twice; rename one.")
        for name, value in (("text", text), ("image", image)):
            if value is not None and not isinstance(value, str):
                raise MarvelError(
                    f"{path}, line {number}: {id!r} has {name} {value!r}; expected text or null."
                )
        if not image and not (text and text.strip()):
            raise MarvelError(f"{path}, line {number}: {id!r} has neither text nor image.")
        item = Item.of(text=text, image=path.parent / image if image else None, id=id)
        found[id] = Candidate(id, item, item.modality)
    if not found:
        raise MarvelError(f"{path} holds no item.")
    return list(found.values())


def build_index(store: Path, *, out: Path) -> Outcome:
    """Builds a ScaNN index over a store."""
    opened = VectorStore.open(store)
    index = ScannIndex.build(opened, path=out)
    facts = {"out": str(out), "count": len(opened), "build_seconds": index.build_seconds}
    return Outcome(facts, [f"{out}: {len(opened):,} vectors, {describe(index.config)}"])


def search_store(
    model: str,
    *,
    store: Path,
    index: Path | None,
    text: str | None,
    image: Path | None,
    instruction: str | None,
    k: int,
) -> Outcome:
    """Searches a store for one query."""
    if text is None and image is None:
        raise MarvelError("give --text, --image or both.")
    opened = VectorStore.open(store)
    embedder = Embedder.from_pretrained(model)
    opened.require(**embedder.manifest_fields())
    searched = ScannIndex.open(index, opened) if index is not None else None
    query = Item.of(text=text, image=image, instruction=instruction, id="query")
    vectors = embedder.encode([query])
    started = time.perf_counter()
    if searched is not None:
        if not 1 <= k <= len(opened):
            raise MarvelError(f"k={k}: the store holds {len(opened)} vectors; give 1 to that.")
        found = searched.search(vectors, k)
    else:
        found = exact.top_k(vectors, opened, k)
    milliseconds = 1e3 * (time.perf_counter() - started)
    hits = [
        {"rank": rank, "id": opened.ids[int(row)], "score": round(float(score), 6)}
        for rank, (row, score) in enumerate(
            zip(found.indices[0], found.scores[0], strict=True), start=1
        )
        if row >= 0
    ]
    lines = [f"{hit['rank']:>4}  {hit['score']:.4f}  {hit['id']}" for hit in hits]
    return Outcome({"hits": hits, "milliseconds": round(milliseconds, 3)}, lines)


def evaluate_model(model: str, *, data: Path, workdir: Path, seed: int, scann: bool) -> Outcome:
    """Scores a model on every test set of an M-BEIR folder."""
    console = Console(stderr=True)
    evaluated = evaluate_embedder(
        Embedder.from_pretrained(model),
        MbeirFolder(data),
        workdir=workdir,
        seed=seed,
        scann=scann,
        say=console.print,
    )
    facts = evaluated.evaluation.to_dict()
    write_json(workdir / "scores.json", facts)
    return Outcome(facts, score_table(evaluated.evaluation))
