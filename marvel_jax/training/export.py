"""A trained model as a Hugging Face folder, with the settings that its vectors depend on."""

import math
from contextlib import closing
from pathlib import Path
from typing import Any

import jax

from marvel_jax.errors import MarvelError
from marvel_jax.models import hub
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.settings import SETTINGS_FILE, EmbeddingSettings
from marvel_jax.training.checkpoints import Checkpoints
from marvel_jax.training.inputs import Inputs

# All that a model folder needs besides the weights, written when a run starts.
_BLUEPRINT = "blueprint"


def write_blueprint(workdir: Path, inputs: Inputs, embedding: EmbeddingSettings) -> None:
    """Writes config, tokenizer and settings beside the checkpoints, so that any of them exports.

    Does nothing where they are already.
    """
    if (workdir / _BLUEPRINT).is_dir():
        return
    hub.save_blueprint(
        workdir / _BLUEPRINT,
        config=inputs.architecture,
        attention=embedding.attention,
        tokenizer_from=inputs.tokenizer_folder,
        documents={
            "preprocessor_config.json": inputs.processor.geometry.to_preprocessor_dict(),
            SETTINGS_FILE: embedding.to_dict(),
        },
    )


def export_checkpoint(workdir: Path | str, folder: Path | str) -> int:
    """Writes a run's newest checkpoint where transformers and `Embedder` load it.

    The learned temperature goes along. Returns the step of the checkpoint.

    Raises:
      MarvelError: the run has no checkpoint yet, or the folder exists already.
    """
    blueprint = Path(workdir) / _BLUEPRINT
    if not blueprint.is_dir():
        raise MarvelError(
            f"{workdir} is not the folder of a training run: it has no {_BLUEPRINT}/."
        )
    with closing(Checkpoints(Path(workdir) / "checkpoints", create=False)) as checkpoints:
        step, params = checkpoints.restore_params()
    _save(folder, params, blueprint)
    return step


def export_params(workdir: Path | str, folder: Path | str, params: dict[str, Any]) -> None:
    """Writes a run's parameters that are at hand, {"model": ..., "log_temperature": ...}."""
    _save(folder, jax.device_get(params), Path(workdir) / _BLUEPRINT)


def _save(folder: Path | str, params: dict[str, Any], blueprint: Path) -> None:
    settings = EmbeddingSettings.read(blueprint)
    hub.save(
        folder,
        config=Qwen2VLConfig.from_folder(blueprint),
        params=params["model"],
        attention=settings.attention,
        temperature=math.exp(float(params["log_temperature"])),
        tokenizer_from=blueprint,
        documents={SETTINGS_FILE: settings.to_dict()},
    )
