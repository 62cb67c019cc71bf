"""Adapters in the layout of the peft library, in and out.

A folder holds adapter_config.json and adapter_model.safetensors. Checked against peft 0.21.2 over
transformers 5.23.0: what we write, it loads to the same embeddings, and the reverse. The names
under which adapters of transformers 4 were saved are read too.
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, read_json_object, write_json
from marvel_jax.models import names, tensors
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.models.lora import LINEARS, LoraConfig, adapter_shapes, check_adapters

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_BLOCKS = "language/blocks/"

# peft wraps the model twice before its own names begin.
_WRAPPED = "base_model.model."
_PARTS = {"a": "lora_A", "b": "lora_B"}

ModelClass = Literal["Qwen2VLForConditionalGeneration", "Qwen2VLModel"]

# Which of the names table's places the language model has in each class of transformers 5, as peft
# meets it in memory. The table's other place is that of transformers 4.
_PLACES: dict[ModelClass, int] = {"Qwen2VLForConditionalGeneration": 1, "Qwen2VLModel": 2}

# What we understand of adapter_config.json. Any other field must be off (null, false or empty): a
# kind of adapter that we do not know must not pass for a plain one.
_UNDERSTOOD = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"}
_UNDERSTOOD |= {"bias", "use_rslora", "init_lora_weights"}
# These say nothing about the function that the adapters compute.
_HARMLESS = {"auto_mapping", "base_model_name_or_path", "eva_config", "inference_mode"}
_HARMLESS |= {"ensure_weight_tying", "layers_pattern", "megatron_core", "peft_version"}
_HARMLESS |= {"qalora_group_size", "revision", "task_type"}
# Ways to begin that leave the base as it is; all others (PiSSA, OLoRA, LoftQ...) change it.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


class Adapters(NamedTuple):
    """Adapters on the host: float32, nested as `init_adapters` does; temperature if stored."""

    params: dict[str, Any]
    lora: LoraConfig
    temperature: float | None = None


def save_adapters(
    folder: Path | str,
    adapters: Mapping[str, Any],
    config: Qwen2VLConfig,
    lora: LoraConfig,
    *,
    base: str,
    temperature: float | None = None,
    model_class: ModelClass = "Qwen2VLForConditionalGeneration",
    documents: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes a folder that peft's `PeftModel.from_pretrained` loads; all of it or nothing.

    Args:
      folder: made by this call.
      adapters: as `init_adapters` nests them, numpy or JAX; written in float32.
      config: of the model they were trained on.
      lora: how they were trained.
      base: the Hub id or folder of that model.
      temperature: the learned one, kept in the metadata of the weights, which peft passes over.
      model_class: the class of transformers that they are for; peft's names depend on it.
      documents: further JSON files by name.

    Raises:
      MarvelError: the folder exists; or adapters, config and `lora` do not fit.
    """
    if model_class not in _PLACES:
        raise MarvelError(
            f"model_class {model_class!r} is unknown: use one of {', '.join(_PLACES)}."
        )
    check_adapters(adapters, config, lora)
    flat = names.flatten(adapters)
    modules, linears = _modules(config), _linears(config, lora)
    stored = {}
    for linear in linears:
        for part in _PARTS:
            stack = np.asarray(flat[f"{_BLOCKS}{linear}/{part}"], np.float32)
            for places, matrix in zip(modules[linear], stack, strict=True):
                key = _key(places[_PLACES[model_class]], part)
                stored[key] = np.ascontiguousarray(matrix.T)
    metadata = {} if temperature is None else {"temperature": repr(float(temperature))}
    targets = [modules[linear][0][0].split(".")[-1] for linear in linears]
    with atomic_folder(folder) as partial:
        for name, values in (documents or {}).items():
            write_json(partial / name, values)
        write_json(partial / _CONFIG, _describe(lora, targets, base))
        tensors.write_file(partial / _WEIGHTS, stored, metadata=metadata)


def load_adapters(folder: Path | str, config: Qwen2VLConfig) -> Adapters:
    """Reads a folder that peft or `save_adapters` wrote, for a model of `config`.

    Rank-stabilised scaling (alpha / sqrt(rank)) becomes the alpha that gives the same in ours.

    Raises:
      MarvelError: a file is missing, broken or a pickle; the adapters are of a kind that we have
        not (the fields are named); or a tensor is unknown, missing, doubled or of another shape
        than the model asks for. One message names all.
    """
    folder = Path(folder)
    if folder.is_file():
        raise MarvelError(f"{folder} is a file: give the folder that holds it, {folder.parent}.")
    if not (folder / _CONFIG).is_file():
        holds = "a model" if (folder / "config.json").is_file() else "nothing of peft's"
        raise MarvelError(f"{folder} has no {_CONFIG}: adapters are expected, this holds {holds}.")
    described = read_json_object(folder / _CONFIG)
    _check_description(folder, described)
    stored = tensors.Weights(folder, name=_WEIGHTS)
    lora = _lora(folder, described, config)
    found = _match(folder, stored, config, lora)
    flat = {}
    for path, shape in adapter_shapes(config, lora).items():
        array = np.empty(shape, np.float32)
        for layer, key in enumerate(found[path]):
            array[layer] = stored.get(key).T  # torch.nn.Linear stores [out, in].
        flat[path] = array
    written = stored.metadata.get("temperature")
    try:
        temperature = float(written) if written else None
    except ValueError as error:
        raise MarvelError(
            f"{folder / _WEIGHTS}: the metadata's temperature is {written!r}, not a number."
        ) from error
    return Adapters(names.nest(flat), lora, temperature)


def _modules(config: Qwen2VLConfig) -> dict[str, list[tuple[str, ...]]]:
    """{linear: its names, such as model.layers.0.mlp.up_proj, in every place, layer by layer}."""
    rows = {row.path: row for row in names.table(config)}
    return {
        linear: [
            tuple(
                name.format(layer=layer).removesuffix(".weight")
                for name in rows[f"{_BLOCKS}{linear}/kernel"].hub
            )
            for layer in range(config.text.num_hidden_layers)
        ]
        for linear in LINEARS
    }


def _key(module: str, part: str) -> str:
    return f"{_WRAPPED}{module}.{_PARTS[part]}.weight"


def _linears(config: Qwen2VLConfig, lora: LoraConfig) -> list[str]:
    adapted = {path.removeprefix(_BLOCKS).split("/")[0] for path in adapter_shapes(config, lora)}
    return [linear for linear in LINEARS if linear in adapted]


def _describe(lora: LoraConfig, targets: list[str], base: str) -> dict[str, Any]:
    alpha = int(lora.alpha) if lora.alpha == int(lora.alpha) else lora.alpha
    return {
        "auto_mapping": None,
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": lora.rank,
        # No module of the vision tower has one of these names, so that the names alone will do.
        "target_modules": targets,
        "task_type": "FEATURE_EXTRACTION",
        "use_dora": False,
        "use_rslora": False,
    }


def _check_description(folder: Path, described: Mapping[str, Any]) -> None:
    problems = []

    def expect(field: str, right: bool, only: str) -> None:
        if not right:
            problems.append(f"{field} is {json.dumps(described.get(field))}: only {only}")

    expect("peft_type", described.get("peft_type") == "LORA", '"LORA"')
    expect("bias", described.get("bias", "none") == "none", '"none"')
    expect(
        "init_lora_weights",
        described.get("init_lora_weights") in _BEGINNINGS,
        "ways that leave the base as it is (true, false, gaussian, eva, orthogonal)",
    )
    if described.get("peft_type") == "LORA":
        expect("r", _number(described.get("r"), int) > 0, "a positive integer")
        expect("lora_alpha", _number(described.get("lora_alpha")) > 0, "a positive number")
        rate = _number(described.get("lora_dropout", 0.0))
        expect("lora_dropout", 0 <= rate < 1, "a share, 0 to below 1")
    for field in sorted(described.keys() - _UNDERSTOOD - _HARMLESS):
        value = described[field]
        off = value is None or value is False or value in ("", [], {})
        expect(field, off, "null, false or empty")
    if problems:
        listed = "\n  ".join(problems)
        raise MarvelError(
            f"{folder / _CONFIG}: these adapters are more than low-rank pairs on the seven linears "
            f"of the language model, and cannot be taken as such.\n  {listed}\n  Merge them with "
            "peft (merge_and_unload, save_pretrained) and load the merged model."
        )


def _number(value: Any, kind: Any = (int, float)) -> float:
    """NaN for what is no number, so that every comparison with it is false."""
    return value if isinstance(value, kind) and not isinstance(value, bool) else math.nan


def _lora(folder: Path, described: Mapping[str, Any], config: Qwen2VLConfig) -> LoraConfig:
    """Which of the seven linears peft would have adapted, and the rest of the config."""
    targets, excluded = described.get("target_modules"), described.get("exclude_modules")
    # A pattern is written for one class of transformers and need not fit the others' names.
    adapted = [
        linear
        for linear, layers in _modules(config).items()
        if any(
            _names(targets, module) and not _names(excluded, module)
            for places in layers
            for module in places
        )
    ]
    if not adapted:
        raise MarvelError(
            f"{folder / _CONFIG}: target_modules is {json.dumps(targets)}, which is none of the "
            "seven linears of the language model (q_proj, k_proj, v_proj, o_proj, gate_proj, "
            "up_proj, down_proj)."
        )
    rank, alpha = described["r"], float(described["lora_alpha"])
    return LoraConfig(
        rank=rank,
        alpha=alpha * math.sqrt(rank) if described.get("use_rslora") else alpha,
        dropout=float(described.get("lora_dropout", 0.0)),
        targets=f"{_BLOCKS}({'|'.join(adapted)})",
    )


def _names(patterns: Any, module: str) -> bool:
    """As peft reads target_modules: a regular expression of whole names, or a list of endings."""
    if isinstance(patterns, str):
        if patterns == "all-linear":
            return True
        return re.fullmatch(patterns, module) is not None
    return any(module == end or module.endswith(f".{end}") for end in patterns or ())


def _match(
    folder: Path, stored: tensors.Weights, config: Qwen2VLConfig, lora: LoraConfig
) -> dict[str, list[str]]:
    """{our path: [name on disk of each layer]}, each tensor used once."""
    left = stored.names()
    modules = _modules(config)
    found: dict[str, list[str]] = {}
    problems = []
    for path, (_, *sizes) in adapter_shapes(config, lora).items():
        linear, part = path.removeprefix(_BLOCKS).split("/")
        found[path] = []
        for places in modules[linear]:
            keys = [_key(module, part) for module in places]
            present = [key for key in keys if key in left]
            left -= set(present)
            found[path] += present
            if not present:
                problems.append(f"missing: {keys[1]}")
            if len(present) > 1:
                problems.append(f"twice: {' and '.join(present)}")
            for key in present:
                expected = sizes[::-1]
                if stored.dtype(key) not in tensors.FLOATS:
                    problems.append(f"{key} is of type {stored.dtype(key)}")
                elif list(stored.shape(key)) != expected:
                    problems.append(f"{key} is {list(stored.shape(key))}, expected {expected}")
    problems += [f"unknown: {key}" for key in sorted(left)]
    if problems:
        listed = "\n  ".join(problems)
        raise MarvelError(
            f"{folder / _WEIGHTS}: the adapters do not fit {_CONFIG} and the model.\n  {listed}\n"
            "  Check that they were trained on this model, on linears of its language model only, "
            "and saved whole; or merge them with peft and load the merged model."
        )
    return found
