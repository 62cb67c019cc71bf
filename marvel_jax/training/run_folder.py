"""What a run's folder says of the run: the recipe that it must be resumed with, and its base."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from marvel_jax.errors import MarvelError
from marvel_jax.files import flatten, hash_json, read_json_object, write_json
from marvel_jax.models import names
from marvel_jax.models.lora import LoraConfig
from marvel_jax.training.config import TrainConfig
from marvel_jax.training.inputs import Inputs

RECIPE = "recipe.json"
_BASE = "base.json"

# Fields that may change between resumes: how a run is carried out, not what it computes.
_PACE = (
    "mesh",
    "sharding",
    "checkpoint",
    "tracking",
    "chunk_rows",
    "model.remat",
    "model.kernel",
    "model.source",  # a folder that has moved is the same folder: content counts, not its path
    "loss.implementation",
    "loss.tile",
    # Where data is: its content counts, by the fingerprints of source, texts and processor.
    "data.path",
    "data.images",
    "data.mined",
    "data.teacher",
    "data.tokenizer",
    "data.mixture.path",
    "data.mixture.images",
    "data.mixture.mined",
    "data.mixture.teacher",
    "retention.path",
    "data.prefetch",
)


def describe(config: TrainConfig, inputs: Inputs) -> dict[str, Any]:
    """What decides the result of a run: its config and the content of its data and weights."""
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    for field in _PACE:
        _remove(plain, field.split("."))
    texts = {} if inputs.texts is None else {"texts": inputs.texts.fingerprint}
    return {
        "config": plain,
        "data": inputs.source.fingerprint,
        **texts,
        "weights": inputs.weights_hash,
        "processor": inputs.processor.fingerprint,
        "architecture": json.loads(json.dumps(dataclasses.asdict(inputs.architecture))),
    }


def _remove(branch: Any, path: list[str]) -> None:
    """Removes a field, from every element where the way goes through a list; None has no fields."""
    if isinstance(branch, list):
        for element in branch:
            _remove(element, path)
    elif branch is None:
        return
    elif len(path) == 1:
        branch.pop(path[0])
    else:
        _remove(branch[path[0]], path[1:])


def require_same_run(workdir: Path, described: dict[str, Any]) -> None:
    """Holds a run against the one whose `recipe.json` is in the folder, if there is one.

    Raises:
      MarvelError: the folder belongs to a run with another config, other data or other weights.
    """
    path = workdir / RECIPE
    if not path.exists():
        return
    ours = flatten(described, separator=".")
    theirs = flatten(read_json_object(path), separator=".")
    fields = ours.keys() | theirs.keys()
    differing = sorted(name for name in fields if ours.get(name) != theirs.get(name))
    if differing:
        name = differing[0]
        raise MarvelError(
            f"{workdir} holds a run with other settings ({', '.join(differing[:5])}): {name} was "
            f"{theirs.get(name)!r} and is now {ours.get(name)!r}. Resume with the old settings, or "
            "choose another --workdir."
        )


def write_recipe(workdir: Path, described: dict[str, Any]) -> None:
    """Claims the folder for the run."""
    write_json(workdir / RECIPE, described)


class Base(NamedTuple):
    """What a run's checkpoints do not hold because it is not trained.

    `source` is a folder or Hub id, `weights_hash` the content of its files; both None for weights
    that the seed made. `frozen_hash` is of the frozen values as they were used, `temperature` the
    one that was not learned.
    """

    source: str | None
    weights_hash: str | None
    frozen_hash: str | None
    temperature: float | None


def describe_base(config: TrainConfig, inputs: Inputs, frozen: Mapping[str, Any]) -> Base:
    """What is not trained in this run; `frozen` as `state.Placed` has it."""
    source = config.model.source
    if source is not None and Path(source).expanduser().is_dir():
        source = str(Path(source).expanduser().resolve())  # the run may be exported from elsewhere
    log_temperature = frozen.get("log_temperature")
    return Base(
        source=source,
        weights_hash=inputs.weights_hash,
        # Loaded weights are known by their files.
        frozen_hash=frozen_hash(frozen["model"]) if source is None else None,
        temperature=None if log_temperature is None else math.exp(float(log_temperature)),
    )


def write_base(workdir: Path, base: Base) -> None:
    """Writes `base.json`; a run whose base has moved writes its new place."""
    write_json(workdir / _BASE, base._asdict())


def read_base(workdir: Path) -> Base:
    """Reads `base.json`.

    Raises:
      MarvelError: it is missing or broken.
    """
    found = read_json_object(workdir / _BASE)
    try:
        return Base(**found)
    except TypeError as error:
        raise MarvelError(f"{workdir / _BASE} has other fields than expected: {error}.") from error


def require_same_base(workdir: Path, base: Base) -> None:
    """Holds frozen weights that the seed drew against those of the run's checkpoints.

    (Loaded ones are held by their files' hash, with the rest of the recipe.)

    Raises:
      MarvelError: they differ: another JAX or Flax may draw other weights from the same seed.
    """
    if not (workdir / _BASE).is_file():
        return
    recorded = read_base(workdir).frozen_hash
    if recorded != base.frozen_hash:
        raise MarvelError(
            f"{workdir}: the frozen weights that the seed gives (hash {base.frozen_hash}) are not "
            f"those that the run was trained on ({recorded}): use the versions of jax and flax "
            "that it was begun with."
        )


def froze_weights(workdir: Path) -> bool:
    """Whether the run left weights untrained, so that its checkpoints are not the whole model."""
    model = read_json_object(workdir / RECIPE)["config"]["model"]
    return model["adapters"] is not None or model["frozen"] is not None


def frozen_weights(base: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, Any]:
    """By path, every weight that the nested `base` holds and that is not among the trained paths.

    What the base holds decides, not what a model must have: an untied head is optional, and is
    frozen, hashed and exported wherever there is one.
    """
    return {path: leaf for path, leaf in names.flatten(base).items() if path not in trained}


def require_same_drawn(workdir: Path, frozen: Mapping[str, Any]) -> None:
    """`require_same_base` for `frozen_weights` that were just drawn."""
    dtype = jnp.dtype(read_json_object(workdir / RECIPE)["config"]["model"]["dtype"])
    used = names.nest({path: jnp.asarray(leaf).astype(dtype) for path, leaf in frozen.items()})
    require_same_base(workdir, read_base(workdir)._replace(frozen_hash=frozen_hash(used)))


def read_adapters(workdir: Path) -> LoraConfig:
    """How the run's adapters are made, from its recipe."""
    return LoraConfig(**read_json_object(workdir / RECIPE)["config"]["model"]["adapters"])


def read_seed(workdir: Path) -> int:
    """The run's seed, from its recipe."""
    return int(read_json_object(workdir / RECIPE)["config"]["seed"])


def frozen_hash(frozen: Any) -> str | None:
    """A hash of arrays on any mesh by any number of processes; None of nothing.

    A sum of bits times odd weights, modulo 2^32: exact in any order, so that no array has to be
    gathered. It tells accidents, not attacks.
    """
    leaves = jax.tree_util.tree_leaves_with_path(frozen)
    if not leaves:
        return None
    sums = jax.device_get(jax.jit(lambda tree: jax.tree.map(_weighted_bits, tree))(frozen))
    named = {
        jax.tree_util.keystr(path): int(value)
        for path, value in jax.tree_util.tree_leaves_with_path(sums)
    }
    return hash_json(named)


def _weighted_bits(leaf: jax.Array) -> jax.Array:
    size = jnp.dtype(leaf.dtype).itemsize
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * size}")).astype(jnp.uint32)
    # The place of each value, from its place along each axis: nothing is reshaped across shards.
    place = jnp.uint32(0)
    for axis, length in enumerate(leaf.shape):
        place = place * jnp.uint32(length % 2**32) + jax.lax.broadcasted_iota(
            jnp.uint32, leaf.shape, axis
        )
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)
