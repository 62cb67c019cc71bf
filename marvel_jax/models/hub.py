"""Hugging Face folders in and out: safetensors only, read tensor by tensor, written atomically."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, read_json, write_json
from marvel_jax.models import names
from marvel_jax.models.config import Qwen2VLConfig

_INDEX = "model.safetensors.index.json"
_SINGLE = "model.safetensors"
_FLOATS = ("F64", "F32", "F16", "BF16")

# What a tokenizer and a processor are made of, besides the weights.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model on the host: numpy parameters as `init_params` nests them; temperature if stored."""

    config: Qwen2VLConfig
    params: dict[str, Any]
    temperature: float | None = None


def resolve(source: Path | str) -> Path:
    """A local folder as it is; anything else is a Hub id, fetched by huggingface_hub.

    Its cache, offline mode (HF_HUB_OFFLINE) and tokens (HF_TOKEN) are respected. Only JSON, text
    and safetensors are fetched, never pickles.

    Raises:
      MarvelError: neither a folder nor a model that can be had.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise MarvelError(f"{source} does not exist, and is not a Hub id of the form owner/name.")
    import huggingface_hub

    try:
        # Companions are named one by one: a repository may hold gigabytes of other files.
        wanted = ["config.json", "*.safetensors", _INDEX, *_COMPANIONS]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # The client raises its own, requests' and the operating system's.
        cause = str(error).strip().splitlines()
        raise MarvelError(
            f"{name} is not a folder here, and could not be had from the Hugging Face Hub: "
            f"{cause[0] if cause else type(error).__name__} "
            "Check the name, the connection, HF_TOKEN for a gated model, and that HF_HUB_OFFLINE "
            "is not set; or download the model elsewhere and give its folder."
        ) from error


def load(folder: Path | str, *, dtype: Any = jnp.float32) -> Checkpoint:
    """Reads a folder of transformers 4 or 5 into stacked host arrays of `dtype`.

    One tensor is read at a time, so the peak is one copy of the parameters. Every weight of the
    files is consumed once and every parameter filled once.

    Raises:
      MarvelError: a file is missing, broken or a pickle; a weight is unknown, missing, doubled, not
        of floats, or of another shape than config.json says. One message names all of a kind.
    """
    folder = Path(folder)
    config = Qwen2VLConfig.from_folder(folder)
    dtype = jnp.dtype(dtype)
    with _Weights(folder) as weights:
        stored = weights.names()
        try:
            found = names.match(stored, config)
        except MarvelError as error:
            raise MarvelError(f"{folder}: {error}") from error
        rows = [row for row in names.table(config) if row.path in found]
        _check_shapes(folder, weights, rows, found, config)
        flat = {}
        for row in rows:
            to_ours = names.TRANSFORMS[row.transform].to_ours
            array = np.empty(row.shape(config), dtype)
            for layer, key in enumerate(found[row.path]):
                array[layer if row.layers else ...] = to_ours(weights.get(key))
            flat[row.path] = array
        temperature = None
        if names.TEMPERATURE in stored:
            temperature = float(weights.get(names.TEMPERATURE).astype(np.float32).reshape(-1)[0])
    return Checkpoint(config=config, params=names.nest(flat), temperature=temperature)


def save(
    folder: Path | str,
    *,
    config: Qwen2VLConfig,
    params: Mapping[str, Any],
    attention: str = "bidirectional",
    temperature: float | None = None,
    tokenizer_from: Path | str | None = None,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
    max_shard_bytes: int = 4 * 2**30,
) -> None:
    """Writes a folder that transformers 5 loads to the same embeddings; all of it or nothing.

    Args:
      folder: made by this call.
      config: the shape of `params`.
      params: as `init_params` nests them; written in the types that they have.
      attention: "bidirectional" is written as `text_config.is_causal = false`.
      temperature: kept among the weights as `sim.temp`, in float32.
      tokenizer_from: a folder whose tokenizer and processor files are copied.
      documents: further JSON files by name, such as preprocessor_config.json (the pixels' mean and
        deviation in it are the config's); they win over copied ones.
      max_shard_bytes: above this size the weights are cut into several files with an index.

    Raises:
      MarvelError: the folder exists; or params and config do not fit.
    """
    if attention not in ("bidirectional", "causal"):
        raise MarvelError(f"attention {attention!r} is unknown: use bidirectional or causal.")
    flat = names.flatten(params)
    _check_params(flat, config)
    dtype = jnp.dtype(flat["language/token_embedding"].dtype).name
    with atomic_folder(folder) as partial:
        _describe(partial, config, attention, dtype, tokenizer_from, documents or {})
        _write_weights(partial, _hub_tensors(flat, config, temperature), max_shard_bytes)


def save_blueprint(
    folder: Path | str,
    *,
    config: Qwen2VLConfig,
    attention: str = "bidirectional",
    tokenizer_from: Path | str | None = None,
    documents: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes all of a model folder but its weights; the arguments are those of `save`."""
    with atomic_folder(folder) as partial:
        _describe(partial, config, attention, "float32", tokenizer_from, documents or {})


def _describe(
    folder: Path,
    config: Qwen2VLConfig,
    attention: str,
    dtype: str,
    tokenizer_from: Path | str | None,
    documents: Mapping[str, Mapping[str, Any]],
) -> None:
    if attention not in ("bidirectional", "causal"):
        raise MarvelError(f"attention {attention!r} is unknown: use bidirectional or causal.")
    text = dataclasses.replace(config.text, is_causal=attention == "causal")
    config = dataclasses.replace(config, text=text)
    if tokenizer_from is not None:
        _copy_companions(Path(tokenizer_from), folder)
    pixels = {"image_mean": config.vision.image_mean, "image_std": config.vision.image_std}
    for name, values in documents.items():
        extra = pixels if name == "preprocessor_config.json" else {}
        write_json(folder / name, {**values, **extra})
    write_json(folder / "config.json", {**config.to_dict(), "dtype": dtype})


class _Weights(contextlib.ExitStack):
    """The tensors of a folder by name, in one file or several; nothing is read before `get`."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._files: dict[str, Any] = {}
        for path in _weight_files(folder):
            try:
                handle = self.enter_context(safetensors.safe_open(path, framework="np"))
            except (safetensors.SafetensorError, OSError) as error:
                self.close()
                raise MarvelError(f"{path} is not a whole safetensors file: {error}") from error
            for key in list(handle.keys()):
                if key in self._files:
                    self.close()
                    raise MarvelError(f"{path}: weight {key} is in another file of {folder} too.")
                self._files[key] = handle

    def names(self) -> set[str]:
        return set(self._files)

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._files[key].get_slice(key).get_shape())

    def dtype(self, key: str) -> str:
        return str(self._files[key].get_slice(key).get_dtype())

    def get(self, key: str) -> np.ndarray:
        return self._files[key].get_tensor(key)


def _weight_files(folder: Path) -> list[Path]:
    if (folder / _INDEX).is_file():
        index = read_json(folder / _INDEX)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise MarvelError(f"{folder / _INDEX}: field weight_map is missing.")
        files = [folder / name for name in sorted(set(index["weight_map"].values()))]
        absent = [path.name for path in files if not path.is_file()]
        if absent:
            raise MarvelError(
                f"{folder}: {', '.join(absent)} of {_INDEX} is missing: the download is not whole."
            )
        return files
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth"))
    if pickles:
        raise MarvelError(
            f"{folder} holds its weights as {', '.join(pickles)}: pickles can run any code when "
            "they are opened and are never read. Convert them with transformers: "
            "save_pretrained(..., safe_serialization=True)."
        )
    raise MarvelError(f"{folder} has no {_SINGLE} and no {_INDEX}.")


def _check_shapes(
    folder: Path,
    weights: _Weights,
    rows: list[names.Parameter],
    found: Mapping[str, list[str]],
    config: Qwen2VLConfig,
) -> None:
    problems = []
    for row in rows:
        expected = row.hub_shape(config)
        fields = ", ".join(str(size) for size in row.sizes)
        for key in found[row.path]:
            if weights.dtype(key) not in _FLOATS:
                problems.append(f"{key} is of type {weights.dtype(key)}, expected one of {_FLOATS}")
            elif weights.shape(key) != expected:
                shape = list(weights.shape(key))
                problems.append(f"{key} is {shape}, expected {list(expected)} from {fields}")
    if names.TEMPERATURE in weights.names() and np.prod(weights.shape(names.TEMPERATURE)) != 1:
        problems.append(f"{names.TEMPERATURE} is not one number")
    if problems:
        listed = "\n  ".join(problems)
        raise MarvelError(f"{folder}: weights do not fit config.json.\n  {listed}")


def _check_params(flat: Mapping[str, Any], config: Qwen2VLConfig) -> None:
    rows = {row.path: row for row in names.table(config)}
    problems = [f"{path} is not a parameter of this model" for path in flat if path not in rows]
    for path, row in rows.items():
        if path not in flat:
            if not row.optional:
                problems.append(f"{path} is missing")
        elif tuple(flat[path].shape) != row.shape(config):
            expected = row.shape(config)
            problems.append(f"{path} is {tuple(flat[path].shape)}, expected {expected}")
    if problems:
        listed = "\n  ".join(problems)
        raise MarvelError(f"the parameters do not fit the config.\n  {listed}")


def _hub_tensors(
    flat: Mapping[str, Any], config: Qwen2VLConfig, temperature: float | None
) -> Iterator[tuple[str, np.ndarray]]:
    for row in names.table(config):
        if row.path not in flat:
            continue
        to_hub = names.TRANSFORMS[row.transform].to_hub
        for layer in range(row.num_layers(config)):
            array = np.asarray(flat[row.path][layer if row.layers else ...])
            yield row.hub_name(layer), np.ascontiguousarray(to_hub(array, config))
    if temperature is not None:
        yield names.TEMPERATURE, np.asarray(temperature, np.float32)


def _write_weights(
    folder: Path, tensors: Iterator[tuple[str, np.ndarray]], max_shard_bytes: int
) -> None:
    """Writes shard after shard, so that only one is in memory besides the parameters."""
    shards: list[list[str]] = []
    shard: dict[str, np.ndarray] = {}
    size = total = 0

    def flush() -> None:
        path = folder / f"shard-{len(shards)}"
        # transformers refuses a file whose metadata does not say "pt".
        safetensors.numpy.save_file(shard, path, metadata={"format": "pt"})
        # safetensors makes files that only their owner can read: follow the user's own default.
        path.chmod((folder / "config.json").stat().st_mode)
        shards.append(list(shard))
        shard.clear()

    for name, array in tensors:
        if shard and size + array.nbytes > max_shard_bytes:
            flush()
            size = 0
        shard[name] = array
        size += array.nbytes
        total += array.nbytes
    flush()
    if len(shards) == 1:
        (folder / "shard-0").rename(folder / _SINGLE)
        return
    weight_map: dict[str, str] = {}
    for number, keys in enumerate(shards):
        name = f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors"
        (folder / f"shard-{number}").rename(folder / name)
        weight_map |= dict.fromkeys(keys, name)
    write_json(folder / _INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _copy_companions(source: Path, target: Path) -> None:
    present = [name for name in _COMPANIONS if (source / name).is_file()]
    if not any(name.startswith(("tokenizer", "vocab")) for name in present):
        raise MarvelError(f"{source} holds no tokenizer (no tokenizer.json and no vocab.json).")
    for name in present:
        shutil.copyfile(source / name, target / name)
