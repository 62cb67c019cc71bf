"""Hugging Face folders in and out: safetensors only, read tensor by tensor, written atomically."""

import dataclasses
import functools
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding

from marvel_jax.errors import MarvelError
from marvel_jax.files import atomic_folder, write_json
from marvel_jax.models import names, streaming, tensors
from marvel_jax.models.config import Qwen2VLConfig
from marvel_jax.settings import SETTINGS_FILE

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
    """A model: parameters as `init_params` nests them; temperature if stored.

    The parameters are numpy arrays from `load`, global JAX arrays from `load_sharded`.
    """

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
    if folder.exists():
        return _a_folder(folder)
    name = str(source)
    if folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise MarvelError(f"{source} does not exist, and is not a Hub id of the form owner/name.")
    import huggingface_hub

    try:
        # Companions are named one by one: a repository may hold gigabytes of other files.
        wanted = ["config.json", "adapter_config.json", "*.safetensors"]
        wanted += ["model.safetensors.index.json", SETTINGS_FILE, *_COMPANIONS]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=wanted))
    except Exception as error:  # The client raises its own, requests' and the operating system's.
        # The first line says why; the client's advice below it is said better here. "Got:" is how
        # it quotes what it caught.
        cause = (str(error).strip() or type(error).__name__).splitlines()[0].removeprefix("Got: ")
        raise MarvelError(
            f"{name} is not a folder here, and could not be had from the Hugging Face Hub "
            f"({cause.rstrip('.')}). Check the name, the connection, HF_TOKEN for a gated model, "
            "and that HF_HUB_OFFLINE is not set; or download the model elsewhere and give its "
            "folder."
        ) from error


def load(folder: Path | str, *, dtype: Any = jnp.float32) -> Checkpoint:
    """Reads a folder of transformers 4 or 5 into stacked host arrays of `dtype`.

    One tensor is read at a time, so the peak is one copy of the parameters. Every weight of the
    files is consumed once and every parameter filled once.

    Raises:
      MarvelError: a file is missing, broken or a pickle; a weight is unknown, missing, doubled, not
        of floats, or of another shape than config.json says. One message names all of a kind.
    """
    source = _Source(folder)
    flat = {}
    for row in source.rows:
        whole = tuple(slice(0, size) for size in row.shape(source.config))
        flat[row.path] = source.read(row, whole, jnp.dtype(dtype))
    return Checkpoint(source.config, names.nest(flat), source.temperature())


def load_sharded(
    folder: Path | str,
    *,
    sharding: Callable[[str, tuple[int, ...]], Sharding],
    dtype: Callable[[str], Any],
    chunk_bytes: int = streaming.CHUNK_BYTES,
) -> Checkpoint:
    """Reads a folder straight into the shards of global arrays, equal to `load` bit for bit.

    Every process calls it, and reads the parts of the files that its own devices hold. The host
    never holds a whole parameter: memory beside the shards is at most twice the largest tensor on
    disk.

    Args:
      folder: as for `load`.
      sharding: (path, global shape) -> where the parameter lives.
      dtype: path -> its type.
      chunk_bytes: how much a process reads at a time.

    Raises:
      MarvelError: as `load`.
    """
    source = _Source(folder)
    flat = {}
    for row in source.rows:
        shape, kind = row.shape(source.config), jnp.dtype(dtype(row.path))
        flat[row.path] = streaming.stream(
            functools.partial(source.read, row, dtype=kind),
            shape=shape,
            sharding=sharding(row.path, shape),
            dtype=kind,
            stacked=row.layers is not None,
            outer=names.TRANSFORMS[row.transform].outer,
            chunk_bytes=chunk_bytes,
        )
    return Checkpoint(source.config, names.nest(flat), source.temperature())


class _Source:
    """A model's folder, checked against its config.json and open for reading."""

    def __init__(self, folder: Path | str) -> None:
        folder = _a_folder(Path(folder))
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise MarvelError(
                f"{folder} holds adapters, not a model: merge them into the model that they were "
                "trained on (base_model_name_or_path in adapter_config.json) with `marvel import "
                f"MODEL --adapters {folder} --out DIR`, and load that."
            )
        self.config = Qwen2VLConfig.from_folder(folder)
        self._weights = tensors.Weights(folder)
        try:
            self._found = names.match(self._weights.names(), self.config)
        except MarvelError as error:
            raise MarvelError(f"{folder}: {error}") from error
        self.rows = [row for row in names.table(self.config) if row.path in self._found]
        _check_shapes(folder, self._weights, self.rows, self._found, self.config)

    def read(self, row: names.Parameter, region: names.Region, dtype: Any) -> np.ndarray:
        """A region of our array of this parameter, layers included."""
        part = names.TRANSFORMS[row.transform].part
        keys = self._found[row.path]
        array = np.empty([axis.stop - axis.start for axis in region], dtype)
        if row.layers is None:
            with self._weights.open(keys[0]) as stored:
                array[...] = part(stored, region)
            return array
        for place, key in enumerate(keys[region[0]]):
            with self._weights.open(key) as stored:
                array[place] = part(stored, region[1:])
        return array

    def temperature(self) -> float | None:
        if names.TEMPERATURE not in self._weights.names():
            return None
        return float(self._weights.get(names.TEMPERATURE).astype(np.float32).reshape(-1)[0])


def _a_folder(folder: Path) -> Path:
    if folder.is_file():
        raise MarvelError(f"{folder} is a file: give the folder that holds it, {folder.parent}.")
    if not folder.is_dir():
        raise MarvelError(f"{folder} does not exist.")
    return folder


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
        stored = _hub_tensors(flat, config, temperature)
        tensors.write(partial, stored, max_shard_bytes=max_shard_bytes)


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


def _check_shapes(
    folder: Path,
    weights: tensors.Weights,
    rows: list[names.Parameter],
    found: Mapping[str, list[str]],
    config: Qwen2VLConfig,
) -> None:
    problems = []
    for row in rows:
        expected = row.hub_shape(config)
        fields = ", ".join(str(size) for size in row.sizes)
        for key in found[row.path]:
            if weights.dtype(key) not in tensors.FLOATS:
                problems.append(
                    f"{key} is of type {weights.dtype(key)}, expected one of {tensors.FLOATS}"
                )
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


def _copy_companions(source: Path, target: Path) -> None:
    present = [name for name in _COMPANIONS if (source / name).is_file()]
    if not any(name.startswith(("tokenizer", "vocab")) for name in present):
        raise MarvelError(f"{source} holds no tokenizer (no tokenizer.json and no vocab.json).")
    for name in present:
        shutil.copyfile(source / name, target / name)
