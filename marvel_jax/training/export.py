"""A trained model as a Hugging Face folder, with the settings that its vectors depend on."""

import math
from pathlib import Path
from typing import Any

import jax

from marvel_jax.errors import MarvelError
from marvel_jax.models import hub, lora, names, peft
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.qwen2_vl import init_params
from marvel_jax.reranker_settings import RerankerSettings, is_reranker
from marvel_jax.settings import SETTINGS_FILE, EmbeddingSettings
from marvel_jax.training import run_folder
from marvel_jax.training.checkpoints import read_params
from marvel_jax.training.inputs import Inputs, hash_weights
from marvel_jax.training.run_folder import Base

# All that a model folder needs besides the weights, written when a run starts.
_BLUEPRINT = "blueprint"


Settings = EmbeddingSettings | RerankerSettings


def write_blueprint(workdir: Path, inputs: Inputs, settings: Settings) -> None:
    """Writes config, tokenizer and settings beside the checkpoints, so that any of them exports.

    Does nothing where they are already.
    """
    if (workdir / _BLUEPRINT).is_dir():
        return
    hub.save_blueprint(
        workdir / _BLUEPRINT,
        config=inputs.architecture,
        attention=settings.attention,
        tokenizer_from=inputs.tokenizer_folder,
        documents={
            "preprocessor_config.json": inputs.processor.geometry.to_preprocessor_dict(),
            SETTINGS_FILE: settings.to_dict(),
        },
    )


def export_checkpoint(
    workdir: Path | str, folder: Path | str, *, step: int | None = None, base: str | None = None
) -> int:
    """Writes a run's checkpoint where transformers loads it, and returns its step.

    `Embedder` loads it too, or `Reranker` what was trained with the objective "rerank".

    Adapters are merged into the base in float32, frozen weights are taken from it, and the learned
    temperature goes along. `step` chooses a checkpoint (None: the newest); `base` is where the
    model that the run started from is now, if it has moved. One process does it, whatever made the
    checkpoint.

    Raises:
      MarvelError: there is no such checkpoint, the base is not there or is another, or the folder
        exists already.
    """
    step, params = _read(Path(workdir), step)
    _save(folder, params, Path(workdir), base)
    return step


def export_adapters(
    workdir: Path | str, folder: Path | str, *, step: int | None = None, base: str | None = None
) -> int:
    """Writes the adapters of a run's checkpoint in PEFT's layout, and returns its step.

    The base is named, not copied; `base` is the name to write if it has moved.

    Raises:
      MarvelError: the run trained no adapters, there is no such checkpoint, or the folder exists.
    """
    run = Path(workdir)
    step, params = _read(run, step)
    if "adapters" not in params:
        raise MarvelError(f"{run} trained no adapters: export the whole model, without --adapters.")
    recorded = run_folder.read_base(run)
    settings = _read_settings(run / _BLUEPRINT)
    peft.save_adapters(
        folder,
        params["adapters"],
        Qwen2VLConfig.from_folder(run / _BLUEPRINT),
        run_folder.read_adapters(run),
        base=base or recorded.source or "",
        temperature=_temperature(params, recorded, settings),
        documents={SETTINGS_FILE: settings.to_dict()},
    )
    return step


def export_params(workdir: Path | str, folder: Path | str, params: dict[str, Any]) -> None:
    """Writes parameters of a run that are at hand, as `TrainState.params` has them."""
    _save(folder, jax.device_get(params), Path(workdir), None)


def _read(run: Path, step: int | None) -> tuple[int, dict[str, Any]]:
    if not (run / _BLUEPRINT).is_dir():
        raise MarvelError(f"{run} is not the folder of a training run: it has no {_BLUEPRINT}/.")
    return read_params(run / "checkpoints", step=step)


def _save(folder: Path | str, params: dict[str, Any], run: Path, base: str | None) -> None:
    blueprint = run / _BLUEPRINT
    settings = _read_settings(blueprint)
    architecture = Qwen2VLConfig.from_folder(blueprint)
    hub.save(
        folder,
        config=architecture,
        params=_whole_model(params, architecture, run, base),
        attention=settings.attention,
        temperature=_temperature(params, run_folder.read_base(run), settings),
        tokenizer_from=blueprint,
        documents={SETTINGS_FILE: settings.to_dict()},
    )


def _read_settings(folder: Path) -> Settings:
    reader = RerankerSettings if is_reranker(folder) else EmbeddingSettings
    return reader.read(folder)


def _temperature(params: dict[str, Any], base: Base, settings: Settings) -> float | None:
    if isinstance(settings, RerankerSettings):
        return None  # logits are compared with no cosine
    learned = params.get("log_temperature")
    return base.temperature if learned is None else math.exp(float(learned))


def _whole_model(
    params: dict[str, Any], architecture: Qwen2VLConfig, run: Path, base: str | None
) -> dict[str, Any]:
    """The weights with what the run did not train; float32 wherever something was trained."""
    weights = names.flatten(params.get("model", {}))
    if run_folder.froze_weights(run):
        weights = _frozen_weights(architecture, run, base, trained=weights) | weights
    whole = names.nest(weights)
    if "adapters" in params:
        whole = lora.merge(whole, params["adapters"], run_folder.read_adapters(run))
    return whole


def _frozen_weights(
    architecture: Qwen2VLConfig, run: Path, base: str | None, *, trained: dict[str, Any]
) -> dict[str, Any]:
    """By path, what the run started from and did not train, held against the recorded hash."""
    recorded = run_folder.read_base(run)
    if recorded.source is None:
        drawn = jax.device_get(
            init_params(architecture, key=jax.random.key(run_folder.read_seed(run)))
        )
        frozen = run_folder.frozen_weights(drawn, trained)
        run_folder.require_same_drawn(run, frozen)
        return frozen
    source = base or recorded.source
    try:
        folder = hub.resolve(source)
    except MarvelError as error:
        raise MarvelError(
            f"{run} holds only what was trained, and the model that it started from is not at "
            f"hand: {error} If it has moved, give --base."
        ) from error
    found = hash_weights(folder)
    if found != recorded.weights_hash:
        raise MarvelError(
            f"{source} is not the model that {run} was trained on: the hash of its weights is "
            f"{found}, the run recorded {recorded.weights_hash}. Give the right one with --base."
        )
    return run_folder.frozen_weights(hub.load(folder).params, trained)
