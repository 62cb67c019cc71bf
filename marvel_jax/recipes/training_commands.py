"""What `marvel train | export | import` do."""

import dataclasses
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from marvel_jax.data.processor import Processor
from marvel_jax.models import hub, lora, peft
from marvel_jax.recipes.config_file import load_config
from marvel_jax.recipes.outcome import EXIT_INTERRUPTED, EXIT_TERMINATED, Outcome
from marvel_jax.settings import SETTINGS_FILE, EmbeddingSettings, check_tokenizer
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.state import parameter_count

if TYPE_CHECKING:
    from marvel_jax.parallel.watch import Voice
    from marvel_jax.training.loop import Watching


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
